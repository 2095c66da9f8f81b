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
    """Runs jobs in worker processes of this machine, which import what they will need before it is their turn.

    The first is started at once, beside the planning; the others when the first has its job: until its engine has loaded,
    most processors have nothing to do. Imports beside an engine that computes would cost it as much as they save.

    Args:
        expected: The jobs that are likely to come, in order. Any other runs all the same, in a process of its own: a wrong
            guess costs processor time.
    """

    def __init__(self, expected: Sequence[Kind]) -> None:
        self._expected = list(expected)
        self._spares: list[SpareProcess] = []
        self._prepare(1)

    def __call__(
        self, job: RolloutJob | ScoreJob, log: Path, on_event: Callable[[dict[str, Any]], None], /
    ) -> dict[str, Any]:
        """See `Execute`."""
        kind = kind_of(job)
        while self._spares and self._spares[0].kind != kind:
            self._spares.pop(0).stop()
        spare = self._spares.pop(0) if self._spares else None
        if spare is None and kind in self._expected:
            # It has no process of its own yet, and those before it did not come.
            del self._expected[: self._expected.index(kind) + 1]
        self._prepare(len(self._expected))
        try:
            return run_worker(job, log, on_event, spare=spare)
        finally:
            # It may never have got its job: the disk is full, say.
            if spare is not None:
                spare.stop()

    def close(self) -> None:
        """Ends the processes that wait."""
        self._expected.clear()
        while self._spares:
            self._spares.pop().stop()

    def _prepare(self, number: int) -> None:
        for kind in self._expected[:number]:
            if warm_of(kind) is not None:
                # Without memory or descriptors for one more process there is none.
                with contextlib.suppress(OSError):
                    self._spares.append(SpareProcess(kind))
        del self._expected[:number]


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
