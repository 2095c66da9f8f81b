"""vLLM behind its own server: one that the probe starts for itself, or one that runs already."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field

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
from mismatch_probe.engines.server.answers import read_prompt_logprobs, read_sample
from mismatch_probe.engines.server.client import ServerClient, ServerLimits, check_url
from mismatch_probe.engines.server.openai_engine import (
    COMPLETIONS,
    RAW_PREFILL,
    OpenAIServerEngine,
    ServerOptions,
    connect,
    no_httpx,
)
from mismatch_probe.engines.server.vllm_process import SERVED_NAME, VllmServerProcess, has_accelerator
from mismatch_probe.engines.vllm_extension import FORCE_KEY, SEQUENCE_KEY
from mismatch_probe.engines.vllm_routes import complete_routes
from mismatch_probe.errors import CaptureError, ConfigError

_RPC = "/collective_rpc"
_NAMES = ("sampling", "prefill_scoring", "forced_decode", "routing", "weight_reload")
_FOREIGN = (
    "the server runs without the probe's worker extension; leave out rollout.options.url to have one started"
)
_RELOAD = "not asked for over HTTP; audit the engine vllm for it"
_GRAPHS = "captured graphs skip the hook on the routers; set rollout.options.enforce_eager=true"


class OwnServerOptions(ServerOptions):
    """`rollout.options.*` of a server that the probe starts; every other option is a flag of vLLM's server.

    Attributes:
        url: Filled in by the probe.
        start_timeout_s: Longest wait for the server to come up.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    url: str = ""
    start_timeout_s: float = Field(900.0, gt=0)


