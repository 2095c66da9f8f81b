"""SGLang's engine object, in a worker process of the environment that has SGLang."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mismatch_probe.engines.protocol import EngineCapabilities, EngineFacts, EngineSpec
from mismatch_probe.engines.registry import WorkerEnvironment, register_engine
from mismatch_probe.engines.sglang.interpreter import MISSING, sglang_python
from mismatch_probe.engines.sglang.reader import (
    SglangReader,
    engine_arguments,
    no_sglang,
    sglang_capabilities,
)
from mismatch_probe.errors import EngineUnavailableError


class SglangEngine(SglangReader):
    """`sglang.Engine` behind the `RolloutEngine` protocol."""

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(spec)
        import torch

        try:
            import sglang
        except ModuleNotFoundError as error:
            raise EngineUnavailableError(
                "this process has no SGLang: the engine sglang runs in an environment of its own",
                hint="as a reader beside another engine take sglang-server",
            ) from error
        options = {key: value for key, value in spec.options.items() if key != "python"}
        self._arguments = engine_arguments(spec, options, cuda=torch.cuda.is_available())
        self._version = str(sglang.__version__)
        self._engine = sglang.Engine(**self._arguments)

    def facts(self) -> EngineFacts:
        """What was started."""
        kept = {key: value for key, value in self._arguments.items() if key != "model_path"}
        return EngineFacts(
            engine="sglang",
            version=self._version,
            dtype=self._spec.dtype,
            device=str(self._engine.server_args.device),
            logprobs_mode="processed_logprobs",
            options=kept,
            details={
                "attention": str(self._engine.server_args.attention_backend),
                "routing_source": "return_routed_experts" if self._spec.routing else None,
                "routing_ordered": False if self._spec.routing else None,
            },
        )

    def close(self) -> None:
        """Ends SGLang's processes."""
        self._engine.shutdown()

    def _ask(
        self, requests: Sequence[Mapping[str, Any]], on_answer: Callable[[], None]
    ) -> list[Mapping[str, Any]]:
        async def one(request: Mapping[str, Any]) -> Mapping[str, Any]:
            answer: Mapping[str, Any] = await self._engine.async_generate(**request)
            on_answer()
            return answer

        async def every() -> list[Mapping[str, Any]]:
            return list(await asyncio.gather(*(one(request) for request in requests)))

        answers: list[Mapping[str, Any]] = self._engine.loop.run_until_complete(every())
        return answers


def in_process_capabilities(options: Mapping[str, Any] | None = None) -> EngineCapabilities:
    """What SGLang can give in process; nothing where no interpreter has it."""
    return no_sglang(MISSING) if sglang_python(options or {}) is None else sglang_capabilities()


def _environment(options: Mapping[str, Any]) -> WorkerEnvironment:
    python = sglang_python(options)
    if python is None:
        raise EngineUnavailableError("SGLang is not installed", hint=MISSING)
    return WorkerEnvironment(python, "mismatch_probe.engines.sglang.worker")


@register_engine(
    "sglang",
    summary="SGLang in a worker of the environment that has it",
    capabilities=in_process_capabilities,
    capabilities_with=in_process_capabilities,
    environment=_environment,
)
def make_sglang_engine(spec: EngineSpec) -> SglangEngine:
    """Starts the engine; only in its own environment."""
    return SglangEngine(spec)
