"""Any OpenAI-compatible completions server that takes and returns token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from mismatch_probe.config.model import SamplingConfig
from mismatch_probe.config.options import read_options
from mismatch_probe.engines.protocol import (
    EngineCapabilities,
    EngineFacts,
    EngineSpec,
    FixedSequence,
    ProgressCallback,
    PromptRequest,
    SampledSequence,
)
from mismatch_probe.engines.registry import register_engine
from mismatch_probe.engines.server import modes
from mismatch_probe.engines.server.answers import first_alternatives, first_logprob, read_echo, read_sample
from mismatch_probe.engines.server.client import (
    ServerClient,
    ServerLimits,
    check_url,
    key_from_environment,
)
from mismatch_probe.errors import CaptureError, ConfigError

KEY_VARIABLE = "MISMATCH_PROBE_API_KEY"
COMPLETIONS = "/v1/completions"
RAW_PREFILL = "a server scores prompts under the model's own distribution, whatever the temperature"
_PROBED_PROMPTS = 8


class ServerOptions(BaseModel):
    """`rollout.options.*` of an engine behind HTTP.

    Attributes:
        url: Base address of the server.
        served_model: Name under which the server knows the model; None takes the only one it lists.
        api_key_env: Environment variable that holds the API key. The key itself is no option.
        logprobs_mode: Which distribution the server's log-probabilities describe, if that is known; "measure" finds out.
        timeout_s: Longest wait for one answer.
        retries: Further attempts after a failure that may pass.
        concurrency: Requests on the way at once.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    served_model: str | None = None
    api_key_env: str = KEY_VARIABLE
    logprobs_mode: Literal["measure", "processed_logprobs", "raw_logprobs"] = "measure"
    timeout_s: float = Field(600.0, gt=0)
    retries: int = Field(4, ge=0)
    concurrency: int = Field(32, ge=1)


class OpenAIServerEngine:
    """A completions server behind the `RolloutEngine` protocol.

    Args:
        spec: What to audit; the checkpoint is taken to be what the server serves, which no request can prove.
        options: How to reach it.
        client: The connection.
        name: Registry name.
    """

    def __init__(self, spec: EngineSpec, options: ServerOptions, client: ServerClient, name: str) -> None:
        self._spec = spec
        self._options = options
        self._client = client
        self._name = name
        self._mode: str | None = None
        self._fingerprint: str | None = None
        self._model, self._listed = self._find_model(options.served_model)

    def facts(self) -> EngineFacts:
        """What is known of the server."""
        return EngineFacts(
            engine=self._name,
            version=self._fingerprint or "not told",
            dtype="not told",
            device="server",
            logprobs_mode=self._mode or "not measured",
            options=self._options.model_dump(),
            details={
                "served_model": self._model,
                "served_from": self._listed.get("root"),
                "owned_by": self._listed.get("owned_by"),
                "routing_source": None,
            },
        )

    def sample(
        self, requests: Sequence[PromptRequest], sampling: SamplingConfig, progress: ProgressCallback
    ) -> list[SampledSequence]:
        """See `RolloutEngine.sample`."""
        self._settle_mode([request.prompt_token_ids for request in requests], sampling)
        bodies = [
            self._sample_body(request.prompt_token_ids, sampling, request.seed, request.sequence_id)
            for request in requests
        ]
        answers = self._client.post_all(COMPLETIONS, bodies, lambda _: progress(1, 0))
        self._fingerprint = answers[0].get("system_fingerprint") if answers else None
        return [read_sample(answer, request) for answer, request in zip(answers, requests, strict=True)]

    def score_prefill(
        self, sequences: Sequence[FixedSequence], sampling: SamplingConfig, progress: ProgressCallback
    ) -> list[npt.NDArray[np.float32]]:
        """See `RolloutEngine.score_prefill`; only at temperature 1 over the whole vocabulary."""
        if not modes.is_plain(sampling):
            raise CaptureError(RAW_PREFILL, hint="leave out the leg rollout/prefill")
        bodies = [
            {
                **self._body([*s.prompt_token_ids, *s.response_token_ids]),
                "echo": True,
                "max_tokens": 0,
                "temperature": 1.0,
            }
            for s in sequences
        ]
        answers = self._client.post_all(COMPLETIONS, bodies, lambda _: progress(1, 0))
        return [read_echo(answer, sequence) for answer, sequence in zip(answers, sequences, strict=True)]

    def force_decode(
        self, sequences: Sequence[FixedSequence], sampling: SamplingConfig, progress: ProgressCallback
    ) -> list[npt.NDArray[np.float32]]:
        """Not offered by a completions server.

        Raises:
            CaptureError: Always.
        """
        raise CaptureError(
            f"{self._name} cannot force ids through its decode path", hint="leave out the leg rollout/forced"
        )

    def close(self) -> None:
        """Closes the connections; the server stays up."""
        self._client.close()

    def _body(self, prompt: Sequence[int]) -> dict[str, Any]:
        """What every request has; penalties are named, since a server may bring defaults along with a checkpoint."""
        return {
            "model": self._model,
            "prompt": list(prompt),
            "logprobs": 1,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }

    def _sample_body(
        self, prompt: Sequence[int], sampling: SamplingConfig, seed: int, sequence_id: int
    ) -> dict[str, Any]:
        return {
            **self._body(prompt),
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed,
        }

    def _settle_mode(self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig) -> None:
        """Knows which distribution the log-probabilities describe, or raises."""
        if self._options.logprobs_mode != "measure":
            self._mode = self._options.logprobs_mode
            if not modes.is_plain(sampling):
                modes.require_processed(self._mode, "temperature")
            return
        if modes.is_plain(sampling):
            self._mode = modes.EITHER
            return
        if self._mode == modes.PROCESSED:
            return
        if sampling.temperature != 1:
            modes.require_processed(self._measure_temperature(prompts, sampling), "temperature")
        truncation = {"top_p": 1e-6} if sampling.top_p < 1 else {}
        truncation |= {"top_k": 1} if sampling.top_k > 0 else {}
        if truncation:
            modes.require_processed(self._measure_truncation(prompts, truncation), "top_p or top_k")
        self._mode = modes.PROCESSED

    def _measure_temperature(self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig) -> str | None:
        for prompt in prompts[:_PROBED_PROMPTS]:
            at_one, at_temperature = (
                first_alternatives(self._first_token(prompt, temperature=temperature, logprobs=5))
                for temperature in (1.0, sampling.temperature)
            )
            found = modes.temperature_mode(at_one, at_temperature, sampling.temperature)
            if found is not None:
                return found
        return None

    def _measure_truncation(
        self, prompts: Sequence[Sequence[int]], truncation: Mapping[str, Any]
    ) -> str | None:
        for prompt in prompts[:_PROBED_PROMPTS]:
            alone = first_logprob(self._first_token(prompt, temperature=1.0, **truncation))
            whole = first_alternatives(self._first_token(prompt, temperature=1.0))
            found = modes.truncation_mode(alone, max(whole.values(), default=None))
            if found is not None:
                return found
        return None

    def _first_token(self, prompt: Sequence[int], **changes: Any) -> Any:
        body = {**self._body(prompt), "max_tokens": 1, "seed": 0, "top_p": 1.0, **changes}
        return self._client.post(COMPLETIONS, body)

    def _find_model(self, name: str | None) -> tuple[str, dict[str, Any]]:
        listed = {
            str(item["id"]): dict(item) for item in (self._client.get("/v1/models") or {}).get("data", [])
        }
        if name is None and len(listed) == 1:
            name = next(iter(listed))
        if name is None or name not in listed:
            raise ConfigError(
                f"the server at {self._client.url} serves {', '.join(sorted(listed)) or 'no model'}",
                hint="name one of them: rollout.options.served_model",
            )
        return name, listed[name]


