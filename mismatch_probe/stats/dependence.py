"""Do errors along a sequence add up independently? Variance of block sums against block length.

For independent errors the variance of a sum over b tokens grows like b; where errors persist (a wrong
key-value entry, a routing that stays flipped) it grows like b^(2H) with H > 1/2. The slope of log variance
against log b is 2H (the aggregated-variance method; Taqqu, Teverovsky and Willinger, Fractals 1995).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import ConfigError
from mismatch_probe.stats.estimate import Estimate
from mismatch_probe.stats.intervals import MIN_CLUSTERS, Statistic, interval_from_table
from mismatch_probe.stats.layout import FloatArray, IntArray, SequenceLayout, finite_array

MIN_BLOCKS = 32
MIN_BLOCK = 4
MAX_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class VarianceTime:
    """Variance of sums over blocks of consecutive tokens.

    Attributes:
        block_sizes: Tokens in a block.
        variances: Variance of the block sums (mean removed), nats^2.
        num_blocks: Blocks that each variance rests on.
        slope: Slope of log variance on log block size, 2H; 1 for independent errors.
    """

    block_sizes: tuple[int, ...]
    variances: tuple[float, ...]
    num_blocks: tuple[int, ...]
    slope: Estimate


def variance_time(series: npt.ArrayLike, block_sizes: Sequence[int] = (1, 2, 4, 8, 16)) -> VarianceTime:
    """One series, non-overlapping blocks from its start, sample variance (n - 1); no interval.

    Args:
        series: [tokens] log-ratios in order, nats.
        block_sizes: At least two different sizes that leave two blocks or more.

    Raises:
        ConfigError: Fewer than two usable block sizes.
        InconclusiveError: The series is empty or not finite.
    """
    values = finite_array(series, "series")
    sizes = tuple(dict.fromkeys(int(b) for b in block_sizes if 1 <= b <= values.size // 2))
    if len(sizes) < 2:
        raise ConfigError(f"{values.size} tokens leave fewer than two block sizes of {tuple(block_sizes)}")
    counts = tuple(values.size // size for size in sizes)
    variances = tuple(
        float(values[: count * size].reshape(count, size).sum(axis=1).var(ddof=1))
        for size, count in zip(sizes, counts, strict=True)
    )
    if min(variances) <= 0.0:
        slope = Estimate(None, None, None, values.size, "a block variance is 0")
    else:
        value = float(np.log(np.array(variances)) @ _slope_weights(sizes))
        slope = Estimate(value, None, None, values.size, "one series: no prompts to resample")
    return VarianceTime(sizes, variances, counts, slope)


def pooled_variance_time(log_ratio: FloatArray, layout: SequenceLayout) -> VarianceTime | None:
    """All sequences that are long enough, with an interval over prompts.

    Only the tokens that fill blocks of the largest size (`largest_block`) are used, the same ones at every
    size, so that sequences that differ in scale do not bend the line.

    Args:
        log_ratio: float64 [tokens], nats.
        layout: Its sequences and prompts.

    Returns:
        None where not even blocks of 4 tokens can be had, or nothing varies.
    """
    largest = largest_block(layout.lengths, layout.cluster_index)
    if largest == 0:
        return None
    sums = block_sums(log_ratio, layout, largest)
    return variance_time_from_table(
        np.column_stack(
            [
                np.bincount(layout.cluster_index, weights=column, minlength=layout.num_clusters)
                for column in sums.T
            ]
        )
    )


def largest_block(lengths: IntArray, clusters: IntArray) -> int:
    """The largest power of two, at most 1024, that leaves 32 blocks from 8 prompts; 0 where 4 does not.

    Args:
        lengths: int64 [sequences] tokens.
        clusters: int64 [sequences] prompt.
    """
    size = MAX_BLOCK
    while size >= MIN_BLOCK:
        blocks = lengths // size
        if blocks.sum() >= MIN_BLOCKS and np.unique(clusters[blocks > 0]).size >= MIN_CLUSTERS:
            return size
        size //= 2
    return 0


def block_sums(log_ratio: FloatArray, layout: SequenceLayout, largest: int) -> FloatArray:
    """What the block variances need of each sequence.

    Args:
        log_ratio: float64 [tokens], nats.
        layout: Its sequences.
        largest: Largest block, a power of two.

    Returns:
        float64 [sequences, log2(largest) + 3]: sum of squared block sums for block sizes 1, 2, 4 .. largest,
        sum of the log-ratios, and number of tokens; all over the tokens that fill blocks of the largest size.
    """
    blocks = layout.lengths // largest
    used = layout.token_position < np.repeat(blocks * largest, layout.lengths)
    sums = log_ratio[used]
    owner = np.repeat(np.arange(layout.num_sequences), blocks * largest)
    total = np.bincount(owner, weights=sums, minlength=layout.num_sequences)
    columns = []
    for power in range(int(largest).bit_length()):
        if power:
            sums, owner = sums.reshape(-1, 2).sum(axis=1), owner[::2]
        columns.append(np.bincount(owner, weights=sums * sums, minlength=layout.num_sequences))
    return np.column_stack([*columns, total, (blocks * largest).astype(np.float64)])


def variance_time_from_table(table: FloatArray) -> VarianceTime | None:
    """Block variances and their slope from one row of `block_sums` for each prompt.

    Args:
        table: float64 [prompts, sizes + 2]; prompts without tokens are left out here.

    Returns:
        None where nothing varies.
    """
    rows = table[table[:, -1] > 0]
    sizes = tuple(2**power for power in range(table.shape[1] - 2))
    tokens = int(rows[:, -1].sum())
    if tokens == 0:
        return None

    values = _variances(rows.sum(axis=0))
    if np.any(values <= 0.0):
        return None
    weights = _slope_weights(sizes)
    statistic = Statistic(lambda sums: np.asarray(np.log(_variances(sums)) @ weights))
    slope = interval_from_table(rows, statistic, n=tokens)
    return VarianceTime(sizes, tuple(float(v) for v in values), tuple(tokens // b for b in sizes), slope)


def block_slope(total: FloatArray) -> float | None:
    """The slope alone, without an interval; None where nothing varies.

    Args:
        total: float64 [sizes + 2], `block_sums` added up over all sequences.
    """
    values = _variances(total)
    if total[-1] <= 0.0 or np.any(values <= 0.0):
        return None
    return float(np.log(values) @ _slope_weights(tuple(2**power for power in range(total.size - 2))))


def _variances(sums: FloatArray) -> FloatArray:
    """Variances of block sums from their sums of squares, sum and tokens, [..., sizes]."""
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = sums[..., -2:-1] / sums[..., -1:]
        lengths = 2.0 ** np.arange(sums.shape[-1] - 2)
        return np.asarray(sums[..., :-2] * lengths / sums[..., -1:] - np.square(mean * lengths))


def _slope_weights(sizes: Sequence[int]) -> FloatArray:
    """Weights of the least-squares slope on log(sizes): slope = weights @ y."""
    x = np.log(np.array(sizes, dtype=np.float64))
    centred = x - x.mean()
    return np.asarray(centred / float(centred @ centred), dtype=np.float64)
