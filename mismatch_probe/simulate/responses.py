"""The responses that corrections are tried on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import ConfigError, InconclusiveError

if TYPE_CHECKING:
    from mismatch_probe.weights import Batch, WeightMethod

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Responses:
    """Checked numpy arrays: the responses that corrections are tried on.

    Without advantages every sequence is there twice, first all with A = 1, then all with A = -1.

    Attributes:
        train: log pi, float64 [tokens].
        rollout: log mu, float64 [tokens].
        old: log pi_old, float64 [tokens], or None.
        mask: bool [tokens].
        offsets: int64 [sequences + 1].
        clusters: Index of the prompt, int64 [sequences], 0 .. prompts - 1.
        advantages: float64 [sequences].
        assumed: Whether the advantages are the two assumed signs.
    """

    train: FloatArray
    rollout: FloatArray
    old: FloatArray | None
    mask: BoolArray
    offsets: IntArray
    clusters: IntArray
    advantages: FloatArray
    assumed: bool

    @classmethod
    def of(
        cls,
        train_logprobs: npt.ArrayLike,
        rollout_logprobs: npt.ArrayLike,
        offsets: npt.ArrayLike,
        clusters: npt.ArrayLike,
        advantages: npt.ArrayLike | None,
        *,
        old_logprobs: npt.ArrayLike | None = None,
        mask: npt.ArrayLike | None = None,
    ) -> Responses:
        """Checks shapes and that there is something to weigh; arguments as of `simulate_methods`."""
        train = np.asarray(train_logprobs, dtype=np.float64)
        bounds = np.asarray(offsets, dtype=np.int64)
        sequences = len(bounds) - 1
        columns = {"rollout_logprobs": np.asarray(rollout_logprobs, dtype=np.float64)}
        if old_logprobs is not None:
            columns["old_logprobs"] = np.asarray(old_logprobs, dtype=np.float64)
        inside = np.ones(train.shape, dtype=bool) if mask is None else np.asarray(mask).astype(bool)
        for name, column in {**columns, "mask": inside}.items():
            if column.shape != train.shape:
                raise ConfigError(f"{name} has {column.size} tokens, train_logprobs {train.size}")
        if (
            train.ndim != 1
            or sequences < 0
            or bounds[0] != 0
            or bounds[-1] != len(train)
            or np.any(np.diff(bounds) < 0)
        ):
            raise ConfigError(f"offsets must ascend from 0 to the number of tokens, {train.size}")
        prompts = np.asarray(clusters)
        if prompts.shape != (sequences,):
            raise ConfigError(f"{prompts.size} prompts for {sequences} sequences")
        if not inside.any():
            raise InconclusiveError("no response token to weigh", hint="record responses first")
        index = np.unique(prompts, return_inverse=True)[1].astype(np.int64)
        old = columns.get("old_logprobs")
        if advantages is not None:
            amounts = np.asarray(advantages, dtype=np.float64)
            if amounts.shape != (sequences,):
                raise ConfigError(f"{amounts.size} advantages for {sequences} sequences")
            return cls(train, columns["rollout_logprobs"], old, inside, bounds, index, amounts, assumed=False)
        return cls(
            train=np.tile(train, 2),
            rollout=np.tile(columns["rollout_logprobs"], 2),
            old=None if old is None else np.tile(old, 2),
            mask=np.tile(inside, 2),
            offsets=np.concatenate([bounds, bounds[1:] + len(train)]),
            clusters=np.tile(index, 2),
            advantages=np.repeat([1.0, -1.0], sequences),
            assumed=True,
        )

    def segment(self) -> IntArray:
        """Index of each token's sequence, [tokens]."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def sequence_sum(self, values: npt.NDArray[Any]) -> FloatArray:
        """Sum over the tokens of each sequence that count, [sequences]."""
        return np.bincount(
            self.segment()[self.mask], weights=values[self.mask], minlength=len(self.offsets) - 1
        ).astype(np.float64)

    def lengths(self) -> FloatArray:
        """Tokens that count, [sequences]."""
        return self.sequence_sum(np.ones(len(self.train)))

    def log_weight(self) -> FloatArray:
        """Sum of log pi - log mu over each sequence, nats, [sequences]."""
        return self.sequence_sum(np.where(self.mask, self.train - self.rollout, 0.0))

    def batch(self) -> Batch:
        """The same as a method takes it."""
        from mismatch_probe.weights import Batch

        return Batch.from_arrays(
            self.train,
            self.rollout,
            self.offsets,
            np.repeat(self.advantages, np.diff(self.offsets)),
            old_logprobs=self.old,
            mask=self.mask,
        )

    def coefficients(self, method: WeightMethod) -> FloatArray:
        """The weight of every token, [tokens]; 0 where a token does not count."""
        return np.asarray(method.coefficients(self.batch()).numpy(), dtype=np.float64)

    def pieces(self, max_tokens: int) -> Iterator[tuple[Responses, Batch]]:
        """The responses in order, whole sequences together, at most so many tokens at a time.

        Args:
            max_tokens: Of one piece; a longer sequence goes alone. Pieces without a token are left out.
        """
        start = 0
        while start < len(self.offsets) - 1:
            limit = self.offsets[start] + max_tokens
            stop = max(start + 1, int(np.searchsorted(self.offsets, limit, side="right")) - 1)
            piece = self._span(start, stop)
            if piece.train.size:
                yield piece, piece.batch()
            start = stop

    def _span(self, start: int, stop: int) -> Responses:
        """The sequences start .. stop - 1."""
        tokens = slice(int(self.offsets[start]), int(self.offsets[stop]))
        return Responses(
            train=self.train[tokens],
            rollout=self.rollout[tokens],
            old=None if self.old is None else self.old[tokens],
            mask=self.mask[tokens],
            offsets=self.offsets[start : stop + 1] - self.offsets[start],
            clusters=self.clusters[start:stop],
            advantages=self.advantages[start:stop],
            assumed=self.assumed,
        )

    def subset(self, prompts: npt.ArrayLike) -> Responses:
        """The responses of some prompts only.

        Args:
            prompts: Indices of prompts, as in `clusters`.

        Raises:
            InconclusiveError: They have no token that counts.
        """
        keep = np.isin(self.clusters, np.asarray(prompts))
        tokens = np.repeat(keep, np.diff(self.offsets))
        if not self.mask[tokens].any():
            raise InconclusiveError("no response token among these prompts")
        return Responses(
            train=self.train[tokens],
            rollout=self.rollout[tokens],
            old=None if self.old is None else self.old[tokens],
            mask=self.mask[tokens],
            offsets=np.concatenate([[0], np.cumsum(np.diff(self.offsets)[keep])]),
            clusters=np.unique(self.clusters[keep], return_inverse=True)[1].astype(np.int64),
            advantages=self.advantages[keep],
            assumed=self.assumed,
        )

    @property
    def num_prompts(self) -> int:
        """How many prompts there are."""
        return int(self.clusters.max()) + 1
