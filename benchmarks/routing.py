"""Compares the routing of a million tokens over 48 layers, top-8 of 128, and holds it against reading the same arrays once.

    python benchmarks/routing.py [--tokens 1_000_000] [--part 8192] [--flips 0.1] [--reordered 0.25]

Parts are made one at a time, so memory stays bounded. On each part these are timed one after the other, in an order that
changes from part to part:

    read      sum() of both arrays, the least that numpy can do with every id
    compare   compare_routes and token_flips: sets, order, top-1, missing routes, flips by token
    all       RoutingAccumulator.update: the same with expert load, sums by prompt and drift by flips

The ratio is the median over parts of compare / read; the bar is 4. Peak memory is that of the process (VmHWM).
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np

from mismatch_probe.routing.accumulate import RoutedPart, RoutingAccumulator
from mismatch_probe.routing.agreement import RouteComparer
from mismatch_probe.routing.flips import token_flips

LAYERS, EXPERTS, TOP_K = 48, 128, 8
SEQUENCE = 1024
BAR = 4.0


def make_part(
    rng: np.random.Generator, tokens: int, flips: float, reordered: float, layers: int = LAYERS
) -> RoutedPart:
    """Random distinct experts; on the training side some rows change one expert, others only their order."""
    shape = (tokens, layers)
    # Distinct without sorting: a random start and an odd stride walk through a power of two.
    start, stride = rng.integers(0, EXPERTS, shape), 2 * rng.integers(0, EXPERTS // 2, shape) + 1
    walk = start[..., None] + stride[..., None] * np.arange(TOP_K + 1)
    ids = (walk % EXPERTS).astype(np.int16)
    rollout, train = np.ascontiguousarray(ids[..., :TOP_K]), np.ascontiguousarray(ids[..., :TOP_K])
    swapped = rng.random(shape) < reordered
    train[swapped] = train[swapped][:, [1, 0, *range(2, TOP_K)]]
    flipped = rng.random(shape) < flips
    train[flipped, -1] = ids[flipped, -1]
    lengths = np.full(-(-tokens // SEQUENCE), SEQUENCE)
    lengths[-1] = tokens - lengths[:-1].sum()
    predicting = np.arange(tokens)
    return RoutedPart(
        rollout, train, lengths, rng.integers(0, 512, lengths.size), predicting, rng.normal(0, 0.05, tokens)
    )


def compare(part: RoutedPart, comparer: RouteComparer) -> int:
    """Compares a part in blocks, as the accumulator does; returns the number of flips."""
    step = max(1, (1 << 15) // LAYERS)
    found = 0
    for begin in range(0, len(part.rollout), step):
        span = slice(begin, begin + step)
        found += token_flips(comparer.compare(part.rollout[span], part.train[span])).rows.size
    return found


def read(part: RoutedPart) -> int:
    """One pass over both arrays."""
    return int(part.rollout.sum()) + int(part.train.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=lambda text: int(text.replace("_", "")), default=1_000_000)
    parser.add_argument("--part", type=lambda text: int(text.replace("_", "")), default=8192)
    parser.add_argument("--flips", type=float, default=0.1)
    parser.add_argument("--reordered", type=float, default=0.25)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    routing = RoutingAccumulator(num_layers=LAYERS, num_experts=EXPERTS, top_k=TOP_K)
    comparer = RouteComparer(num_experts=EXPERTS, top_k=TOP_K)
    work: dict[str, Callable[[RoutedPart], object]] = {
        "read": read,
        "compare": lambda part: compare(part, comparer),
        "all": routing.update,
    }
    seconds: dict[str, list[float]] = {name: [] for name in work}
    flips, done = 0, 0
    while done < options.tokens:
        part = make_part(rng, min(options.part, options.tokens - done), options.flips, options.reordered)
        names = list(work)
        turn = len(seconds["read"]) % len(names)
        for name in names[turn:] + names[:turn]:
            start = time.perf_counter()
            found = work[name](part)
            seconds[name].append(time.perf_counter() - start)
            if name == "compare":
                flips += int(found)  # type: ignore[call-overload]
        done += len(part.rollout)
    table = routing.by_layer.table()
    agreed = float(table[:, :LAYERS].sum())
    if agreed + flips != done * LAYERS:
        raise SystemExit(f"{agreed:.0f} agreeing and {flips} flipped rows are not {done * LAYERS}")
    print(
        f"tokens     {done:,} x {LAYERS} layers x top-{TOP_K} of {EXPERTS}, in {len(seconds['read'])} parts"
    )
    print(f"agreement  {agreed / (done * LAYERS):.4f} of token-layer pairs")
    for name, times in seconds.items():
        ratio = statistics.median(t / r for t, r in zip(times, seconds["read"], strict=True))
        print(f"{name:9}  {sum(times):6.2f} s, {ratio:.2f} times reading (median of parts)")
    print(f"memory     {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2:.2f} GiB at most")
    ratio = statistics.median(c / r for c, r in zip(seconds["compare"], seconds["read"], strict=True))
    if ratio > BAR:
        raise SystemExit(f"comparing takes {ratio:.2f} times reading, over the bar of {BAR:g}")


if __name__ == "__main__":
    main()
