"""SGLang behind its own server: one that the probe starts in SGLang's environment, or one that runs already."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mismatch_probe.config.options import read_options
from mismatch_probe.engines.foreign_python import foreign_environment
from mismatch_probe.engines.protocol import EngineCapabilities, EngineFacts, EngineSpec
from mismatch_probe.engines.registry import register_engine
from mismatch_probe.engines.server.client import (
    ServerClient,
    ServerLimits,
    check_url,
    key_from_environment,
)
from mismatch_probe.engines.server.openai_engine import KEY_VARIABLE, no_httpx
from mismatch_probe.engines.server.own_process import HOST, OwnServerProcess
from mismatch_probe.engines.server.vllm_process import has_accelerator
from mismatch_probe.engines.sglang.interpreter import MISSING, SERVER_KEY_VARIABLE, sglang_python
from mismatch_probe.engines.sglang.reader import (
    NAMES,
    SglangReader,
    engine_arguments,
    no_sglang,
    sglang_capabilities,
)
from mismatch_probe.errors import EngineUnavailableError

_GENERATE = "/generate"
_FOREIGN_ROUTING = (
    "a server that runs already returns experts only with --enable-return-routed-experts; say so with "
    "rollout.options.routed_experts=true"
)
_FOREIGN_TEMPERATURE = (
    "a server that runs with SGLANG_RETURN_ORIGINAL_LOGPROB ignores the temperature, and does not say so; "
    "rollout.options.logprobs_mode=processed_logprobs says that this one does not"
)


class SglangServerOptions(BaseModel):
    """`rollout.options.*` of the sglang-server engine; without `url`, every other option is a field of SGLang's ServerArgs.

    Attributes:
        url: Base address of a server that runs already; None has one started.
        python: Interpreter that has SGLang, for a server that is started.
        api_key_env: Environment variable that holds the API key of a server that runs already.
        logprobs_mode: Which distribution its log-probabilities describe, if that is known.
        routed_experts: Whether it returns routed experts.
        timeout_s: Longest wait for one answer.
        retries: Further attempts after a failure that may pass.
        concurrency: Requests on the way at once.
        start_timeout_s: Longest wait for a server that is started.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    url: str | None = None
    python: str | None = None
    api_key_env: str = KEY_VARIABLE
    logprobs_mode: Literal["unknown", "processed_logprobs"] = "unknown"
    routed_experts: bool = False
    timeout_s: float = Field(600.0, gt=0)
    retries: int = Field(4, ge=0)
    concurrency: int = Field(32, ge=1)
    start_timeout_s: float = Field(900.0, gt=0)


class _OwnProcess(OwnServerProcess):
    """SGLang's server, started from a file of arguments."""

    def __init__(self, python: Path, arguments: Mapping[str, Any]) -> None:
        super().__init__("SGLang")
        self._folder = tempfile.TemporaryDirectory(prefix="mismatch-probe-")
        folder = Path(self._folder.name)
        file = folder / "arguments.json"
        file.write_text(json.dumps({**arguments, "host": HOST, "port": self.port}), encoding="utf-8")
        environment = foreign_environment(folder, {**os.environ, SERVER_KEY_VARIABLE: self.key})
        self.start([str(python), "-m", "mismatch_probe.engines.sglang.serve", str(file)], environment)

    def stop(self) -> None:
        """Ends the server and removes its files."""
        super().stop()
        self._folder.cleanup()


class SglangServerEngine(SglangReader):
    """SGLang's `/generate` over HTTP."""

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(spec)
        self._options = read_options(SglangServerOptions, spec.options, "rollout.options")
        self._server: _OwnProcess | None = None
        limits = ServerLimits(
            self._options.timeout_s, self._options.retries, concurrency=self._options.concurrency
        )
        if self._options.url is not None:
            key = key_from_environment(self._options.api_key_env)
            self._client = ServerClient(self._options.url, key=key, limits=limits)
        else:
            python = sglang_python(spec.options)
            if python is None:
                raise EngineUnavailableError("SGLang is not installed", hint=MISSING)
            given = dict(self._options.model_extra or {})
            server = _OwnProcess(python, engine_arguments(spec, given, cuda=has_accelerator()))
            self._server = server
            try:
                server.wait_until_ready(self._options.start_timeout_s)
            except BaseException:
                server.stop()
                raise
            self._client = ServerClient(server.url, key=server.key, limits=limits, lost=server.ended)

    def facts(self) -> EngineFacts:
        """What answers."""
        told = self._client.get("/server_info")
        return EngineFacts(
            engine="sglang-server",
            version=str(told.get("version", "unknown")),
            dtype=str(told.get("dtype", "unknown")),
            device=str(told.get("device", "unknown")),
            logprobs_mode="processed_logprobs",
            options={
                key: value
                for key, value in self._options.model_dump().items()
                if key not in ("url", "python")
            },
            details={
                "attention": told.get("attention_backend"),
                "started_here": self._server is not None,
                "routing_source": "return_routed_experts" if self._spec.routing else None,
                "routing_ordered": False if self._spec.routing else None,
            },
        )

    def close(self) -> None:
        """Ends the connection, and the server that was started."""
        self._client.close()
        if self._server is not None:
            self._server.stop()

    def _ask(
        self, requests: Sequence[Mapping[str, Any]], on_answer: Callable[[], None]
    ) -> list[Mapping[str, Any]]:
        return self._client.post_all(_GENERATE, requests, lambda _: on_answer())


def sglang_server_capabilities(options: Mapping[str, Any] | None = None) -> EngineCapabilities:
    """What SGLang's server can give: more where the probe starts it.

    Args:
        options: `rollout.options.*`; with `url` the server is somebody else's.

    Raises:
        ConfigError: The address is none.
    """
    options = options or {}
    missing = no_httpx(NAMES)
    if missing is not None:
        return missing
    if options.get("url"):
        check_url(str(options["url"]))
        return sglang_capabilities(
            routing=None if options.get("routed_experts") else _FOREIGN_ROUTING,
            temperature=None
            if options.get("logprobs_mode") == "processed_logprobs"
            else _FOREIGN_TEMPERATURE,
        )
    return no_sglang(MISSING) if sglang_python(options) is None else sglang_capabilities()


@register_engine(
    "sglang-server",
    summary="SGLang's server over HTTP, started here or at rollout.options.url",
    capabilities=sglang_server_capabilities,
    capabilities_with=sglang_server_capabilities,
)
def make_sglang_server_engine(spec: EngineSpec) -> SglangServerEngine:
    """Starts a server, or connects to the one at `rollout.options.url`."""
    return SglangServerEngine(spec)
