"""Runs a stage's job on Ray actors: the driver hands out parts, the actors write them into the run directory."""

from __future__ import annotations

import importlib
import math
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mismatch_probe.config.model import RayConfig
from mismatch_probe.distributed.crew import Crew
from mismatch_probe.distributed.ray_actor import EngineActor
from mismatch_probe.errors import ConfigError, EngineUnavailableError, MismatchProbeError, WorkerLostError
from mismatch_probe.secrets import redact
from mismatch_probe.stages.job import RolloutJob, ScoreJob, Task
from mismatch_probe.trace.parts import remove_partial_files

_FORWARDED = ("OMP_", "MKL_", "KMP_", "VLLM_", "HF_", "TRANSFORMERS_", "TORCH_", "NCCL_", "GLOO_")
_PARALLEL = (
    "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "tp_size", "pp_size", "dp_size", "world_size",
)  # fmt: skip
_OBJECT_STORE_BYTES = 128 * 2**20
_CLOSE_S = 120
_CONNECT_S = 10


class RayExecutor:
    """Actors of one Ray, started when the first job comes and ended with `close`.

    Args:
        config: How many actors, and of what size.
    """

    def __init__(self, config: RayConfig) -> None:
        self._config = config
        self._ray: Any = None
        self._began = False

    def __call__(
        self, job: RolloutJob | ScoreJob, log: Path, on_event: Callable[[dict[str, Any]], None]
    ) -> dict[str, Any]:
        """Does a job; see `mismatch_probe.stages.executor.Execute`.

        Raises:
            ConfigError: The cluster has no room for the actors.
            EngineUnavailableError: Ray is missing or cannot be reached.
            MismatchProbeError: What an engine raised, or that more workers were lost than may be replaced.
        """
        size = self._config.workers
        if isinstance(job, ScoreJob):
            size = self._config.score_workers or size
        parts = {part for task in job.tasks for part in task.parts}
        if len(parts) < size:
            text = f"{len(parts)} parts keep {len(parts)} of {size} workers busy: a smaller part_sequences makes more"
            on_event({"event": "message", "text": text})
            size = len(parts)
        ray = self._connect()
        resources = self._resources(job)
        _check_room(ray.cluster_resources(), size, resources)
        empty = job.model_copy(update={"tasks": ()}).model_dump_json()
        environment = _forwarded()
        # Ray's own restart would forget which part was in hand; the crew hires another actor instead.
        remote = ray.remote(max_restarts=0, max_task_retries=0, **resources)(EngineActor)

        def hire(place: int) -> _RayWorker:
            own_log = log.with_name(f"{log.stem}-{place + 1}{log.suffix}")
            return _RayWorker(ray, remote.remote(empty, str(own_log.resolve()), environment))

        try:
            return Crew(job.tasks, size, hire, on_event, self._config.max_restarts).run()
        finally:
            # A part that a lost worker had begun; all others are whole.
            remove_partial_files(job.run)

    def spread(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Calls a function once for each tuple of arguments, each in a Ray task; a task whose process dies is run again.

        Args:
            function: An importable function.
            arguments: Its arguments.

        Returns:
            Results in the order of the arguments.

        Raises:
            EngineUnavailableError: Ray is missing or cannot be reached.
            MismatchProbeError: What the function raised.
        """
        ray = self._connect()
        remote = ray.remote(
            num_cpus=self._config.cpus_per_worker,
            max_retries=self._config.max_restarts,
            retry_exceptions=False,
        )(function)
        references = [remote.remote(*each) for each in arguments]
        return list(_raising(ray, lambda: ray.get(references)))

    def close(self) -> None:
        """Ends Ray, if it was started or connected to here."""
        if self._began:
            self._ray.shutdown()
            self._began = False

    def _connect(self) -> Any:
        most = max(self._config.workers, self._config.score_workers or 0)
        local = self._config.address is None
        if self._config.address is not None:
            _check_address(self._config.address)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if local:
            # Read when Ray is imported: a Ray of one machine then listens on 127.0.0.1 and nowhere else.
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
            # Under `uv run` Ray would build the environment again for each actor; this one is there.
            os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        try:
            self._ray = ray = importlib.import_module("ray")
        except ImportError as error:
            raise EngineUnavailableError(
                f"ray cannot be imported: {error}", hint="pip install 'mismatch-probe[ray]'"
            ) from error
        if ray.is_initialized():
            return ray
        try:
            if local:
                ray.init(
                    address="local",
                    num_cpus=max(os.cpu_count() or 1, most * self._config.cpus_per_worker),
                    object_store_memory=_OBJECT_STORE_BYTES,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="ERROR",
                    _node_ip_address="127.0.0.1",
                )
            else:
                ray.init(address=self._config.address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            where = "on this machine" if local else f"at {self._config.address}"
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise EngineUnavailableError(
                f"Ray {where} cannot be used: {lines[0]}",
                hint="check ray.address, and `ray status` on its head node",
            ) from error
        self._began = True
        return ray

    def _resources(self, job: RolloutJob | ScoreJob) -> dict[str, float]:
        gpus = self._config.gpus_per_worker
        if gpus is None:
            gpus = float(gpus_needed(job)) if self._ray.cluster_resources().get("GPU", 0) else 0.0
        return {"num_cpus": self._config.cpus_per_worker, "num_gpus": gpus}


class _RayWorker:
    """One actor behind the `CrewWorker` protocol."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray = ray
        self._actor = actor

    def where(self) -> str:
        node, process = _raising(self._ray, lambda: self._ray.get(self._actor.place.remote()))
        return f"node {node}, process {process}"

    def work(self, task: Task) -> Iterator[dict[str, Any]]:
        stream = self._actor.work.options(num_returns="streaming").remote(task.model_dump_json())
        while (event := _raising(self._ray, lambda: self._next(stream))) is not None:
            yield event

    def _next(self, stream: Any) -> Any:
        reference = next(stream, None)
        return None if reference is None else self._ray.get(reference)

    def close(self) -> dict[str, Any]:
        facts = _raising(self._ray, lambda: self._ray.get(self._actor.close.remote(), timeout=_CLOSE_S))
        return dict(facts)

    def stop(self) -> None:
        self._ray.kill(self._actor)


def _raising(ray: Any, call: Callable[[], Any]) -> Any:
    """Calls and turns Ray's errors into ours."""
    exceptions = ray.exceptions
    try:
        return call()
    except exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, MismatchProbeError):
            raise cause from None
        raise EngineUnavailableError(
            f"a Ray worker failed: {type(cause).__name__}: {cause}", hint="see its log in logs/"
        ) from error
    except exceptions.GetTimeoutError as error:
        raise WorkerLostError("a Ray actor did not end its engine in time") from error
    except (
        exceptions.RayActorError,
        exceptions.WorkerCrashedError,
        exceptions.RaySystemError,
        exceptions.ObjectLostError,
    ) as error:
        raise WorkerLostError("a Ray actor was lost") from error