class VllmServerEngine(OpenAIServerEngine):
    """vLLM's completions endpoint, with the parameters and the scores that only vLLM has."""

    def score_prefill(
        self, sequences: Sequence[FixedSequence], sampling: SamplingConfig, progress: ProgressCallback
    ) -> list[npt.NDArray[np.float32]]:
        """See `RolloutEngine.score_prefill`; only at temperature 1 over the whole vocabulary."""
        if not modes.is_plain(sampling):
            raise CaptureError(RAW_PREFILL, hint="leave out the leg rollout/prefill")
        return self._prompt_scores(sequences, progress)

    def _prompt_scores(
        self, sequences: Sequence[FixedSequence], progress: ProgressCallback
    ) -> list[npt.NDArray[np.float32]]:
        bodies = [
            {
                **self._body([*s.prompt_token_ids, *s.response_token_ids]),
                "max_tokens": 1,
                "temperature": 0.0,
                "prompt_logprobs": 0,
            }
            for s in sequences
        ]
        answers = self._client.post_all(COMPLETIONS, bodies, lambda _: progress(1, 0))
        return [read_prompt_logprobs(answer, s) for answer, s in zip(answers, sequences, strict=True)]

    def _body(self, prompt: Sequence[int]) -> dict[str, Any]:
        # A server takes its defaults from the checkpoint's generation_config.json unless every parameter is named.
        return {**super()._body(prompt), "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}

    def _sample_body(
        self, prompt: Sequence[int], sampling: SamplingConfig, seed: int, sequence_id: int
    ) -> dict[str, Any]:
        return {
            **super()._sample_body(prompt, sampling, seed, sequence_id),
            "top_k": sampling.top_k,
            "vllm_xargs": {SEQUENCE_KEY: sequence_id},
        }


class OwnVllmServerEngine(VllmServerEngine):
    """A vLLM server of our own, with the probe's extension in its worker: routes, forced ids and prefill temperature.

    Args:
        spec: What to serve.
    """

    def __init__(self, spec: EngineSpec) -> None:
        options = read_options(
            OwnServerOptions, spec.options, "rollout.options", more=", and flags of vLLM's server"
        )
        flags = {
            "dtype": spec.dtype,
            "max_model_len": spec.max_model_len + 1,
            "enforce_eager": not has_accelerator(),
            "enable_prefix_caching": False,
            "max_logprobs": 20,
            "seed": 0,
            **(options.model_extra or {}),
        }
        if spec.routing and flags["enable_prefix_caching"]:
            raise ConfigError(
                "prefix caching hides the routed experts of cached tokens",
                hint="set rollout.options.enable_prefix_caching=false, or audit without routing (--set routing=false)",
            )
        self._flags = flags
        self._server = VllmServerProcess(spec.model_path, flags, trust_remote_code=spec.trust_remote_code)
        try:
            self._server.wait_until_ready(options.start_timeout_s)
            limits = ServerLimits(options.timeout_s, options.retries, concurrency=options.concurrency)
            client = ServerClient(
                self._server.url, key=self._server.key, limits=limits, lost=self._server.ended
            )
            named = options.model_copy(
                update={
                    "url": self._server.url,
                    "served_model": SERVED_NAME,
                    "logprobs_mode": modes.PROCESSED,
                }
            )
            super().__init__(spec, named, client, "vllm-server")
            found = self._rpc("probe_install", spec.routing)
            self._can_force, self._runner = bool(found["sampler"]), str(found["runner"])
            if spec.routing and found["num_moe_layers"] != spec.num_moe_layers:
                raise CaptureError(
                    f"{found['num_moe_layers']} of the model's {spec.num_moe_layers} MoE layers have a router that fits",
                    hint="audit without routing (--set routing=false)",
                )
        except BaseException:
            self._server.stop()
            raise

    def facts(self) -> EngineFacts:
        """What was started."""
        facts = super().facts()
        ordered = self._rpc("probe_served_ordered")["ordered"] if self._spec.routing else None
        return EngineFacts(
            engine=facts.engine,
            version=str(self._client.get("/version")["version"]),
            dtype=str(self._flags["dtype"]),
            device="accelerator" if has_accelerator() else "cpu",
            logprobs_mode=modes.PROCESSED,
            options={**facts.options, **self._flags},
            details={
                **facts.details,
                "fingerprint": facts.version,
                "runner": self._runner,
                "routing_source": "router capture hook" if self._spec.routing else None,
                "routing_ordered": ordered,
            },
        )

    def sample(
        self, requests: Sequence[PromptRequest], sampling: SamplingConfig, progress: ProgressCallback
    ) -> list[SampledSequence]:
        """See `RolloutEngine.sample`."""
        sequences = super().sample(requests, sampling, progress)
        if not self._spec.routing:
            return sequences
        return [
            SampledSequence(
                sequence_id=sequence.sequence_id,
                response_token_ids=sequence.response_token_ids,
                logprobs=sequence.logprobs,
                finish_reason=sequence.finish_reason,
                routing=self._routes(request, sequence),
            )
            for request, sequence in zip(requests, sequences, strict=True)
        ]

    def score_prefill(
        self, sequences: Sequence[FixedSequence], sampling: SamplingConfig, progress: ProgressCallback
    ) -> list[npt.NDArray[np.float32]]:
        """See `RolloutEngine.score_prefill`."""
        self._require_sampler("rollout/prefill")
        self._rpc("probe_prefill_distribution", sampling.temperature, sampling.top_p, max(sampling.top_k, 0))
        try:
            return self._prompt_scores(sequences, progress)
        finally:
            self._rpc("probe_prefill_distribution", 1.0, 1.0, 0)

    def force_decode(
        self, sequences: Sequence[FixedSequence], sampling: SamplingConfig, progress: ProgressCallback
    ) -> list[npt.NDArray[np.float32]]:
        """See `RolloutEngine.force_decode`."""
        self._require_sampler("rollout/forced")
        bodies = [
            {
                **self._sample_body(s.prompt_token_ids, sampling, 0, s.sequence_id),
                "max_tokens": len(s.response_token_ids),
                "ignore_eos": True,
                "vllm_xargs": {FORCE_KEY: [int(token) for token in s.response_token_ids]},
            }
            for s in sequences
        ]
        answers = self._client.post_all(COMPLETIONS, bodies, lambda _: progress(1, 0))
        scored = []
        for answer, sequence in zip(answers, sequences, strict=True):
            got = read_sample(answer, PromptRequest(sequence.sequence_id, sequence.prompt_token_ids, 0))
            if got.response_token_ids != list(sequence.response_token_ids):
                raise CaptureError(
                    f"sequence {sequence.sequence_id}: the server did not return the ids that were forced"
                )
            scored.append(got.logprobs)
        return scored

    def close(self) -> None:
        """Ends the server."""
        super().close()
        self._server.stop()

    def _routes(self, request: PromptRequest, sequence: SampledSequence) -> npt.NDArray[np.int16]:
        taken = self._rpc("probe_served_routes", request.sequence_id)
        routes = None
        if taken:
            routes = np.frombuffer(base64.b64decode(taken["ids"]), dtype=np.int16).reshape(taken["shape"])
        fed = len(request.prompt_token_ids) + len(sequence.response_token_ids) - 1
        shape = (fed, self._spec.num_moe_layers, self._spec.top_k)
        return complete_routes(routes, shape, sequence_id=request.sequence_id)

    def _rpc(self, method: str, *arguments: Any) -> Any:
        answer = self._client.post(_RPC, {"method": method, "args": list(arguments)}, retry=False)
        results = (answer or {}).get("results") or [None]
        return results[0]

    def _require_sampler(self, leg: str) -> None:
        if not self._can_force:
            raise CaptureError(
                f"vLLM's {self._runner} offers no sampler to hook", hint=f"leave out the leg {leg}"
            )


def vllm_server_capabilities(options: Mapping[str, Any] | None = None) -> EngineCapabilities:
    """What vLLM's server can give: more where the probe starts it.

    Args:
        options: `rollout.options.*`; with `url` the server is somebody else's.

    Raises:
        ConfigError: The address is none.
    """
    import importlib.util

    options = options or {}
    missing = no_httpx(_NAMES)
    if missing is not None:
        return missing
    if options.get("url"):
        check_url(str(options["url"]))
        reasons = dict.fromkeys(("forced_decode", "routing", "hidden_states", "weight_reload"), _FOREIGN)
        return EngineCapabilities(
            sampling=True,
            prefill_scoring=True,
            forced_decode=False,
            routing=False,
            reason={**reasons, "prefill_parameters": RAW_PREFILL},
            prefill_parameters=frozenset(),
        )
    if importlib.util.find_spec("vllm") is None:
        absent = "vLLM is not installed; rollout.options.url names a server that runs elsewhere"
        return EngineCapabilities(False, False, False, False, dict.fromkeys(_NAMES, absent))
    hooked = bool(options.get("enforce_eager", not has_accelerator()))
    reason = {
        "weight_reload": _RELOAD,
        "hidden_states": "not asked for over HTTP; the engine vllm gives them",
        "keep_sets": "not asked for over HTTP; the engine vllm gives them",
    }
    return EngineCapabilities(
        sampling=True,
        prefill_scoring=True,
        forced_decode=True,
        routing=hooked,
        reason=reason if hooked else {**reason, "routing": _GRAPHS},
    )


@register_engine(
    "vllm-server",
    summary="vLLM's server over HTTP, started here or at rollout.options.url",
    capabilities=vllm_server_capabilities,
    capabilities_with=vllm_server_capabilities,
)
def make_vllm_server_engine(spec: EngineSpec) -> VllmServerEngine:
    """Starts a server, or connects to the one at `rollout.options.url`."""
    if not spec.options.get("url"):
        return OwnVllmServerEngine(spec)
    options = read_options(ServerOptions, spec.options, "rollout.options")
    return VllmServerEngine(spec, options, connect(options), "vllm-server")
