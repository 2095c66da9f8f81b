"""What a training-side forward must be able to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

ProgressCallback = Callable[[int, int], None]
"""Called with (sequences finished, tokens finished) since the last call."""


@dataclass(frozen=True, slots=True)
class ScorerCapabilities:
    """What a scorer can give.

    Attributes:
        scoring: It can score finished ids.
        routing: It can return the experts it used.
        replay: It can be forced to given experts, the gate weights recomputed from its own router.
        reason: By capability name, why it is missing.
    """

    scoring: bool
    routing: bool
    replay: bool
    reason: dict[str, str] = field(default_factory=dict)


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
    """

    model_path: Path
    dtype: str
    num_moe_layers: int
    top_k: int
    options: dict[str, Any]
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """A finished sequence to score.

    Attributes:
        sequence_id: Unique in the run.
        prompt_token_ids: The prompt, as ids.
        response_token_ids: The response, as ids.
        routing: int16 [prompt + response - 1, MoE layers, top_k] experts to force, or None.
    """

    sequence_id: int
    prompt_token_ids: Sequence[int]
    response_token_ids: Sequence[int]
    routing: npt.NDArray[np.int16] | None = None


@dataclass(frozen=True, slots=True)
class ScoredSequence:
    """What a forward says of one sequence.

    Attributes:
        sequence_id: As in the request.
        logprobs: float32 [response tokens], nats.
        entropy: float32 [response tokens], nats, of the whole next-token distribution.
        routing: int16 [prompt + response - 1, MoE layers, top_k] experts used, or None.
    """

    sequence_id: int
    logprobs: npt.NDArray[np.float32]
    entropy: npt.NDArray[np.float32]
    routing: npt.NDArray[np.int16] | None


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
            capture_routing: Whether to return the experts used.
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
