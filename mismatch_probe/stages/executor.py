"""Where the job of a stage runs: in a worker process of this machine, or spread over Ray actors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from mismatch_probe.config.model import ProbeConfig
from mismatch_probe.stages.job import RolloutJob, ScoreJob
from mismatch_probe.stages.part_drift import Spread, call_here
from mismatch_probe.stages.process import run_worker
from mismatch_probe.stages.spare import Kind, SpareProcess, expected_jobs, kind_of, warm_of


class Execute(Protocol):
    """Does a job: all its parts are on disk when it returns."""

    def __call__(
        self, job: RolloutJob | ScoreJob, log: Path, on_event: Callable[[dict[str, Any]], None], /
    ) -> dict[str, Any]:
        """Does a job.

        Args:
            job: What to do.
            log: Where the engine's own output goes; several engines add a number to the name.
            on_event: Called with every event.

        Returns:
            The facts of the engine that ran.

        Raises:
            MismatchProbeError: What the engine raised, or that it died.
        """
        ...


class SpareExecutor:
    """Runs jobs in worker processes of this machine; while one works, the next one's process imports what it will need.

    Args:
        expected: The jobs that are likely to come, in order. Any other runs all the same, in a process of its own: a wrong
            guess costs processor time.
    """

    def __init__(self, expected: Sequence[Kind]) -> None:
        self._expected = list(expected)
        self._spare: SpareProcess | None = None
        self._prepare_next()

    def __call__(
        self, job: RolloutJob | ScoreJob, log: Path, on_event: Callable[[dict[str, Any]], None], /
    ) -> dict[str, Any]:
        """See `Execute`."""
        kind = kind_of(job)
        if self._spare is not None and self._spare.kind != kind:
            self._spare.stop()
            self._spare = None
            while self._expected and self._expected.pop(0) != kind:
                continue
        spare, self._spare = self._spare, None

        def follow(event: dict[str, Any]) -> None:
            # Not before the engine has loaded: until then it needs the processors itself.
            if event["event"] == "leg" and self._spare is None:
                self._prepare_next()
            on_event(event)

        try:
            return run_worker(job, log, follow, spare=spare)
        finally:
            # It may never have got its job: the disk is full, say.
            if spare is not None:
                spare.stop()

    def close(self) -> None:
        """Ends the process that waits."""
        self._expected.clear()
        if self._spare is not None:
            self._spare.stop()
            self._spare = None

    def _prepare_next(self) -> None:
        if self._expected and warm_of(kind := self._expected.pop(0)) is not None:
            # Without memory or descriptors for one more process there is none.
            with contextlib.suppress(OSError):
                self._spare = SpareProcess(kind)


@contextmanager
def open_executor(
    config: ProbeConfig, stages: Sequence[Literal["record", "score"]] = ()
) -> Iterator[Execute]:
    """What a configuration asks for; whatever was started for it ends with the context.

    Args:
        config: `ray.workers` decides.
        stages: What is going to run with nothing of it done; processes for it are made ready from now on.
    """
    if not config.ray.workers:
        here = SpareExecutor(expected_jobs(config, stages))
        try:
            yield here
        finally:
            here.close()
        return
    from mismatch_probe.distributed.ray_executor import RayExecutor

    executor = RayExecutor(config.ray)
    try:
        yield executor
    finally:
        executor.close()


@contextmanager
def open_spread(config: ProbeConfig) -> Iterator[Spread]:
    """Who measures part by part: this process, or Ray tasks where `ray.workers` is set."""
    if not config.ray.workers:
        yield call_here
        return
    from mismatch_probe.distributed.ray_executor import RayExecutor

    executor = RayExecutor(config.ray)
    try:
        yield executor.spread
    finally:
        executor.close()
