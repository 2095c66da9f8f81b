"""Where the job of a stage runs: in a worker process of this machine, or spread over Ray actors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from mismatch_probe.config.model import ProbeConfig
from mismatch_probe.stages.job import RolloutJob, ScoreJob
from mismatch_probe.stages.part_drift import Spread, call_here
from mismatch_probe.stages.process import run_worker


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


@contextmanager
def open_executor(config: ProbeConfig) -> Iterator[Execute]:
    """What a configuration asks for; whatever was started for it ends with the context.

    Args:
        config: `ray.workers` decides.
    """
    if not config.ray.workers:
        yield run_worker
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
