"""What a rollout engine must be able to do; everything else in the tool speaks to engines through this module.

An engine lives in a process of its own (see `mismatch_probe.stages.worker`), so it may hold the whole accelerator and may
die without taking the audit with it. Tokens go in and out as ids, never as text: re-tokenised text is another sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mismatch_probe.config.model import SamplingConfig
from mismatch_probe.trace.keep_sets import KeepSet

ProgressCallback = Callable[[int, int], None]
"""Called with (sequences finished, tokens finished) since the last call."""

SAMPLING_PARAMETERS = frozenset({"temperature", "top_p", "top_k"})


@dataclass(frozen=True, slots=True)
class EngineCapabilities:
    """What an engine can give, asked before any token is sampled.

    Attributes:
        sampling: It can sample and return the log-probability of each sampled token from the decode path.
        prefill_scoring: It can score finished ids in one prefill pass.
        forced_decode: It can force given ids through the decode path and return their log-probabilities.
        routing: It returns the experts that each fed token was routed to.
        reason: By capability name, why it is missing.
        weight_reload: It loads weights while it runs (`mismatch_probe.engines.refit.RefittableEngine`).
        hidden_states: It can return the residual stream of finished ids.
        keep_sets: It returns the ids that truncated sampling could have drawn at each token.
        sampling_parameters: Fields of `SamplingConfig` that it follows when they differ from their defaults.
        prefill_parameters: Likewise of its prefill scores; a parameter that is not here makes a prefill score describe
            another distribution than the sampled one.
    """

    sampling: bool
    prefill_scoring: bool
    forced_decode: bool
    routing: bool
    reason: dict[str, str] = field(default_factory=dict)
    weight_reload: bool = False
    hidden_states: bool = False
    keep_sets: bool = False
    sampling_parameters: frozenset[str] = SAMPLING_PARAMETERS
    prefill_parameters: frozenset[str] = SAMPLING_PARAMETERS


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What a report has to say about an engine so that a reading can be repeated.

    Attributes:
        engine: Registry name.
        version: Version of the engine's package.
        dtype: Weight dtype in use, such as "bfloat16".
        device: "cpu", "cuda", ...
        logprobs_mode: Which distribution the decode log-probabilities describe.
        options: Every option the engine was started with.
        details: Anything else worth keeping, such as attention backend or kernel names.
    """

    engine: str
    version: str
    dtype: str
    device: str
    logprobs_mode: str
    options: dict[str, Any]
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What is needed to start an engine.

    Attributes:
        model_path: Folder of the checkpoint.
        dtype: Weight dtype to load it in.
        max_model_len: Longest prompt + response, in tokens.
        routing: Whether routed experts will be asked for.
        num_moe_layers: MoE layers of the model, 0 for a dense one.
        top_k: Experts per token, 0 for a dense model.
        options: Passed on to the engine as they are (`rollout.options.*`).
        trust_remote_code: Whether code from the checkpoint may run.
        keep_sets: Whether the ids that truncated sampling keeps will be asked for.
    """

    model_path: Path
    dtype: str
    max_model_len: int
    routing: bool
    num_moe_layers: int
    top_k: int
    options: dict[str, Any]
    trust_remote_code: bool = False
    keep_sets: bool = False


@dataclass(frozen=True, slots=True)
class PromptRequest:
    """One response to sample.

    Attributes:
        sequence_id: Unique in the run; also fixes the seed of this response.
        prompt_token_ids: The prompt, as ids.
        seed: Seed of this one request.
    """

    sequence_id: int
    prompt_token_ids: Sequence[int]
    seed: int


@dataclass(frozen=True, slots=True)
class FixedSequence:
    """A finished sequence to be scored or forced.

    Attributes:
        sequence_id: Unique in the run.
        prompt_token_ids: The prompt, as ids.
        response_token_ids: The response, as ids.
    """

    sequence_id: int
    prompt_token_ids: Sequence[int]
    response_token_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class SampledSequence:
    """One sampled response.

    Attributes:
        sequence_id: As in the request.
        response_token_ids: Sampled ids, including the end-of-sequence id if it was sampled.
        logprobs: float32 [response tokens]; log-probability of each id under exactly the distribution it was sampled from.
        finish_reason: "stop" or "length".
        routing: int16 [prompt + response - 1, MoE layers, top_k] expert ids, or None. The last response token was
            never fed to the model, so no route of it exists.
        gates: float [prompt + response - 1, MoE layers, top_k], the weight that each of them got, or None where the engine
            does not show them.
        keep_set: The ids that could have been drawn at each token; None unless they were asked for.
    """

    sequence_id: int
    response_token_ids: list[int]
    logprobs: npt.NDArray[np.float32]
    finish_reason: str
    routing: npt.NDArray[np.int16] | None
    gates: npt.NDArray[np.floating] | None = None
    keep_set: KeepSet | None = None


class RolloutEngine(Protocol):
    """An engine that is loaded and ready. Made by the factory that the registry knows."""

    def facts(self) -> EngineFacts:
        """What was started."""
        ...

    def sample(
        self, requests: Sequence[PromptRequest], sampling: SamplingConfig, progress: ProgressCallback
    ) -> list[SampledSequence]:
        """Samples one response per request, batched as the engine batches.

        Args:
            requests: What to sample.
            sampling: Temperature, top-p, top-k, length.
            progress: Called as sequences finish.

        Returns:
            One result per request, in the order of the requests.

        Raises:
            CaptureError: A log-probability or a route is missing.
        """
        ...

    def score_prefill(
        self, sequences: Sequence[FixedSequence], sampling: SamplingConfig, progress: ProgressCallback
    ) -> list[npt.NDArray[np.float32]]:
        """Scores finished ids in one prefill pass, under the same temperature and truncation as `sample`.

        Returns:
            Per sequence, float32 [response tokens].
        """
        ...

    def force_decode(
        self, sequences: Sequence[FixedSequence], sampling: SamplingConfig, progress: ProgressCallback
    ) -> list[npt.NDArray[np.float32]]:
        """Forces given ids through the real decode path.

        Returns:
            Per sequence, float32 [response tokens].
        """
        ...

    def close(self) -> None:
        """Gives memory and child processes back."""
        ...
