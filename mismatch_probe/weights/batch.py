"""The tokens a correction weighs: log-probabilities of one set of responses under up to three policies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mismatch_probe.errors import ConfigError
from mismatch_probe.weights.ratios import Ratios

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Responses with the log-probabilities of their tokens under rollout (mu), old (pi_old) and train (pi).

    Built by `from_sequences`, `from_arrays` or `from_padded`. All token tensors share one shape, [tokens] or
    [sequences, width]; what a method returns has that shape too. Log-probabilities are in nats. Log-ratios are
    differences in float64 of the numbers given: bfloat16 inputs lose nothing further here, but what they lost
    before, 0.004 of their size, is a mismatch of its own.

    Attributes:
        train_logprobs: log pi, the policy that is differentiated; may require grad.
        rollout_logprobs: log mu, the policy that sampled.
        advantages: A, one per token.
        mask: True where a token takes part in the loss.
        offsets: int64 [sequences + 1]; sequence i holds the flattened tokens offsets[i] .. offsets[i + 1].
        old_logprobs: log pi_old, recomputed by the trainer at the rollout's weights; None where there is
            none.
    """

    train_logprobs: torch.Tensor
    rollout_logprobs: torch.Tensor
    advantages: torch.Tensor
    mask: torch.Tensor
    offsets: torch.Tensor
    old_logprobs: torch.Tensor | None = None

    @classmethod
    def from_sequences(
        cls,
        train_logprobs: Sequence[Any],
        rollout_logprobs: Sequence[Any],
        advantages: Sequence[Any],
        old_logprobs: Sequence[Any] | None = None,
        masks: Sequence[Any] | None = None,
    ) -> Batch:
        """Packs one list (or array, or tensor) per sequence into a flat batch.

        Args:
            train_logprobs: Per sequence, one log-probability a token. Tensors keep their dtype and their
                graph.
            rollout_logprobs: Likewise.
            advantages: Per sequence one number, or one number a token.
            old_logprobs: Likewise, or None.
            masks: Per sequence, true where a token takes part; None takes all.

        Raises:
            ConfigError: Lengths do not line up, there is no sequence, or a token that takes part is not
                finite.
        """
        import torch

        train = [_floats(row, "train_logprobs").reshape(-1) for row in train_logprobs]
        if not train:
            raise ConfigError("a batch needs at least one sequence")
        lengths = [len(row) for row in train]

        def pack(rows: Sequence[Any], name: str) -> torch.Tensor:
            tensors = [_floats(row, name).reshape(-1) for row in rows]
            if [len(row) for row in tensors] != lengths:
                raise ConfigError(
                    f"{name} does not line up with train_logprobs",
                    hint="give every sequence as many numbers as it has response tokens",
                )
            return torch.cat(tensors)

        if len(advantages) != len(lengths):
            raise ConfigError(f"{len(advantages)} advantages for {len(lengths)} sequences")
        per_token = [
            value.reshape(-1).expand(length) if value.numel() == 1 else value.reshape(-1)
            for value, length in zip((_floats(a, "advantages") for a in advantages), lengths, strict=True)
        ]
        offsets = torch.cumsum(torch.tensor([0, *lengths], dtype=torch.int64), 0)
        flat = torch.cat(train)
        return cls._checked(
            train=flat,
            rollout=pack(rollout_logprobs, "rollout_logprobs"),
            advantages=pack(per_token, "advantages"),
            mask=torch.ones_like(flat, dtype=torch.bool) if masks is None else pack(masks, "masks") != 0,
            offsets=offsets.to(flat.device),
            old=None if old_logprobs is None else pack(old_logprobs, "old_logprobs"),
        )

    @classmethod
    def from_arrays(
        cls,
        train_logprobs: Any,
        rollout_logprobs: Any,
        offsets: Any,
        advantages: Any,
        *,
        old_logprobs: Any | None = None,
        mask: Any | None = None,
    ) -> Batch:
        """Takes flat numpy arrays (or tensors) and the offsets of the sequences in them.

        Args:
            train_logprobs: [tokens].
            rollout_logprobs: [tokens].
            offsets: [sequences + 1], ascending from 0 to tokens, as in an Arrow list column.
            advantages: [sequences] or [tokens]. Where both counts are equal the two readings agree.
            old_logprobs: [tokens] or None.
            mask: [tokens], true where a token takes part; None takes all.

        Raises:
            ConfigError: Shapes do not line up, or a token that takes part is not finite.
        """
        import torch

        train = _floats(train_logprobs, "train_logprobs")
        bounds = torch.as_tensor(offsets, dtype=torch.int64, device=train.device)
        if bounds.ndim != 1 or len(bounds) < 2:
            raise ConfigError("offsets must hold one number more than there are sequences, and at least two")
        lengths = bounds.diff()
        if (
            train.ndim != 1
            or int(bounds[0]) != 0
            or int(bounds[-1]) != len(train)
            or bool((lengths < 0).any())
        ):
            raise ConfigError(f"offsets must ascend from 0 to the number of tokens, {train.numel()}")
        amounts = _floats(advantages, "advantages")
        if amounts.shape == lengths.shape and amounts.shape != train.shape:
            amounts = amounts.repeat_interleave(lengths)
        return cls._checked(
            train=train,
            rollout=_floats(rollout_logprobs, "rollout_logprobs"),
            advantages=amounts,
            mask=torch.ones_like(train, dtype=torch.bool) if mask is None else torch.as_tensor(mask) != 0,
            offsets=bounds,
            old=None if old_logprobs is None else _floats(old_logprobs, "old_logprobs"),
        )

    @classmethod
    def from_padded(
        cls,
        train_logprobs: Any,
        rollout_logprobs: Any,
        advantages: Any,
        mask: Any,
        *,
        old_logprobs: Any | None = None,
    ) -> Batch:
        """Takes what a trainer holds: right-padded [sequences, width] tensors and a response mask.

        Padding may hold anything, NaN included.

        Args:
            train_logprobs: [sequences, width].
            rollout_logprobs: [sequences, width].
            advantages: [sequences], [sequences, 1] or [sequences, width].
            mask: [sequences, width], true (or 1) where a response token takes part.
            old_logprobs: [sequences, width] or None.

        Raises:
            ConfigError: Shapes do not line up, or a token that takes part is not finite.
        """
        import torch

        train = _floats(train_logprobs, "train_logprobs")
        if train.ndim != 2 or train.shape[0] == 0:
            raise ConfigError(f"padded log-probabilities must be [sequences, width], not {list(train.shape)}")
        amounts = _floats(advantages, "advantages")
        if amounts.ndim == 1:
            amounts = amounts[:, None]
        if amounts.shape == (train.shape[0], 1):
            amounts = amounts.expand(train.shape)
        rows, width = train.shape
        return cls._checked(
            train=train,
            rollout=_floats(rollout_logprobs, "rollout_logprobs"),
            advantages=amounts,
            mask=torch.as_tensor(mask) != 0,
            offsets=torch.arange(rows + 1, device=train.device) * width,
            old=None if old_logprobs is None else _floats(old_logprobs, "old_logprobs"),
        )

    @classmethod
    def _checked(
        cls,
        *,
        train: torch.Tensor,
        rollout: torch.Tensor,
        advantages: torch.Tensor,
        mask: torch.Tensor,
        offsets: torch.Tensor,
        old: torch.Tensor | None,
    ) -> Batch:
        mask = mask.to(train.device)
        named = {"train_logprobs": train, "rollout_logprobs": rollout, "advantages": advantages, "mask": mask}
        if old is not None:
            named["old_logprobs"] = old
        for name, tensor in named.items():
            if tensor.shape != train.shape:
                raise ConfigError(
                    f"{name} has shape {list(tensor.shape)}, train_logprobs {list(train.shape)}",
                    hint="all policies must be read on the same response tokens",
                )
            if not bool(tensor.detach()[mask].isfinite().all()):
                raise ConfigError(
                    f"{name} holds NaN or infinity where the mask says that a token takes part",
                    hint="mask tokens without a log-probability, and ask why the engine gave none",
                )
        return cls(
            train_logprobs=train,
            rollout_logprobs=rollout.detach().to(train.device),
            advantages=advantages.detach().to(train.device),
            mask=mask,
            offsets=offsets,
            old_logprobs=None if old is None else old.detach().to(train.device),
        )

    @property
    def num_sequences(self) -> int:
        """How many sequences there are, empty ones included."""
        return len(self.offsets) - 1

    def ratios(self) -> Ratios:
        """The detached float64 view that methods read."""
        return Ratios.of(
            train=self.train_logprobs,
            rollout=self.rollout_logprobs,
            old=self.old_logprobs,
            advantages=self.advantages,
            mask=self.mask,
            offsets=self.offsets,
        )


def _floats(values: Any, name: str) -> torch.Tensor:
    """A float tensor: tensors keep a float dtype and their graph, all else becomes float64."""
    import torch

    if isinstance(values, torch.Tensor):
        return values if values.is_floating_point() else values.to(torch.float64)
    try:
        return torch.as_tensor(values, dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} must hold numbers: {error}") from error
