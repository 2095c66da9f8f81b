"""How often `diff` calls two runs different that are not, and how often it sees a planted change.

    python -m benchmarks.diff_false_alarms [--replicates 1000] [--processes 2]

Prints the tables of docs/diff.md. Runs are planted by `benchmarks.planted_drift`: other prompts, or the same prompts with other
responses (prompts then share what is theirs, so that pairing matters). Seeded.
"""

from __future__ import annotations

import argparse
import itertools
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.planted_drift import DRIFTS, Drift, LogRatios, draw_log_ratios
from mismatch_probe.compare.differences import Difference, RunSums, compare_sums
from mismatch_probe.compare.metrics import applicable, drift_sums
from mismatch_probe.stats.layout import SequenceLayout

SAMPLES, LENGTH = 4, 60
PROMPTS = (16, 64)


@dataclass(frozen=True)
class Case:
    """Two runs.

    Attributes:
        drift: Of the first.
        prompts: In each.
        paired: The same prompts.
        factor: Variance of the second over that of the first.
    """

    drift: Drift
    prompts: int
    paired: bool
    factor: float = 1.0


def sums_of(data: LogRatios, *, name: str) -> RunSums:
    """A run as sums by prompt; prompts of another name are other prompts."""
    layout = SequenceLayout.from_arrays(data.offsets, data.clusters)
    keys = tuple(f"{name}{label}".encode() for label in np.unique(data.clusters))
    return RunSums(keys, drift_sums(data.log_ratio, layout))


def draw_pair(case: Case, rng: np.random.Generator) -> tuple[RunSums, RunSums]:
    """Two runs of a case."""
    drift = case.drift
    if not case.paired:
        other = replace(drift, variance=drift.variance * case.factor)
        first, second = (draw_log_ratios(d, case.prompts, SAMPLES, LENGTH, rng) for d in (drift, other))
        return sums_of(first, name="a"), sums_of(second, name="b")
    whole = draw_log_ratios(drift, case.prompts, 2 * SAMPLES, LENGTH, rng)
    mine = np.tile(np.arange(2 * SAMPLES) < SAMPLES, case.prompts)
    first, second = (_subset(whole, pick) for pick in (mine, ~mine))
    if case.factor != 1.0:
        second = replace(second, log_ratio=second.log_ratio * np.sqrt(case.factor))
    return sums_of(first, name="p"), sums_of(second, name="p")


def _subset(data: LogRatios, pick: np.ndarray) -> LogRatios:
    lengths = np.diff(data.offsets)
    tokens = np.repeat(pick, lengths)
    return LogRatios(
        data.log_ratio[tokens], np.concatenate([[0], np.cumsum(lengths[pick])]), data.clusters[pick]
    )


def compare(case: Case, replicate: int) -> tuple[Difference, ...]:
    """One replicate; each has a random stream of its own."""
    seed = zlib.crc32(repr((case.drift.name, case.prompts, case.paired)).encode())
    first, second = draw_pair(case, np.random.default_rng([seed, replicate]))
    return compare_sums(first, second, applicable(first.columns, second.columns, ()), seed=replicate)


def beyond(case: Case, replicates: range) -> dict[str, int]:
    """In how many replicates each metric is beyond noise, and any of them (`any`), and K3 unknown."""
    counts = {"any": 0, "unknown": 0}
    for replicate in replicates:
        found = {item.name: item.beyond_noise for item in compare(case, replicate)}
        counts["any"] += "yes" in found.values()
        counts["unknown"] += found["k3"] == "unknown"
        for name, state in found.items():
            counts[name] = counts.get(name, 0) + (state == "yes")
    return counts


def cases(factor: float = 1.0) -> Iterator[Case]:
    """Every planted drift, both ways of drawing, both numbers of prompts."""
    for prompts in PROMPTS:
        for paired in (False, True):
            for drift in DRIFTS:
                yield Case(drift, prompts, paired, factor)


def _share(case: Case, replicates: int, processes: int, pool: ProcessPoolExecutor) -> dict[str, float]:
    bounds = np.linspace(0, replicates, 4 * processes + 1).astype(int)
    parts = [range(low, high) for low, high in itertools.pairwise(bounds)]
    total: dict[str, int] = {}
    for counts in pool.map(beyond, [case] * len(parts), parts):
        for name, count in counts.items():
            total[name] = total.get(name, 0) + count
    return {name: count / replicates for name, count in total.items()}


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replicates", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--factors", type=float, nargs="+", default=[1.0, 1.5, 2.0])
    options = parser.parse_args()
    with ProcessPoolExecutor(options.processes) as pool:
        for factor in options.factors:
            print(f"\n## variance of the second run: {factor:g} times, {options.replicates} replicates\n")
            print(
                "| drift | prompts | | any metric | K3 | standard deviation of log W |\n|---|---:|---|---:|---:|---:|"
            )
            for case in cases(factor):
                if factor != 1.0 and (case.drift.shape == "outliers" and not case.paired):
                    continue  # its outliers have a size of their own
                found = _share(case, options.replicates, options.processes, pool)
                kind = "same prompts" if case.paired else "other prompts"
                print(
                    f"| {case.drift.name} | {case.prompts} | {kind} | {100 * found['any']:.1f} % | {100 * found['k3']:.1f} % "
                    f"| {100 * found['log_weight_std']:.1f} % |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
