"""Processes that import what an engine needs before there is a job for them.

The imports of vLLM or transformers take longer than a small audit's engines compute. They depend on nothing that a job says,
so the processes of jobs to come are started while the plan is made and while the first engine loads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TextIO

from mismatch_probe.config.model import ProbeConfig
from mismatch_probe.engines.registry import engines
from mismatch_probe.errors import ConfigError
from mismatch_probe.process_lifetime import end_process
from mismatch_probe.scorers.registry import scorers
from mismatch_probe.stages.job import RolloutJob, ScoreJob
from mismatch_probe.stages.process import WORKER_MODULE, worker_variables

Side = Literal["rollout", "train"]
Kind = tuple[Side, str]
"""What a process is for: the side, and the name of its engine or scorer."""


class SpareProcess:
    """A process that imports what an engine or scorer needs and waits for its job.

    Args:
        kind: What it is for.
    """

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self._log: Path | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="mismatch-probe-")
        self._said = Path(self._folder.name) / "log"
        self._process: subprocess.Popen[bytes] | None = None
        receive, self._send = os.pipe()
        self._receive, send = os.pipe()
        try:
            with self._said.open("ab") as said:
                self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                    [sys.executable, "-m", WORKER_MODULE, "--wait", *kind, str(receive), str(send)],
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=subprocess.STDOUT,
                    pass_fds=(receive, send),
                    env=worker_variables(),
                )
        except OSError:
            self.stop()
            raise
        finally:
            os.close(receive)
            os.close(send)

    def give(self, job_file: Path, log: Path) -> tuple[subprocess.Popen[bytes], TextIO] | None:
        """Gives it its job; it is no spare any more.

        Args:
            job_file: The job.
            log: Where its output goes from now on, after what it has said so far.

        Returns:
            The process and its events, or None if it has died: a fresh one will say why.
        """
        process, self._process = self._process, None
        if process is None:
            return None
        self._log = log
        line = json.dumps({"job": str(job_file), "said": str(self._said), "log": str(log)}) + "\n"
        try:
            os.write(self._send, line.encode())
        except BrokenPipeError:
            end_process(process)
            return None
        events, self._receive = os.fdopen(self._receive, encoding="utf-8"), -1
        return process, events

    def stop(self) -> None:
        """Ends the process if it is still a spare, and removes what it had; called twice, nothing more happens."""
        if self._process is not None:
            end_process(self._process)
            self._process = None
        for descriptor in (self._send, self._receive):
            if descriptor >= 0:
                os.close(descriptor)
        self._send = self._receive = -1
        if self._log is not None and self._said.is_file():
            # It died before it took its job, so nobody else has put this there.
            with self._log.open("ab") as log:
                log.write(self._said.read_bytes())
        self._folder.cleanup()


def take_over_log(said: Path, log: Path) -> None:
    """Sends this process's output to a log from now on, after what it has said before.

    Args:
        said: Where the output went; removed.
        log: Where it goes.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with log.open("ab") as file:
        file.write(said.read_bytes())
        file.flush()
        said.unlink()
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)


def kind_of(job: RolloutJob | ScoreJob) -> Kind:
    """What process a job needs."""
    return ("rollout", job.engine) if isinstance(job, RolloutJob) else ("train", job.scorer)


def warm_of(kind: Kind) -> Callable[[], object] | None:
    """What a process of a kind imports ahead of its job; None where nothing is known to help, or the name is unknown."""
    side, name = kind
    try:
        return engines.get(name).item.warm if side == "rollout" else scorers.get(name).item.warm
    except ConfigError:
        # The plan will say so.
        return None


def expected_jobs(config: ProbeConfig, stages: Sequence[Literal["record", "score"]]) -> list[Kind]:
    """The jobs of `record` and `score`, in order, if nothing of them is on disk.

    Args:
        config: As asked for.
        stages: Which stages will run.
    """
    found: list[Kind] = []
    if "record" in stages:
        found.append(("rollout", config.rollout.engine))
    if "score" in stages:
        trained = any(leg.startswith("train/") and leg != "train/reference" for leg in config.legs)
        found += [("train", config.train.scorer)] * (trained + ("train/reference" in config.legs))
    return found