def gpus_needed(job: RolloutJob | ScoreJob) -> int:
    """GPUs of one engine: the product of what its options split it over (vLLM, SGLang, sharded scorers), else one."""
    return math.prod(int(job.spec["options"].get(name, 1)) for name in _PARALLEL)


def _check_room(held: dict[str, float], size: int, resources: dict[str, float]) -> None:
    for name, key, text in (("CPU", "num_cpus", "cpus_per_worker"), ("GPU", "num_gpus", "gpus_per_worker")):
        needed = size * resources[key]
        if needed > held.get(name, 0):
            raise ConfigError(
                f"{size} workers of {resources[key]:g} {name}s each do not fit into Ray's {held.get(name, 0):g} {name}s",
                hint=f"set ray.workers, ray.score_workers or ray.{text} lower",
            )


def _check_address(address: str) -> None:
    """Refuses what Ray would try for minutes.

    Raises:
        ConfigError: An address that cannot be used, whatever answers there.
        EngineUnavailableError: Nothing answers.
    """
    if "://" in address:
        raise ConfigError(
            f"ray.address={address} is of a client outside the cluster",
            hint="run the command on a node of the cluster, with ray.address=auto or HOST:PORT",
        )
    host, separator, port = address.rpartition(":")
    if not separator:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise EngineUnavailableError(
            f"nothing answers at ray.address={address}: {error}",
            hint="give HOST:PORT of the cluster's head node",
        ) from error


def _forwarded() -> dict[str, str]:
    """Settings of this process that the engines' processes share wherever they run; no secret among them."""
    chosen = {name: value for name, value in os.environ.items() if name.startswith(_FORWARDED)}
    shown = redact(chosen)
    return {name: value for name, value in chosen.items() if shown[name] == value}
