"""Measures 100 million synthetic tokens part by part and prints peak memory and speed.

    python benchmarks/streaming.py [--tokens 100_000_000] [--part 500_000]

The yardstick is a plain numpy pass over the same parts: three exponentials and six sums. Peak memory is that
of the process (VmHWM), imports included; the bar is 1 GiB.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mismatch_probe.stats import DriftAccumulator

PROMPTS = 4096
MEAN_LENGTH = 800


@dataclass
class Part:
    """Whole sequences of a synthetic trace."""

    train: np.ndarray
    rollout: np.ndarray
    offsets: np.ndarray
    clusters: np.ndarray
    ids: np.ndarray


def parts(tokens: int, size: int) -> Iterator[Part]:
    """Gaussian drift of variance 0.002 on exponential log-probabilities, lengths spread around 800."""
    made, sequences = 0, 0
    rng = np.random.default_rng(0)
    while made < tokens:
        wanted = min(size, tokens - made)
        lengths = np.maximum(1, rng.gamma(3.0, MEAN_LENGTH / 3.0, 2 * wanted // MEAN_LENGTH + 2)).astype(
            np.int64
        )
        ends = np.cumsum(lengths)
        count = int(np.searchsorted(ends, wanted)) + 1
        ends = np.minimum(ends[:count], wanted)
        offsets = np.concatenate([[0], ends])
        rollout = -0.4 * rng.standard_exponential(wanted)
        train = rollout + 0.0447 * rng.standard_normal(wanted) - 0.001
        ids = np.arange(sequences, sequences + count)
        yield Part(train, rollout, offsets, ids // 8 % PROMPTS, ids)
        made += wanted
        sequences += count


def plain_pass(tokens: int, size: int) -> tuple[float, float]:
    """Seconds of exponentials and sums alone, and K3."""
    seconds, total = 0.0, np.zeros(6)
    for part in parts(tokens, size):
        start = time.perf_counter()
        log_ratio = part.train - part.rollout
        ratio = np.exp(log_ratio)
        total += [
            log_ratio.sum(),
            (log_ratio * log_ratio).sum(),
            ratio.sum(),
            (ratio * ratio).sum(),
            np.exp(part.train).sum(),
            np.exp(part.rollout).sum(),
        ]
        seconds += time.perf_counter() - start
    return seconds, float(total[2] - tokens - total[0]) / tokens


def accumulate(tokens: int, size: int) -> tuple[float, float, DriftAccumulator]:
    """Seconds of updates, seconds of both summaries, and the accumulator."""
    accumulator = DriftAccumulator(largest_block=256)
    seconds = 0.0
    for part in parts(tokens, size):
        start = time.perf_counter()
        accumulator.update(part.train, part.rollout, part.offsets, part.clusters, part.ids)
        seconds += time.perf_counter() - start
    start = time.perf_counter()
    accumulator.tokens()
    accumulator.sequences()
    return seconds, time.perf_counter() - start, accumulator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=lambda text: int(text.replace("_", "")), default=100_000_000)
    parser.add_argument("--part", type=lambda text: int(text.replace("_", "")), default=500_000)
    options = parser.parse_args()
    update, finish, accumulator = accumulate(options.tokens, options.part)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    plain, naive_k3 = plain_pass(options.tokens, options.part)
    tokens, sequences = accumulator.tokens(), accumulator.sequences()
    print(
        f"tokens            {tokens.num_tokens:,} in {sequences.num_sequences:,} sequences of {PROMPTS:,} prompts"
    )
    print(f"peak memory       {peak:.2f} GiB (bar 1 GiB)")
    print(f"update            {update:.1f} s, {tokens.num_tokens / update / 1e6:.2f} million tokens a second")
    print(f"both summaries    {finish:.1f} s")
    print(f"plain numpy pass  {plain:.1f} s, {tokens.num_tokens / plain / 1e6:.2f} million tokens a second")
    print(f"ratio             {update / plain:.1f} times a plain pass")
    print(
        f"K3                {tokens.k3.value:.9g} [{tokens.k3.ci_low:.6g}, {tokens.k3.ci_high:.6g}], plain {naive_k3:.9g}"
    )
    growth = sequences.length_law.slope
    print(f"growth of variance {growth.value:.4f} [{growth.ci_low:.4f}, {growth.ci_high:.4f}], planted 1")
    if peak > 1.0:
        raise SystemExit("over the bar of 1 GiB")


if __name__ == "__main__":
    main()
