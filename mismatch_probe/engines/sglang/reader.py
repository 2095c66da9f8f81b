"""What both forms of the SGLang engine ask for, and what SGLang can give."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mismatch_probe.assets.model_facts import read_model_facts
from mismatch_probe.config.model import SamplingConfig
from mismatch_probe.engines.protocol import (
    EngineCapabilities,
    EngineSpec,
    FixedSequence,
    ProgressCallback,
    PromptRequest,
    SampledSequence,
)
from mismatch_probe.engines.sglang.answers import read_prefill, read_sample
from mismatch_probe.errors import CaptureError

TEMPERATURE_ONLY = "SGLang's log-probabilities follow the temperature, not top_p and top_k"
RAW_PREFILL = "SGLang's prompt log-probabilities are those at temperature 1 over the whole vocabulary"
_REASONS = {
    "forced_decode": "SGLang can only force an id by moving its log-probability",
    "weight_reload": "not asked of SGLang",
    "hidden_states": "not asked of SGLang",
    "keep_sets": "nothing is truncated",
    "sampling_parameters": TEMPERATURE_ONLY,
    "prefill_parameters": RAW_PREFILL,
}
NAMES = ("sampling", "prefill_scoring", "forced_decode", "routing", "weight_reload", "hidden_states")


class SglangReader(ABC):
    """Samples and scores through SGLang's generate request; a subclass says how it gets there.

    Notes:
        Sampling is seeded once for the engine, not by request: a request seed needs SGLang's deterministic mode, which
        asks for a device. A resumed run draws other responses than an undisturbed one would have.
    """

    _spec: EngineSpec

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        facts = read_model_facts(spec.model_path)
        self._stop_ids, self._vocab_size = facts.eos_token_ids, facts.vocab_size

    @abstractmethod
    def _ask(
        self, requests: Sequence[Mapping[str, Any]], on_answer: Callable[[], None]
    ) -> list[Mapping[str, Any]]:
        """Answers in the order of requests; `on_answer` as each comes."""

    def sample(
        self, requests: Sequence[PromptRequest], sampling: SamplingConfig, progress: ProgressCallback
    ) -> list[SampledSequence]:
        """See `RolloutEngine.sample`."""
        parameters = {
            "temperature": sampling.temperature,
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "max_new_tokens": sampling.max_tokens,
            "stop_token_ids": list(self._stop_ids),
        }
        bodies = [
            {
                "input_ids": list(request.prompt_token_ids),
                "sampling_params": parameters,
                "return_logprob": True,
                **({"return_routed_experts": True} if self._spec.routing else {}),
            }
            for request in requests
        ]
        answers = self._ask(bodies, lambda: progress(1, 0))
        layers = self._spec.num_moe_layers if self._spec.routing else 0
        return [
            read_sample(answer, request, num_moe_layers=layers, top_k=self._spec.top_k)
            for answer, request in zip(answers, requests, strict=True)
        ]

    def score_prefill(
        self, sequences: Sequence[FixedSequence], sampling: SamplingConfig, progress: ProgressCallback
    ) -> list[npt.NDArray[np.float32]]:
        """See `RolloutEngine.score_prefill`; only at temperature 1 over the whole vocabulary."""
        if (sampling.temperature, sampling.top_p) != (1.0, 1.0) or sampling.top_k > 0:
            raise CaptureError(RAW_PREFILL, hint="leave out the leg rollout/prefill")
        bodies = [
            {
                "input_ids": [*sequence.prompt_token_ids, *sequence.response_token_ids],
                "sampling_params": {"max_new_tokens": 0, "temperature": 1.0},
                "return_logprob": True,
                "logprob_start_len": len(sequence.prompt_token_ids) - 1,
            }
            for sequence in sequences
        ]
        answers = self._ask(bodies, lambda: progress(1, 0))
        return [
            read_prefill(answer, sequence, vocab_size=self._vocab_size)
            for answer, sequence in zip(answers, sequences, strict=True)
        ]

    def force_decode(
        self, sequences: Sequence[FixedSequence], sampling: SamplingConfig, progress: ProgressCallback
    ) -> list[npt.NDArray[np.float32]]:
        """Not possible; preflight says so."""
        raise CaptureError(_REASONS["forced_decode"], hint="leave out the leg rollout/forced")


def sglang_capabilities(*, routing: str | None = None, temperature: str | None = None) -> EngineCapabilities:
    """What SGLang gives.

    Args:
        routing: Why there are no routes; None where there are.
        temperature: Why the temperature cannot be other than 1; None where it can.
    """
    return EngineCapabilities(
        sampling=True,
        prefill_scoring=True,
        forced_decode=False,
        routing=routing is None,
        reason={
            **_REASONS,
            **({"routing": routing} if routing else {}),
            **({"sampling_parameters": temperature} if temperature else {}),
        },
        sampling_parameters=frozenset() if temperature else frozenset({"temperature"}),
        prefill_parameters=frozenset(),
    )


def no_sglang(reason: str) -> EngineCapabilities:
    """Nothing, for one reason."""
    return EngineCapabilities(False, False, False, False, dict.fromkeys(NAMES, reason))


def engine_arguments(spec: EngineSpec, options: Mapping[str, Any], *, cuda: bool) -> dict[str, Any]:
    """Fields of SGLang's ServerArgs: what the audit needs, then what was asked for.

    Args:
        spec: What to load.
        options: Further fields, `rollout.options.*`; they win over what is only a default here.
        cuda: Whether there is a CUDA device. Without one SGLang runs torch's own attention and sampling.
    """
    running = int(options.get("max_running_requests", 16))
    on_cpu = {
        "device": "cpu",
        "attention_backend": "torch_native",
        "sampling_backend": "pytorch",
        "disable_overlap_schedule": True,
        "disable_cuda_graph": True,
        # Left to itself SGLang takes most of the machine's memory.
        "max_total_tokens": (spec.max_model_len + 64) * running,
    }
    return {
        **({} if cuda else on_cpu),
        "dtype": spec.dtype,
        "max_running_requests": running,
        "random_seed": 0,
        "log_level": "warning",
        # A cached token is not computed: it has no score and no route.
        "disable_radix_cache": True,
        **options,
        "model_path": str(spec.model_path),
        "skip_tokenizer_init": True,
        "trust_remote_code": spec.trust_remote_code,
        "enable_return_routed_experts": spec.routing,
    }
