"""One row for each sequence of a trace in parts."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.stats.buckets import SequenceAt
from mismatch_probe.stats.dependence import VarianceTime
from mismatch_probe.stats.kl import token_k2, token_k3
from mismatch_probe.stats.layout import FloatArray, IntArray, SequenceLayout
from mismatch_probe.stats.sequence_means import SequenceSums
from mismatch_probe.stats.sequence_summary import SequenceSummary, sequence_summary_from_weights

_ID, _CLUSTER, _LENGTH, _LOG_WEIGHT, _SIZE, _LARGEST, _ADVANTAGE, _K2, _K3, _TRAIN = range(10)


class SequenceStore:
    """Log-weights and what else the sequence summary needs, 80 bytes a sequence, in the order of ids."""

    def __init__(self) -> None:
        self._parts: list[FloatArray] = []
        self._has_advantages: bool | None = None

    def add(
        self,
        log_ratio: FloatArray,
        train_logprobs: FloatArray,
        layout: SequenceLayout,
        ids: IntArray,
        advantages: npt.ArrayLike | None,
    ) -> None:
        """Adds sequences.

        Args:
            log_ratio: float64 [tokens], nats.
            train_logprobs: float64 [tokens], nats.
            layout: Their sequences and prompts.
            ids: int64 [sequences].
            advantages: [sequences], in every part or in none.

        Raises:
            ConfigError: Advantages of another length, or given for some parts only.
        """
        advantage = (
            np.full(ids.size, np.nan) if advantages is None else np.asarray(advantages, dtype=np.float64)
        )
        if advantage.shape != ids.shape:
            raise ConfigError("advantages must have one entry a sequence")
        self._note(advantages is not None)
        size, largest = np.abs(log_ratio), np.zeros(ids.size)
        np.maximum.at(largest, layout.token_sequence, size)
        sums = layout.sequence_sums(log_ratio), layout.sequence_sums(size)
        more = [layout.sequence_sums(v) for v in (token_k2(log_ratio), token_k3(log_ratio), train_logprobs)]
        columns = [ids, layout.clusters, layout.lengths, *sums, largest, advantage, *more]
        self._parts.append(np.column_stack(columns))

    def merge(self, other: SequenceStore) -> None:
        """Adds another store's sequences.

        Raises:
            ConfigError: Only one of the two has advantages.
        """
        if other._has_advantages is not None:
            self._note(other._has_advantages)
        self._parts.extend(other._parts)

    def data(self) -> FloatArray:
        """All rows by id, float64 [sequences, 10].

        The columns are id, prompt, length, log W, sum |l|, max |l|, advantage, sum K2, sum K3, sum log pi.

        Raises:
            InconclusiveError: There are none, or an id comes twice.
        """
        if not self._parts:
            raise InconclusiveError("no sequences were added")
        data = np.concatenate(self._parts)
        data = data[np.argsort(data[:, _ID], kind="stable")]
        if np.any(np.diff(data[:, _ID]) == 0):
            raise InconclusiveError("a sequence was added twice", hint="give every sequence its own id")
        # One array from now on: asking twice does not sort twice.
        self._parts = [data]
        return data

    def summary(self, growth: VarianceTime | None, *, num_worst: int) -> SequenceSummary:
        """The sequence summary.

        Args:
            growth: Variance of block sums, or None.
            num_worst: How many worst sequences to list.

        Raises:
            InconclusiveError: No sequence has a token, or an id comes twice.
        """
        data = self.data()
        filled = data[data[:, _LENGTH] > 0]
        if filled.shape[0] == 0:
            raise InconclusiveError("no sequence has a token")
        offsets = np.concatenate([[0], np.cumsum(filled[:, _LENGTH].astype(np.int64))])
        return sequence_summary_from_weights(
            filled[:, _LOG_WEIGHT].copy(),
            SequenceLayout.from_arrays(offsets, filled[:, _CLUSTER].astype(np.int64)),
            sums=SequenceSums(*(filled[:, column].copy() for column in (_SIZE, _K2, _K3, _TRAIN))),
            growth=growth,
            advantages=filled[:, _ADVANTAGE] if self._has_advantages else None,
            worst=_worst(data, num_worst),
            num_empty=int(data.shape[0] - filled.shape[0]),
            exact=float(data[:, _LARGEST].max()) == 0.0,
        )

    def _note(self, has_advantages: bool) -> None:
        if self._has_advantages is not None and self._has_advantages != has_advantages:
            raise ConfigError("advantages must be given for every part or for none")
        self._has_advantages = has_advantages


def _worst(data: FloatArray, count: int) -> tuple[SequenceAt, ...]:
    order = np.lexsort((np.arange(data.shape[0]), -np.abs(data[:, _LOG_WEIGHT])))[:count]
    return tuple(
        SequenceAt(
            sequence=int(i),
            cluster=int(data[i, _CLUSTER]),
            length=int(data[i, _LENGTH]),
            log_weight=float(data[i, _LOG_WEIGHT]),
            mean_abs_log_ratio=float(data[i, _SIZE]) / max(int(data[i, _LENGTH]), 1),
            max_abs_log_ratio=float(data[i, _LARGEST]),
        )
        for i in order
    )
