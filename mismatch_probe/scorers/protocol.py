"""What a training-side forward must be able to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from mismatch_probe.trace.keep_sets import KeepSet

ProgressCallback = Callable[[int, int], None]
"""Called with (sequences finished, tokens finished) since the last call."""


class ReplayOptions(BaseModel):
    """`train.options.*` that every scorer with routing replay has.

    Attributes:
        replay_controls: Sequences for the controls of routing replay: the forward's own routes replayed (which must
            change nothing), and what routing adds to the noise floor. 0 leaves them out.
        layer_replay: Sequences for replay of one layer at a time and of all but one, two forwards a layer; the
            controls then use the same sequences. 0 leaves it out. None takes `replay_controls` where the model has
            up to 8 MoE layers, and 0 where it has more.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    replay_controls: int = Field(32, ge=0)
    layer_replay: int | None = Field(None, ge=0)


@dataclass(frozen=True, slots=True)
class ScorerCapabilities:
    """What a scorer can give.

    Attributes:
        scoring: It can score finished ids.
        routing: It can return the experts it used.
        replay: It can be forced to given experts, the gate weights recomputed from its own router.
        reason: By capability name, why it is missing.
        hidden_states: It can return the residual stream of finished ids.
        temperature: It can score under another temperature than 1.
        keep_sets: It can renormalise each token over given ids.
    """

    scoring: bool
    routing: bool
    replay: bool
    reason: dict[str, str] = field(default_factory=dict)
    hidden_states: bool = False
    temperature: bool = True
    keep_sets: bool = False


@dataclass(frozen=True, slots=True)
class ScorerFacts:
    """What a report has to say about a scorer.

    Attributes:
        scorer: Registry name.
        version: Version of the scorer's package.
        dtype: Weight dtype in use.
        device: "cpu", "cuda", ...
        attention: Attention implementation in use.
        options: Every option in force.
        details: Anything else worth keeping.
    """

    scorer: str
    version: str
    dtype: str
    device: str
    attention: str
    options: dict[str, Any]
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ScorerSpec:
    """What is needed to load a scorer.

    Attributes:
        model_path: Folder of the checkpoint.
        dtype: Weight dtype to load it in.
        num_moe_layers: MoE layers of the model, 0 for a dense one.
        top_k: Experts per token, 0 for a dense model.
        options: `train.options.*`.
        trust_remote_code: Whether code from the checkpoint may run.
        max_sequence_len: Longest prompt + response to score, in tokens; None where nobody knows it.
    """

    model_path: Path
    dtype: str
    num_moe_layers: int
    top_k: int
    options: dict[str, Any]
    trust_remote_code: bool = False
    max_sequence_len: int | None = None


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """A finished sequence to score.

    Attributes:
        sequence_id: Unique in the run.
        prompt_token_ids: The prompt, as ids.
        response_token_ids: The response, as ids.
        routing: int16 [prompt + response - 1, MoE layers, top_k] experts to force, or None; where a row holds an id
            below 0, the router's own choice stands.
        gates: float32 of the same shape, gate weights to give the forced experts, or None to have them recomputed
            from the router's own logits; NaN does the same for a row.
        keep_set: Ids over which each token is renormalised, or None for the whole vocabulary.
    """

    sequence_id: int
    prompt_token_ids: Sequence[int]
    response_token_ids: Sequence[int]
    routing: npt.NDArray[np.int16] | None = None
    gates: npt.NDArray[np.float32] | None = None
    keep_set: KeepSet | None = None


@dataclass(frozen=True, slots=True)
class ScoredSequence:
    """What a forward says of one sequence.

    Attributes:
        sequence_id: As in the request.
        logprobs: float32 [response tokens], nats.
        entropy: float32 [response tokens], nats, of the whole next-token distribution, or of that over the keep-set where
            one was given; None where it cannot be had.
        routing: int16 [prompt + response - 1, MoE layers, top_k] experts used, or None.
        gates: float32 of the same shape, the weight each expert got, or None.
        margins: float32 [prompt + response - 1, MoE layers]; the router's own score of its last choice minus that of
            the first expert left out, or None.
    """

    sequence_id: int
    logprobs: npt.NDArray[np.float32]
    entropy: npt.NDArray[np.float32] | None
    routing: npt.NDArray[np.int16] | None
    gates: npt.NDArray[np.float32] | None = None
    margins: npt.NDArray[np.float32] | None = None


class Scorer(Protocol):
    """A training-side forward that is loaded and ready."""

    def facts(self) -> ScorerFacts:
        """What was loaded."""
        ...

    def score(
        self,
        requests: Sequence[ScoreRequest],
        *,
        temperature: float,
        batching: str,
        capture_routing: bool,
        progress: ProgressCallback,
    ) -> list[ScoredSequence]:
        """Scores finished sequences.

        Args:
            requests: What to score; where a request carries routes, they are forced.
            temperature: Logits are divided by it, as the sampler did.
            batching: "forward" (the usual batching) or "repeat" (another one, for the noise floor).
            capture_routing: Whether to return the experts used, with gate weights and margins where the scorer has them.
            progress: Called as sequences finish.

        Returns:
            One result per request, in the order of the requests.

        Raises:
            CaptureError: A score or a route is missing.
        """
        ...

    def close(self) -> None:
        """Gives memory back."""
        ...
