"""Drift of a trace that does not fit into memory, measured part by part.

A part is any number of whole sequences. Updates and merges in any order give the same result bit for bit
(buckets: for the same parts), equal to `summarise_tokens` and `summarise_sequences` over the whole within
1e-12 of the sums of sizes involved. Approximate are only the token quantiles, within 2^-11 of each, and the
concentration in the top tokens where that share is more than 131072 tokens (from the same histogram).

Memory does not grow with the tokens: about 80 bytes for each sequence, 2 kB for each prompt, and 15 MB.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.stats.binary_summary import (
    BINARY_COLUMNS,
    binary_columns,
    binary_summary_from_table,
    count_above_zero,
)
from mismatch_probe.stats.bucket_sums import BucketSums, HistogramSums
from mismatch_probe.stats.buckets import TokenAt, buckets_from_sums, geometric_mean_probability
from mismatch_probe.stats.clusters import design_effect_from_table
from mismatch_probe.stats.dependence import MIN_BLOCK, block_sums, variance_time_from_table
from mismatch_probe.stats.estimate import Estimate
from mismatch_probe.stats.exact_sums import ExactSums
from mismatch_probe.stats.intervals import MEAN, POSITIVE_MEAN, Statistic, interval_from_table
from mismatch_probe.stats.kl import CLAMP, token_k2, token_k3
from mismatch_probe.stats.layout import FloatArray, IntArray, SequenceLayout, finite_array
from mismatch_probe.stats.means import EXP_LIMIT, EXPM1_MEAN, OVERFLOW, shifted, unless_one_token
from mismatch_probe.stats.sequence_store import SequenceStore
from mismatch_probe.stats.sequence_summary import SequenceSummary
from mismatch_probe.stats.sketches import RELATIVE_ERROR, Largest, SignedHistogram
from mismatch_probe.stats.tails import LEVELS, TAUS, ExtremeRate, rate_from_table
from mismatch_probe.stats.token_summary import TokenBuckets, TokenQuantiles, TokenSummary, TopShare

TOP_CAPACITY = 2**17
MAX_LOG_RATIO = 1000.0
_SHIFT = 1300.0
_LOG_RATIO, _K2, _K3, _K3_CLAMPED, _SIZE, _EXCESS, _SQUARE, _FAR_SQUARE, _CHI, _SQUARE_CLAMPED, _BINARY = (
    range(11)
)
_TAUS = _BINARY + BINARY_COLUMNS


class DriftAccumulator:
    """Sums, counts and lists of the largest, from which both summaries are made.

    Args:
        taus: Bounds for the rates of extreme ratios.
        top_fraction: Of tokens, for the concentration.
        num_worst: How many worst tokens and sequences to list.
        largest_block: Largest block for the growth of the variance, a power of two from
            `largest_block(lengths, clusters)` over the whole trace (lengths alone, no token is read); 0
            leaves the growth unmeasured.

    Raises:
        ConfigError: A bound or the block size is out of range.
    """

    def __init__(
        self,
        *,
        taus: Sequence[float] = TAUS,
        top_fraction: float = 0.001,
        num_worst: int = 20,
        largest_block: int = 0,
    ) -> None:
        if any(not tau > 1 for tau in taus) or not 0 < top_fraction <= 1:
            raise ConfigError("taus must be above 1 and top_fraction in (0, 1]")
        if largest_block and (largest_block < MIN_BLOCK or largest_block & (largest_block - 1)):
            raise ConfigError(f"largest_block must be 0 or a power of two from {MIN_BLOCK} on")
        self._settings = (tuple(taus), top_fraction, num_worst, largest_block)
        self._rows: dict[int, int] = {}
        self._tokens = ExactSums(_TAUS + len(taus) + 1)
        self._blocks = ExactSums(largest_block.bit_length() + 2) if largest_block else None
        self._sequences = SequenceStore()
        self._max_log_ratio, self._min_log_ratio = -math.inf, math.inf
        self._num_clamped = 0
        self._num_far = 0
        self._num_above_zero = 0
        self._histogram = SignedHistogram()
        self._top_sizes = Largest(TOP_CAPACITY)
        self._top_k3 = Largest(TOP_CAPACITY)
        self._worst = Largest(max(num_worst, 1), 5)
        self._buckets = BucketSums()
        self._map = HistogramSums()

    def update(
        self,
        train_logprobs: npt.ArrayLike,
        rollout_logprobs: npt.ArrayLike,
        offsets: npt.ArrayLike,
        clusters: npt.ArrayLike,
        sequence_ids: npt.ArrayLike,
        *,
        advantages: npt.ArrayLike | None = None,
        entropy: npt.ArrayLike | None = None,
        token_class: npt.ArrayLike | None = None,
    ) -> None:
        """Adds whole sequences.

        Args:
            train_logprobs: [tokens] nats.
            rollout_logprobs: [tokens] nats.
            offsets: int64 [sequences + 1] within this part.
            clusters: int64 [sequences] prompt; the same label in every part.
            sequence_ids: int64 [sequences] unique over the whole trace (and below 2^53); results list
                sequences in their order.
            advantages: [sequences]; in every part or in none.
            entropy: [tokens] nats, where known.
            token_class: int64 [tokens], where known.

        Raises:
            ConfigError: The arrays do not fit together.
            InconclusiveError: A log-probability is not finite, or the sides are over 1000 nats apart.
        """
        offset_array = np.asarray(offsets, dtype=np.int64)
        if offset_array.size and offset_array[-1] == 0:
            train = rollout = np.zeros(0)
        else:
            train, rollout = finite_array(train_logprobs, "train"), finite_array(rollout_logprobs, "rollout")
        layout = SequenceLayout.from_arrays(offset_array, clusters, num_tokens=train.size)
        ids = np.asarray(sequence_ids, dtype=np.int64)
        if train.shape != rollout.shape or ids.shape != layout.clusters.shape:
            raise ConfigError("both sides must have the same tokens, and sequence_ids one entry a sequence")
        log_ratio = train - rollout
        size = np.abs(log_ratio)
        if size.size and float(size.max()) > MAX_LOG_RATIO:
            raise InconclusiveError(
                f"the sides are {size.max():.0f} nats apart: no log-probability", hint="see MP102"
            )
        # Whatever can be refused is refused before anything is added.
        self._buckets.note(entropy, token_class, train.size)
        self._sequences.add(log_ratio, train, layout, ids, advantages)
        rows = self._rows_of(layout.clusters)
        self._num_above_zero += count_above_zero(train, rollout)
        k3 = self._add_token_sums(log_ratio, size, binary_columns(train, rollout), layout, rows)
        if self._blocks is not None:
            self._blocks.add(rows, block_sums(log_ratio, layout, self._settings[3]))
        if not train.size:
            return
        self._histogram.update(log_ratio)
        self._top_sizes.update(size)
        self._top_k3.update(k3)
        position = layout.token_position.astype(np.float64)
        owner = ids[layout.token_sequence].astype(np.float64)
        self._worst.update(size, owner, position, rollout, train)
        probability = geometric_mean_probability(train, rollout)
        self._buckets.update(log_ratio, k3, probability, position, entropy, token_class)
        self._map.update(train, rollout)

    def merge(self, other: DriftAccumulator) -> None:
        """Adds what another accumulator saw; `other` stays as it is.

        Raises:
            ConfigError: The settings differ, or only one of the two has advantages, entropies or token
                classes.
        """
        if other._settings != self._settings:
            raise ConfigError("accumulators with different settings cannot be merged")
        self._buckets.merge(other._buckets)
        self._sequences.merge(other._sequences)
        labels = np.array(list(other._rows), dtype=np.int64)
        rows = self._rows_of(labels)
        self._tokens.merge(other._tokens, rows)
        if self._blocks is not None and other._blocks is not None:
            self._blocks.merge(other._blocks, rows)
        self._max_log_ratio = max(self._max_log_ratio, other._max_log_ratio)
        self._min_log_ratio = min(self._min_log_ratio, other._min_log_ratio)
        self._num_clamped += other._num_clamped
        self._num_far += other._num_far
        self._num_above_zero += other._num_above_zero
        self._histogram.merge(other._histogram)
        for mine, theirs in zip(self._lists(), other._lists(), strict=True):
            mine.merge(theirs)
        self._map.merge(other._map)

    def tokens(self) -> TokenSummary:
        """Per-token drift of everything added so far.

        Raises:
            InconclusiveError: No tokens, or a sequence was added twice.
        """
        taus, fraction, num_worst, _ = self._settings
        labels, table = self._token_table()
        total, n = table.sum(axis=0), int(table[:, -1].sum())

        def mean(column: int, statistic: Statistic = MEAN) -> Estimate:
            return interval_from_table(table[:, [column, -1]], statistic, n=n)

        def unless_overflow(column: int, statistic: Statistic, exponent: float) -> Estimate:
            fits = exponent * self._max_log_ratio <= EXP_LIMIT
            return mean(column, statistic) if fits else Estimate(None, None, None, n, OVERFLOW)

        mean_log_ratio = mean(_LOG_RATIO)
        negated = interval_from_table(table[:, [_LOG_RATIO, -1]] * [-1.0, 1.0], MEAN, n=n)
        absolute = self._histogram.absolute_quantiles((1.0,))[0]
        return TokenSummary(
            num_tokens=n,
            k1=negated,
            k2=mean(_K2, POSITIVE_MEAN),
            k3=unless_overflow(_K3, POSITIVE_MEAN, 1.0),
            k3_clamped=float(total[_K3_CLAMPED]) / n,
            num_clamped=self._num_clamped,
            mean_log_ratio=mean_log_ratio,
            mean_abs_log_ratio=mean(_SIZE, POSITIVE_MEAN),
            max_abs_log_ratio=absolute,
            mean_ratio=self._unless_one_token(
                shifted(unless_overflow(_EXCESS, EXPM1_MEAN, 1.0), 1.0), float(total[_CHI])
            ),
            chi2=self._unless_one_token(unless_overflow(_SQUARE, EXPM1_MEAN, 2.0), float(total[_CHI])),
            chi2_clamped=float(total[_SQUARE_CLAMPED]) / n,
            renyi2=self._renyi2(total, n),
            binary=binary_summary_from_table(table[:, [*range(_BINARY, _TAUS), -1]], self._num_above_zero),
            design_effect=design_effect_from_table(table[:, [_LOG_RATIO, _K2, -1]] * [1.0, 2.0, 1.0]),
            exact=absolute == 0.0,
            quantiles=TokenQuantiles(
                LEVELS,
                self._histogram.quantiles(LEVELS),
                self._histogram.absolute_quantiles(LEVELS),
                RELATIVE_ERROR,
            ),
            top_share=self._top_share(total, n, fraction),
            extreme=tuple(
                ExtremeRate(tau, rate_from_table(self._rate_columns(table, _TAUS + place)))
                for place, tau in enumerate(taus)
            ),
            buckets=self._token_buckets(labels, table),
            by_probability=self._map.histogram(),
            worst=self._worst_tokens(num_worst),
        )

    def sequences(self) -> SequenceSummary:
        """Drift of whole sequences of everything added so far.

        Raises:
            InconclusiveError: No sequence has a token, or a sequence was added twice.
        """
        growth = None
        if self._blocks is not None:
            growth = variance_time_from_table(self._blocks.table(len(self._rows))[self._row_order()])
        return self._sequences.summary(growth, num_worst=self._settings[2])

    def _rows_of(self, labels: IntArray) -> IntArray:
        return np.array([self._rows.setdefault(int(v), len(self._rows)) for v in labels], dtype=np.int64)

    def _row_order(self) -> list[int]:
        return [self._rows[label] for label in sorted(self._rows)]

    def _lists(self) -> tuple[Largest, Largest, Largest]:
        return self._top_sizes, self._top_k3, self._worst

    def _add_token_sums(
        self,
        log_ratio: FloatArray,
        size: FloatArray,
        binary: FloatArray,
        layout: SequenceLayout,
        rows: IntArray,
    ) -> FloatArray:
        """Adds sums over sequences, each in its own order whatever the part; returns K3 of each token."""
        k3 = token_k3(log_ratio)
        square = 2.0 * log_ratio
        far = square > EXP_LIMIT
        clamped, beyond = k3.copy(), size > CLAMP
        clamped[beyond] = token_k3(np.clip(log_ratio[beyond], -CLAMP, CLAMP))
        columns = [
            log_ratio,
            token_k2(log_ratio),
            np.where(log_ratio <= EXP_LIMIT, k3, 0.0),
            clamped,
            size,
            np.expm1(np.where(log_ratio <= EXP_LIMIT, log_ratio, 0.0)),
            np.expm1(np.where(far, 0.0, square)),
            np.where(far, np.exp(np.where(far, square, 0.0) - _SHIFT), 0.0),
            np.square(np.expm1(np.where(far, 0.0, log_ratio))),
            np.expm1(2.0 * np.clip(log_ratio, -CLAMP, CLAMP)),
            *binary,
            *((size > math.log(tau)).astype(np.float64) for tau in self._settings[0]),
        ]
        sums = [layout.sequence_sums(column) for column in columns]
        self._tokens.add(rows, np.column_stack([*sums, layout.lengths.astype(np.float64)]))
        self._num_clamped += int(np.count_nonzero(beyond))
        self._num_far += int(np.count_nonzero(far))
        if log_ratio.size:
            self._max_log_ratio = max(self._max_log_ratio, float(log_ratio.max()))
            self._min_log_ratio = min(self._min_log_ratio, float(log_ratio.min()))
        return k3

    def _token_table(self) -> tuple[IntArray, FloatArray]:
        """Prompts that have tokens, by label, and their sums."""
        self._sequences.data()
        labels = np.array(sorted(self._rows), dtype=np.int64)
        table = self._tokens.table(len(self._rows))[self._row_order()]
        filled = table[:, -1] > 0
        if not np.any(filled):
            raise InconclusiveError("no tokens were added")
        return labels[filled], table[filled]

    def _unless_one_token(self, estimate: Estimate, total: float) -> Estimate:
        if estimate.ci_low is None:
            return estimate
        if self._max_log_ratio > EXP_LIMIT / 2.0:
            return unless_one_token(estimate, 1.0, 1.0)
        largest = max(math.expm1(self._max_log_ratio) ** 2, math.expm1(self._min_log_ratio) ** 2)
        return unless_one_token(estimate, largest, total)

    def _renyi2(self, total: FloatArray, n: int) -> float:
        near = n - self._num_far + float(total[_SQUARE])
        if not self._num_far:
            return math.log1p(float(total[_SQUARE]) / n)
        far = math.log(float(total[_FAR_SQUARE])) + _SHIFT
        return float(np.logaddexp(math.log(near) if near > 0 else -math.inf, far)) - math.log(n)

    def _rate_columns(self, table: FloatArray, column: int) -> FloatArray:
        # The squares of |l| are twice K2.
        return np.column_stack([table[:, column], table[:, _SIZE], 2.0 * table[:, _K2], table[:, -1]])

    def _top_share(self, total: FloatArray, n: int, fraction: float) -> TopShare:
        count = max(1, math.ceil(fraction * n))

        def share(largest: Largest, column: int, overflows: bool) -> float | None:
            if overflows or total[column] == 0.0:
                return None
            if count <= TOP_CAPACITY:
                top = float(largest.rows()[:count, 0].sum())
            else:
                top = self._histogram.top_sum(count, np.abs if column == _SIZE else token_k3)
            return min(top / float(total[column]), 1.0)

        k3 = share(self._top_k3, _K3, self._max_log_ratio > EXP_LIMIT)
        return TopShare(fraction, k3, share(self._top_sizes, _SIZE, False))

    def _token_buckets(self, labels: IntArray, table: FloatArray) -> TokenBuckets:
        sums = table[:, [_LOG_RATIO, _SIZE, _K3, -1]]
        names = labels.astype(np.float64)
        return TokenBuckets(
            probability=self._buckets.probability(),
            position=self._buckets.position(),
            prompt=buckets_from_sums(sums, names, names),
            entropy=self._buckets.entropy(),
            token_class=self._buckets.token_class(),
        )

    def _worst_tokens(self, count: int) -> tuple[TokenAt, ...]:
        data = self._sequences.data()
        starts = np.concatenate([[0.0], np.cumsum(data[:, 2])])
        result = []
        for _, owner, position, rollout, train in self._worst.rows()[:count]:
            index = int(np.searchsorted(data[:, 0], owner))
            result.append(
                TokenAt(
                    sequence=index,
                    position=int(position),
                    token=int(starts[index] + position),
                    cluster=int(data[index, 1]),
                    log_ratio=float(train - rollout),
                    rollout_logprob=float(rollout),
                    train_logprob=float(train),
                )
            )
        return tuple(result)
