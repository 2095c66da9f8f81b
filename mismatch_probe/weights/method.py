"""What a correction is: a coefficient per token, and the loss that has it as its gradient."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, runtime_checkable

from mismatch_probe.weights.aggregation import Aggregation, aggregate
from mismatch_probe.weights.batch import Batch
from mismatch_probe.weights.hyperparameters import check_values
from mismatch_probe.weights.ratios import LOG_CEILING, Ratios

if TYPE_CHECKING:
    import torch

Level = Literal["token", "sequence"]


@runtime_checkable
class WeightMethod(Protocol):
    """A correction. Hyperparameters are fields of a frozen dataclass.

    Attributes:
        name: What a user writes.
        label: How a report calls it.
        level: Whether phi is one number a token, or one a sequence repeated over its tokens.
        aggregation: How the source turns token losses into one number.
        kept_above: phi above which a token counts as kept: 0 where phi is exactly 0 on what is dropped, 0.01
            where it only fades.
        reads: Which ratio phi looks at, in words; it decides what the method can see.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    level: ClassVar[Level]
    aggregation: ClassVar[Aggregation]
    kept_above: ClassVar[float]

    @property
    def reads(self) -> str:
        """Which ratio phi looks at: none, train/rollout, train/old, old/rollout, or a product of two."""
        ...

    def coefficients(self, batch: Batch) -> torch.Tensor:
        """phi: the coefficient on A * grad log pi(y_t), float64 in the batch's shape, 0 where masked."""
        ...

    def loss(
        self,
        batch: Batch,
        aggregation: Aggregation | None = None,
        *,
        num_tokens: float | None = None,
        num_sequences: float | None = None,
        horizon: float | None = None,
    ) -> torch.Tensor:
        """A scalar to minimise whose gradient in log pi is -phi * A / normaliser."""
        ...


class GradientView:
    """Base of the methods here: `phi` says it all, the rest follows.

    A subclass is a frozen dataclass with slots; it sets the class attributes of `WeightMethod` and writes
    `phi`.
    """

    __slots__ = ()

    name: ClassVar[str]
    label: ClassVar[str]
    level: ClassVar[Level] = "token"
    aggregation: ClassVar[Aggregation] = "token-mean"
    kept_above: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        check_values(self.name, self)

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """Phi before masking, float64 [tokens]; never NaN, whatever the log-ratios are."""
        raise TypeError(f"{type(self).__name__} must define phi(ratios)")

    def coefficients(self, batch: Batch) -> torch.Tensor:
        """phi: the coefficient on A * grad log pi(y_t).

        Args:
            batch: The tokens.

        Returns:
            float64 in the batch's shape, detached, 0 where masked; saturates at exp(690).
        """
        return self._masked_phi(batch.ratios()).reshape(batch.train_logprobs.shape)

    def loss(
        self,
        batch: Batch,
        aggregation: Aggregation | None = None,
        *,
        num_tokens: float | None = None,
        num_sequences: float | None = None,
        horizon: float | None = None,
    ) -> torch.Tensor:
        """The policy loss: -phi * A * log pi with phi held constant, aggregated.

        Its gradient in log pi(y_t) is -phi_t * A_t / normaliser; for methods that differentiate through a
        ratio this is the same gradient that their own objective has. phi and its product with A are worked
        out in float64 whatever the inputs are; only the product with log pi and the sums over tokens are in
        the inputs' type, at least float32. |phi A| saturates at the square root of that type's largest number
        (1.8e19, 1.3e154), so that unbounded weights give a finite loss.

        Args:
            batch: The tokens; `train_logprobs` carries the graph. float32, bfloat16 or float64.
            aggregation: How token losses become one number; None takes the source's way.
            num_tokens: Tokens of the global batch, for token-mean over several micro-batches. Where gradients
                are averaged over ranks give tokens per rank.
            num_sequences: Sequences of the global batch, likewise for the seq-mean ways. Methods whose phi is
                a statement about a batch (`m2po`, `normalise="mean"`) do not add up over its parts.
            horizon: The constant length of seq-mean-token-sum-norm; None takes the longest response here.

        Returns:
            A scalar, at least float32.
        """
        import torch

        dtype = torch.promote_types(batch.train_logprobs.dtype, torch.float32)
        # Formed in float64 and saturated before it is narrowed, so that no token turns into infinity.
        ratios = batch.ratios()
        weight = self._masked_phi(ratios) * ratios.advantages
        limit = torch.finfo(dtype).max ** 0.5
        logprobs = batch.train_logprobs.reshape(-1).to(dtype).masked_fill(~ratios.mask, 0.0)
        token_loss = -weight.clamp(-limit, limit).to(dtype) * logprobs
        return aggregate(
            token_loss,
            ratios,
            aggregation or self.aggregation,
            num_tokens=num_tokens,
            num_sequences=num_sequences,
            horizon=horizon,
        )

    def _masked_phi(self, ratios: Ratios) -> torch.Tensor:
        # Factors saturate by themselves, their product here.
        ceiling = math.exp(LOG_CEILING)
        return self.phi(ratios).clamp(-ceiling, ceiling).masked_fill(~ratios.mask, 0.0)
