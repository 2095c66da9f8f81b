"""Bias and coverage of the intervals, false alarms and detection of the validity checks, on planted data.

    python benchmarks/stats_simulation.py [--replicates 2000] [--processes 2] [--out docs]

Writes docs/statistics-simulation.md and docs/images/statistics-simulation.png. Seeded: the same options give
the same tables. Replicate r of a scenario has its own random stream, so that more replicates extend fewer.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.planted_drift import (
    DRIFTS,
    OUTSIDE_CLAIM,
    Drift,
    LawModel,
    Laws,
    LogRatios,
    draw_laws,
    draw_log_ratios,
    shifted,
)
from mismatch_probe.stats import Estimate, SequenceLayout, length_law, token_k2
from mismatch_probe.stats.dependence import block_sums, variance_time_from_table
from mismatch_probe.stats.means import (
    effective_fraction,
    k3_mean,
    mean_weight_estimate,
    sequence_chi2,
    sequence_mean,
    standard_deviation,
    token_chi2,
    token_mean,
    token_mean_ratio,
)
from mismatch_probe.stats.tails import extreme_rates
from mismatch_probe.stats.validity import validity_checks

SAMPLES, LENGTH = 4, 60
PROMPTS = (8, 16, 48)
NOMINAL = (0.93, 0.97)
POPULATION = 40_000
TAU = 1.1
GROWTH = "growth of variance"


def estimates(data: LogRatios) -> dict[str, Estimate]:
    """Every statistic that claims an interval, by name."""
    layout = SequenceLayout.from_arrays(data.offsets, data.clusters)
    log_ratio = data.log_ratio
    log_weight = layout.sequence_sums(log_ratio)
    law = length_law(log_weight, layout.lengths, layout.clusters, log_ratio=log_ratio)
    return {
        "mean log-ratio": token_mean(log_ratio, layout),
        "K2": token_mean(token_k2(log_ratio), layout, positive=True),
        "K3": k3_mean(log_ratio, layout),
        "mean abs log-ratio": token_mean(np.abs(log_ratio), layout, positive=True),
        "mean ratio": token_mean_ratio(log_ratio, layout),
        "chi2 of tokens": token_chi2(log_ratio, layout),
        f"rate of ratios beyond {TAU}": extreme_rates(log_ratio, (TAU,), layout.token_cluster)[0].rate,
        "mean log W": sequence_mean(log_weight, layout),
        "std of log W": standard_deviation(log_weight, layout),
        "ESS fraction": effective_fraction(log_weight, layout),
        "chi2 of sequences": sequence_chi2(log_weight, layout),
        "mean weight": mean_weight_estimate(log_weight, layout),
        "kappa": law.kappa,
        "variance per token": law.variance_per_token,
        "Gaussian ratio": law.gaussian_ratio,
        f"{GROWTH} {0 if law.variance_time is None else law.variance_time.block_sizes[-1]}": law.slope,
    }


@dataclass(frozen=True)
class Coverage:
    """One row of the first table.

    `covered` is among the intervals given; `relative_bias` is the mean error over the truth (over the spread
    where the truth is near 0).
    """

    drift: str
    prompts: int
    statistic: str
    truth: float
    relative_bias: float
    given: float
    covered: float
    too_low: float
    too_high: float
    drawn: int


AT_LEAST = ("Gaussian ratio", "ESS fraction", "chi2 of sequences", "mean weight")
"""One-sided where the data say no more, or widened by a model: claimed to cover 93 % or more."""


def claim(drift: str | None, prompts: int, statistic: str) -> str | None:
    """What the documentation claims of an interval: `interval` (93-97 %), `at least` (93 %), or None."""
    kind = "at least" if statistic in AT_LEAST else "interval"
    if drift is None:
        return kind
    spread = next(d.prompt_spread for d in (*DRIFTS, *OUTSIDE_CLAIM) if d.name == drift)
    outliers = next(d.shape for d in (*DRIFTS, *OUTSIDE_CLAIM) if d.name == drift) == "outliers"
    if spread > 0.35 or (outliers and statistic in ("mean ratio", "chi2 of tokens")):
        return None
    if statistic in ("ESS fraction", "chi2 of sequences", "mean weight"):
        return kind if spread <= 0.25 and not outliers and not _strong(drift) else None
    if statistic in ("std of log W", "variance per token"):
        return kind if prompts >= (48 if spread > 0.25 else 16) else None
    if outliers and statistic in ("K2", "K3") and prompts < 48:
        # A few prompts hold the outliers: resampling errs to the wide side.
        return "at least"
    if statistic.startswith("rate"):
        return kind if prompts >= 16 else None
    return kind


def _strong(drift: str) -> bool:
    """Dependence so strong that log W varies by more than 1 nat^2: refused rather than judged."""
    return any(d.name == drift and (d.sequence_share or d.autocorrelation) for d in DRIFTS)


def coverage_study(
    drifts: Iterable[Drift], prompts: Iterable[int], replicates: int, workers: Map
) -> list[Coverage]:
    """Draws, measures and counts; growth is compared with that of the population over the same blocks."""
    rows = []
    for drift in drifts:
        truth = _truth(drift)
        for count in prompts:
            jobs = [(drift, count, r) for r in range(replicates)]
            results = list(workers(_replicate, jobs))
            # Each sample of the growth has its own truth, that of the blocks it could use.
            pairs: dict[str, list[tuple[Estimate, float]]] = {}
            for result in results:
                for name, estimate in result.items():
                    if name in truth:
                        label = GROWTH if name.startswith(GROWTH) else name
                        pairs.setdefault(label, []).append((estimate, truth[name]))
            rows += [_coverage(drift.name, count, name, drawn, replicates) for name, drawn in pairs.items()]
            print(f"{drift.name}, {count} prompts: done", file=sys.stderr, flush=True)
    return rows


def _truth(drift: Drift) -> dict[str, float]:
    """Values over 40000 prompts: their own error is 1 to 4 % of that of the samples."""
    rng = np.random.default_rng((zlib.crc32(drift.name.encode()), 1))
    parts = [draw_log_ratios(drift, POPULATION // 10, SAMPLES, LENGTH, rng) for _ in range(10)]
    shift = np.cumsum([0, *(part.offsets[-1] for part in parts[:-1])])
    log_ratio = np.concatenate([part.log_ratio for part in parts])
    offsets = np.concatenate([[0], *(part.offsets[1:] + by for part, by in zip(parts, shift, strict=True))])
    # One cluster: the value alone is wanted, and no interval takes no time.
    whole = LogRatios(log_ratio, offsets, np.zeros(offsets.size - 1, dtype=np.int64))
    values = {name: estimate.value for name, estimate in estimates(whole).items() if GROWTH not in name}
    layout = SequenceLayout.from_arrays(offsets)
    for power in range(2, 10):
        table = block_sums(log_ratio, layout, 2**power).sum(axis=0, keepdims=True)
        growth = variance_time_from_table(table)
        if growth is not None:
            values[f"{GROWTH} {2**power}"] = growth.slope.value
    return {name: float(value) for name, value in values.items() if value is not None}


def _replicate(job: tuple[Drift, int, int]) -> dict[str, Estimate]:
    drift, prompts, number = job
    rng = np.random.default_rng((zlib.crc32(drift.name.encode()), prompts, number))
    return estimates(draw_log_ratios(drift, prompts, SAMPLES, LENGTH, rng))


def _coverage(
    drift: str, prompts: int, name: str, drawn: list[tuple[Estimate, float]], replicates: int
) -> Coverage:
    errors = np.array([e.value - truth for e, truth in drawn if e.value is not None])
    # An interval with a lower end only is one up to infinity.
    given = [(e, truth) for e, truth in drawn if e.ci_low is not None]
    low = np.mean([e.ci_high is not None and e.ci_high < truth for e, truth in given]) if given else np.nan
    high = np.mean([e.ci_low > truth for e, truth in given]) if given else np.nan
    truth = float(np.mean([truth for _, truth in drawn]))
    scale = max(abs(truth), float(errors.std()) if errors.size else 0.0, 1e-300)
    bias = float(errors.mean()) / scale if errors.size else np.nan
    return Coverage(
        drift, prompts, name, truth, bias, len(given) / replicates, 1.0 - low - high, low, high, replicates
    )


@dataclass(frozen=True)
class Scenario:
    """Laws, possibly broken, and the check that should say so (None for clean data)."""

    name: str
    model: LawModel
    code: str | None = None
    fault: Callable[[Laws, np.random.Generator], Laws] | None = None
    prompts: int = 16
    samples: int = 4
    length: int = 80
    entropy: bool = True


def _swap_sides(laws: Laws, rng: np.random.Generator) -> Laws:
    return replace(laws, train=laws.rollout, rollout=laws.train)


def _shift_all(laws: Laws, rng: np.random.Generator) -> Laws:
    return shifted(laws, int(rng.choice([-2, -1, 1, 2])))


def _shift_one(laws: Laws, rng: np.random.Generator) -> Laws:
    return shifted(laws, 1, rng.integers(0, laws.clusters.size, 1))


def _pad_one(laws: Laws, rng: np.random.Generator) -> Laws:
    rollout, train = laws.rollout.copy(), laws.train.copy()
    stop = laws.offsets[1 + rng.integers(0, laws.clusters.size)]
    rollout[stop - 4 : stop], train[stop - 4 : stop] = 0.0, -rng.exponential(5.0, 4)
    return replace(laws, rollout=rollout, train=train)


def _not_a_number(laws: Laws, rng: np.random.Generator) -> Laws:
    train = laws.train.copy()
    train[rng.integers(0, train.size)] = np.nan
    return replace(laws, train=train)


def _above_one(laws: Laws, rng: np.random.Generator) -> Laws:
    train = laws.train.copy()
    train[rng.integers(0, train.size)] = rng.exponential(0.5) + 1e-3
    return replace(laws, train=train)


def _constant_side(laws: Laws, rng: np.random.Generator) -> Laws:
    return replace(laws, rollout=np.zeros_like(laws.rollout))


def _appended_end(laws: Laws, rng: np.random.Generator) -> Laws:
    train = laws.train.copy()
    last = laws.offsets[1:] - 1
    train[last] = laws.rollout[last] - rng.exponential(4.0, last.size)
    return replace(laws, train=train)


def _duplicate_row(laws: Laws, rng: np.random.Generator) -> Laws:
    lengths = np.diff(laws.offsets)
    order = rng.permutation(lengths.size)
    for i in order:
        for j in order:
            if i < j and lengths[i] == lengths[j] >= 20:
                train = laws.train.copy()
                train[laws.offsets[j] : laws.offsets[j + 1]] = laws.train[
                    laws.offsets[i] : laws.offsets[i + 1]
                ]
                return replace(laws, train=train)
    return laws


def _foreign_edge(laws: Laws, rng: np.random.Generator) -> Laws:
    train = laws.train.copy()
    train[laws.offsets[:-1]] = laws.rollout[laws.offsets[:-1]] - rng.exponential(4.0, laws.clusters.size)
    return replace(laws, train=train)


def _other_ids_one(laws: Laws, rng: np.random.Generator) -> Laws:
    train = laws.train.copy()
    index = int(rng.integers(0, laws.clusters.size))
    part = slice(laws.offsets[index], laws.offsets[index + 1])
    train[part] = rng.permutation(laws.train)[: part.stop - part.start]
    return replace(laws, train=train)


def _other_ids_tail(laws: Laws, rng: np.random.Generator) -> Laws:
    train = laws.train.copy()
    index = int(rng.integers(0, laws.clusters.size))
    start, stop = laws.offsets[index], laws.offsets[index + 1]
    start = max(start, stop - max(20, int(0.4 * (stop - start))))
    train[start:stop] = rng.permutation(laws.train)[: stop - start]
    return replace(laws, train=train)


def _swap_rows(laws: Laws, rng: np.random.Generator) -> Laws:
    lengths = np.diff(laws.offsets)
    order = rng.permutation(lengths.size)
    for i in order:
        for j in order:
            if i < j and lengths[i] == lengths[j] >= 20:
                one, two = (slice(laws.offsets[k], laws.offsets[k + 1]) for k in (i, j))
                train = laws.train.copy()
                train[one], train[two] = laws.train[two], laws.train[one]
                return replace(laws, train=train)
    return laws


def _sentinel(laws: Laws, rng: np.random.Generator) -> Laws:
    rollout = laws.rollout.copy()
    rollout[rng.integers(0, rollout.size)] = -9999.0
    return replace(laws, rollout=rollout)


CLEAN = (
    Scenario("float32 rounding only (1e-7)", LawModel(noise=1e-7)),
    Scenario("bf16-like noise 0.02", LawModel(noise=0.02)),
    Scenario("noise 0.1", LawModel(noise=0.1)),
    Scenario("noise 0.1, 4 prompts", LawModel(noise=0.1), prompts=4),
    Scenario("heavy noise (t3 x 0.15)", LawModel(noise=0.15, heavy=True)),
    Scenario("heavy noise, prompts differ twofold", LawModel(noise=0.1, heavy=True, prompt_spread=0.7)),
)
FAULTS = (
    Scenario("sentinel -9999 in one token", LawModel(), "MP102", _sentinel),
    Scenario("NaN in one token", LawModel(), "MP102", _not_a_number),
    Scenario("4 padding tokens in one sequence", LawModel(), "MP102", _pad_one),
    Scenario("other ids in one sequence", LawModel(), "MP101", _other_ids_one),
    Scenario("other ids from 60 % of one sequence on", LawModel(), "MP101", _other_ids_tail),
    Scenario("first token is not a sampled one", LawModel(), "MP101", _foreign_edge),
    Scenario("end token appended, not sampled", LawModel(), "MP101", _appended_end),
    Scenario("one probability above 1", LawModel(), "MP103", _above_one),
    Scenario("rollout side all zeros", LawModel(), "MP108", _constant_side),
    Scenario("one row written twice", LawModel(), "MP110", _duplicate_row),
    Scenario("sides swapped, noise 0.1", LawModel(noise=0.1), "MP104", _swap_sides),
    Scenario("sides swapped, noise 0.2", LawModel(noise=0.2), "MP104", _swap_sides),
    Scenario("all shifted by 1 or 2", LawModel(), "MP105", _shift_all),
    Scenario("one sequence shifted by 1", LawModel(), "MP105", _shift_one),
    Scenario("rollout temperature 0.7", LawModel(rollout_temperature=0.7), "MP106"),
    Scenario("rollout temperature 0.9", LawModel(rollout_temperature=0.9), "MP106"),
    Scenario("rollout temperature 0.95", LawModel(rollout_temperature=0.95), "MP106"),
    Scenario("training temperature 0.7", LawModel(train_temperature=0.7), "MP106"),
    Scenario("top-p 0.99", LawModel(top_p=0.99), "MP107"),
    Scenario("top-p 0.95", LawModel(top_p=0.95), "MP107"),
    Scenario("top-p 0.95, heavy noise", LawModel(top_p=0.95, noise=0.15, heavy=True), "MP107"),
    Scenario("top-k 20 of 64", LawModel(top_k=20), "MP107"),
    Scenario("bfloat16 logits", LawModel(bfloat16=True), "MP109"),
    Scenario("bfloat16 logits, noise 0.1", LawModel(bfloat16=True, noise=0.1), "MP109"),
    Scenario("two rows swapped", LawModel(), "MP110", _swap_rows),
    Scenario(
        "raw log-probabilities, temperature 0.7", LawModel(rollout_temperature=0.7, log_raw=True), "MP111"
    ),
    Scenario(
        "raw log-probabilities, temperature 0.9", LawModel(rollout_temperature=0.9, log_raw=True), "MP111"
    ),
    Scenario("raw log-probabilities, top-p 0.95", LawModel(top_p=0.95, log_raw=True), "MP111"),
)


@dataclass(frozen=True)
class Alarms:
    """How often each check failed, by code, over `replicates`; `any_check` of them at once."""

    scenario: Scenario
    replicates: int
    rates: dict[str, float]
    any_check: float


def validity_study(scenarios: Iterable[Scenario], replicates: int, workers: Map) -> list[Alarms]:
    """Draws laws and counts failing checks."""
    rows = []
    for scenario in scenarios:
        found = list(workers(_failing, [(scenario, r) for r in range(replicates)]))
        codes = sorted(set().union(*found))
        rates = {code: float(np.mean([code in codes_ for codes_ in found])) for code in codes}
        print(f"{scenario.name}: done", file=sys.stderr, flush=True)
        rows.append(Alarms(scenario, replicates, rates, float(np.mean([bool(codes_) for codes_ in found]))))
    return rows


def _failing(job: tuple[Scenario, int]) -> frozenset[str]:
    scenario, number = job
    rng = np.random.default_rng((zlib.crc32(scenario.name.encode()), number))
    laws = draw_laws(scenario.model, scenario.prompts, scenario.samples, scenario.length, rng)
    if scenario.fault is not None:
        laws = scenario.fault(laws, rng)
    entropy = laws.entropy if scenario.entropy else None
    checks = validity_checks(laws.train, laws.rollout, laws.offsets, laws.clusters, entropy=entropy)
    return frozenset(check.code for check in checks if check.status == "fail")


Map = Callable[[Callable, list], Iterable]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicates", type=int, default=2000)
    parser.add_argument("--laws", type=int, default=1000, help="replicates of each validity scenario")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()
    from benchmarks.stats_report import write_figure, write_markdown

    with ProcessPoolExecutor(options.processes) as pool:

        def workers(function: Callable, jobs: list) -> Iterable:
            return pool.map(function, jobs, chunksize=max(1, len(jobs) // (8 * options.processes)))

        claimed = coverage_study(DRIFTS, PROMPTS, options.replicates, workers)
        outside = coverage_study(OUTSIDE_CLAIM, PROMPTS, options.replicates, workers)
        clean = validity_study(CLEAN, options.laws, workers)
        faults = validity_study(FAULTS, max(options.laws // 5, 20), workers)
    options.out.joinpath("images").mkdir(parents=True, exist_ok=True)
    figure = options.out / "images" / "statistics-simulation.png"
    write_figure(figure, claimed, outside, clean, faults)
    write_markdown(options.out / "statistics-simulation.md", claimed, outside, clean, faults)
    off = [row for row in claimed if not _holds(row)]
    for row in off:
        print(
            f"{row.drift}; {row.prompts} prompts; {row.statistic}: {row.covered:.1%}, given {row.given:.0%}"
        )
    print(
        f"{len(off)} claims of {sum(claim(r.drift, r.prompts, r.statistic) is not None for r in claimed)} do not hold"
    )


def _holds(row: Coverage) -> bool:
    kind = claim(row.drift, row.prompts, row.statistic)
    if kind is None or row.given < 0.05:
        return True
    return row.covered >= NOMINAL[0] and (kind == "at least" or row.covered <= NOMINAL[1])


if __name__ == "__main__":
    main()
