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
from mismatch_probe.stats.layout import FloatArray, SequenceLayout, finite_array

MIN_BLOCKS = 32
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

    The largest block is the largest power of two (at most 1024) that still leaves 32 blocks from 8 prompts;
    only the tokens that fill such blocks are used, the same ones at every size, so that sequences that differ
    in scale do not bend the line. The mean that is removed is that of all tokens used.

    Args:
        log_ratio: float64 [tokens], nats.
        layout: Its sequences and prompts.

    Returns:
        None where not even blocks of 4 tokens can be had, or nothing varies.
    """
    largest = _largest_block(layout)
    if largest < 4:
        return None
    blocks = layout.lengths // largest
    used = layout.token_position < np.repeat(blocks * largest, layout.lengths)
    values = log_ratio[used]
    values = values - values.mean()
    block_cluster = np.repeat(layout.cluster_index, blocks)
    sizes = tuple(2**power for power in range(int(np.log2(largest)) + 1))
    columns, counts = [], []
    for size in sizes:
        sums = values.reshape(-1, size).sum(axis=1)
        clusters = np.repeat(block_cluster, largest // size)
        squares = np.bincount(clusters, weights=sums * sums, minlength=layout.num_clusters)
        columns.append(squares / (values.size // size))
        counts.append(values.size // size)
    table = np.column_stack(columns)[np.bincount(block_cluster, minlength=layout.num_clusters) > 0]
    variances = table.sum(axis=0)
    if np.any(variances <= 0.0):
        return None
    weights = _slope_weights(sizes)
    slope = interval_from_table(
        table, Statistic(lambda sums: np.asarray(np.log(sums) @ weights)), n=int(values.size)
    )
    return VarianceTime(sizes, tuple(float(v) for v in variances), tuple(counts), slope)


def _largest_block(layout: SequenceLayout) -> int:
    size = MAX_BLOCK
    while size >= 4:
        blocks = layout.lengths // size
        prompts = np.unique(layout.cluster_index[blocks > 0]).size
        if blocks.sum() >= MIN_BLOCKS and prompts >= MIN_CLUSTERS:
            return size
        size //= 2
    return 0


def _slope_weights(sizes: Sequence[int]) -> FloatArray:
    """Weights of the least-squares slope on log(sizes): slope = weights @ y."""
    x = np.log(np.array(sizes, dtype=np.float64))
    centred = x - x.mean()
    return np.asarray(centred / float(centred @ centred), dtype=np.float64)
