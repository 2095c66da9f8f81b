"""What lives in a Ray actor: one worker process with one engine.

The engine runs in a process below the actor and not in the actor itself: its prints go to the run's logs, its death is told
apart from the actor's, and it finds none of Ray's state, so that vLLM places its own ranks as it does without Ray.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from mismatch_probe.errors import EngineKilledError, MismatchProbeError, RunDirectoryError
from mismatch_probe.stages.job import RolloutJob, ScoreJob, Task
from mismatch_probe.stages.process import WorkerProcess


class EngineActor:
    """Holds a worker process; made remote by `mismatch_probe.distributed.ray_executor`.

    Args:
        job: A rollout or score job as JSON; its tasks are not read.
        log: Where the engine's output goes.
        environment: Variables of the engine's process beside those that Ray gives this one.
    """

    def __init__(self, job: str, log: str, environment: Mapping[str, str]) -> None:
        self._job: RolloutJob | ScoreJob = TypeAdapter(RolloutJob | ScoreJob).validate_json(job)
        self._log = Path(log)
        self._environment = dict(environment)
        self._worker: WorkerProcess | None = None

    def place(self) -> tuple[str, int]:
        """Name of the node and id of this process."""
        return os.uname().nodename, os.getpid()

    def work(self, task: str) -> Iterator[dict[str, Any]]:
        """Does a task of one part, given as JSON, and yields its events; the engine starts with the first.

        Raises:
            RunDirectoryError: The run directory is not seen from this node.
            MismatchProbeError: What the engine raised, or that its process died.
        """
        if self._worker is None:
            self._check_folders()
            self._worker = WorkerProcess(self._job, self._log, self._environment, handed=True)
        self._worker.hand(Task.model_validate_json(task))
        for event in self._worker.events():
            yield event
            if event["event"] == "part":
                return
        # The process ended before the part did: `finish` says why.
        self._worker.finish()
        raise EngineKilledError("the engine process ended before its part was done", hint=f"see {self._log}")

    def close(self) -> dict[str, Any]:
        """Ends the engine and returns its facts.

        Raises:
            MismatchProbeError: It failed, or never worked.
        """
        if self._worker is None:
            raise MismatchProbeError("the actor has no engine")
        try:
            return self._worker.finish()
        finally:
            self._worker.stop()

    def _check_folders(self) -> None:
        node = os.uname().nodename
        if not (self._job.run / "manifest.json").is_file():
            raise RunDirectoryError(
                f"{self._job.run} is not there on the node {node}",
                hint="give an --out that all nodes see under the same path",
            )
        model = Path(self._job.spec["model_path"])
        if not model.exists():
            raise RunDirectoryError(
                f"the checkpoint {model} is not there on the node {node}",
                hint="give a folder that all nodes see, or copy it to the same path on each",
            )
