"""The process that holds an engine: reads a job, writes parts, reports events.

Run as `python -m mismatch_probe.stages.worker JOB.json EVENT_FD [TASK_FD]`. With a third argument tasks come as JSON lines
from that descriptor until it closes, in place of the job's own. `--wait rollout|train NAME ORDER_FD EVENT_FD` imports what
that engine or scorer needs, then waits for a line on ORDER_FD that names a job and a log; it ends if none comes. Whatever an
engine prints goes to this process's stdout and stderr (a log file); events go as JSON lines to their own descriptor, so no
engine can garble them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from mismatch_probe.errors import MismatchProbeError
from mismatch_probe.process_lifetime import die_with_parent
from mismatch_probe.stages.job import Job, LayerStatesJob, RefitJob, RolloutJob, Task

if TYPE_CHECKING:
    from mismatch_probe.stages.spare import Kind


class EventWriter:
    """Sends events to the process that started this one."""

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(descriptor, "w", buffering=1, encoding="utf-8")

    def send(self, event: str, **fields: Any) -> None:
        """Sends one event."""
        self._file.write(json.dumps({"event": event, **fields}, default=str) + "\n")

    def progress(self, leg: str, sequences: int, tokens: int) -> None:
        """Sends how much more is done."""
        self.send("progress", leg=leg, sequences=sequences, tokens=tokens)


def main(arguments: list[str]) -> int:
    """Runs a job.

    Returns:
        0, or 1 after an "error" event.
    """
    die_with_parent()
    if arguments[0] == "--wait":
        job_file = wait_for_job(
            ("rollout" if arguments[1] == "rollout" else "train", arguments[2]), int(arguments[3])
        )
        if job_file is None:
            return 0
        arguments = [job_file, arguments[4]]
    events = EventWriter(int(arguments[1]))
    try:
        job: Job = TypeAdapter(Job).validate_json(Path(arguments[0]).read_text("utf-8"))
        if isinstance(job, RolloutJob):
            from mismatch_probe.stages.rollout_work import run_rollout_job

            facts = dataclasses.asdict(run_rollout_job(job, events, _handed(arguments)))
        elif isinstance(job, RefitJob):
            from mismatch_probe.stages.refit_work import run_refit_job

            facts = dataclasses.asdict(run_refit_job(job, events))
        elif isinstance(job, LayerStatesJob):
            from mismatch_probe.stages.layer_work import run_layer_states_job

            facts = dataclasses.asdict(run_layer_states_job(job, events))
        else:
            from mismatch_probe.stages.score_work import run_score_job

            facts = dataclasses.asdict(run_score_job(job, events, _handed(arguments)))
        events.send("done", facts=facts)
    except MismatchProbeError as error:
        traceback.print_exc()
        events.send("error", kind=type(error).__name__, message=error.message, hint=error.hint)
        return 1
    except BaseException as error:
        # The parent shows one line and names the log; the whole story is in the log.
        traceback.print_exc()
        lines = str(error).strip().splitlines()
        events.send(
            "error", kind="crash", message=f"{type(error).__name__}: {lines[0] if lines else ''}", hint=None
        )
        return 1
    return 0


def wait_for_job(kind: Kind, orders: int) -> str | None:
    """Imports what a job of this kind needs and waits for the job.

    Args:
        kind: What this process is for.
        orders: Descriptor that one line comes from.

    Returns:
        Path of the job, or None if there will be none. From here on this process's output goes to the log that was named.
    """
    from mismatch_probe.stages.spare import take_over_log, warm_of

    if (warm := warm_of(kind)) is not None:
        try:
            warm()
        except Exception:
            # The job will meet it again and report it.
            traceback.print_exc()
    with os.fdopen(orders, encoding="utf-8") as lines:
        line = lines.readline()
    if not line:
        return None
    order = json.loads(line)
    take_over_log(Path(order["said"]), Path(order["log"]))
    return str(order["job"])


def _handed(arguments: list[str]) -> Iterator[Task] | None:
    """Tasks as they are handed over, or None where the job has its own."""
    if len(arguments) < 3:
        return None
    lines = os.fdopen(int(arguments[2]), encoding="utf-8")
    return (Task.model_validate_json(line) for line in lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