def connect(options: ServerOptions) -> ServerClient:
    """A client with the limits and the key that options name."""
    limits = ServerLimits(
        timeout_s=options.timeout_s, retries=options.retries, concurrency=options.concurrency
    )
    return ServerClient(options.url, key=key_from_environment(options.api_key_env), limits=limits)


def no_httpx(names: Sequence[str]) -> EngineCapabilities | None:
    """Capabilities where httpx is not installed; None where it is."""
    import importlib.util

    if importlib.util.find_spec("httpx") is not None:
        return None
    reason = "httpx is not installed: pip install 'mismatch-probe[server]'"
    return EngineCapabilities(False, False, False, False, dict.fromkeys(names, reason))


def openai_server_capabilities(options: Mapping[str, Any] | None = None) -> EngineCapabilities:
    """What the protocol of a completions server can give.

    Args:
        options: `rollout.options.*`; None where nobody has set any yet.

    Raises:
        ConfigError: The address is none.
    """
    missing = no_httpx(("sampling", "prefill_scoring"))
    if missing is not None:
        return missing
    if options is not None and not options.get("url"):
        raise ConfigError("openai-server needs an address", hint="set rollout.options.url=http://HOST:PORT")
    if options is not None:
        check_url(str(options["url"]))
    return EngineCapabilities(
        sampling=True,
        prefill_scoring=True,
        forced_decode=False,
        routing=False,
        reason={
            "forced_decode": "a completions server chooses its tokens itself",
            "routing": "a completions server returns no experts",
            "hidden_states": "a completions server returns no hidden states",
            "weight_reload": "the server belongs to somebody else",
            "prefill_parameters": RAW_PREFILL,
            "sampling_parameters": "top_k is not part of the OpenAI protocol",
        },
        sampling_parameters=frozenset({"temperature", "top_p"}),
        prefill_parameters=frozenset(),
    )


@register_engine(
    "openai-server",
    summary="an OpenAI-compatible server that takes token ids, at rollout.options.url",
    capabilities=openai_server_capabilities,
    capabilities_with=openai_server_capabilities,
)
def make_openai_server_engine(spec: EngineSpec) -> OpenAIServerEngine:
    """Connects to the server."""
    options = read_options(ServerOptions, spec.options, "rollout.options")
    return OpenAIServerEngine(spec, options, connect(options), "openai-server")
