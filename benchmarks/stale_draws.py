"""Measured updates against Gaussian ones of the same variance: the tables of docs/staleness.md.

python -m benchmarks.stale_draws RUN      for a run whose staleness was measured
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mismatch_probe.simulate.stale_updates import stale_log_ratio
from mismatch_probe.simulate.staleness import StalenessFit
from mismatch_probe.stages.staleness import read_staleness
from mismatch_probe.stats import Estimate, effective_sample_size
from mismatch_probe.trace.run_directory import RunDirectory

RESPONSES = 4000


def shown(estimate: Estimate | None, form: str) -> str:
    """A number and its interval."""
    if estimate is None or estimate.value is None:
        return "-"
    if estimate.ci_low is None or estimate.ci_high is None:
        return f"{estimate.value:{form}} (none)"
    high = f"{estimate.ci_high:{form}}" if estimate.ci_high < 100 else "> 100"
    return f"{estimate.value:{form}} ({estimate.ci_low:{form}} to {high})"


def print_points(fit: StalenessFit) -> None:
    """What each checkpoint says."""
    print(f"{fit.model}\ngrowth {shown(fit.growth, '.2f')}, misfit {fit.misfit:.2f}, {fit.notes}\n")
    print(
        "| k | K3 | K3, weighted | K2 in float32 | std of log(pi_k/pi_old) | Gaussian of K3 | the law | mean abs |"
    )
    print("|---|---|---|---|---|---|---|---|")
    length = fit.updates.layout.lengths.mean()
    for point in fit.points:
        law = np.sqrt(2.0 * float(fit.model.kl(point.steps)) * length)
        print(
            f"| {point.steps:g} | {shown(point.kl, '.1e')} | {shown(point.kl_weighted, '.1e')} |"
            f" {shown(point.half_square, '.1e')} | {shown(point.std_log_weight, '.2f')} | {point.gaussian_std:.2f} |"
            f" {law:.2f} | {point.mean_abs.value:.1e} |"
        )


def print_factors(fit: StalenessFit) -> None:
    """Whether the two factors of W are independent."""
    updates = fit.updates
    mismatch = updates.layout.sequence_sums(updates.mismatch)
    print(
        "\n| k | correlation of tokens | std of log W | if the factors were independent |\n|---|---|---|---|"
    )
    for steps, row in zip(updates.steps, updates.log_ratio, strict=True):
        update = updates.layout.sequence_sums(row)
        print(
            f"| {steps:g} | {np.corrcoef(row, updates.mismatch)[0, 1]:.2f} | {np.std(update + mismatch):.2f} |"
            f" {np.hypot(update.std(), mismatch.std()):.2f} |"
        )


def summary(log_weight: npt.NDArray[np.float64]) -> str:
    """The spread of log W, and what VESPO (c1 = 2, c2 = 3) and the effective size make of it."""
    phi = np.exp(2.0 * log_weight + 3.0 * (1.0 - np.exp(np.minimum(log_weight, 700.0))))
    return (
        f"{log_weight.std():.2f} | {np.median(np.abs(log_weight)):.2f} | {np.mean(np.abs(log_weight) > 1):.3f} |"
        f" {phi.mean():.3f} | {effective_sample_size(log_weight).fraction:.2f}"
    )


def print_draws(fit: StalenessFit, steps: Sequence[int], lengths: Sequence[int]) -> None:
    """Made-up responses: measured updates against independent Gaussian ones at the law's KL."""
    print("\n| k | tokens | drawn | std of log W | median abs | beyond 1 nat | VESPO Z+ | ESS |")
    print("|---|---|---|---|---|---|---|---|")
    for k in steps:
        for length in lengths:
            drawn = stale_log_ratio(
                fit.updates, np.full(RESPONSES, k), fit.model.growth, np.random.default_rng(1), length=length
            )
            kl = float(fit.model.kl(k))
            noise = np.random.default_rng(2).normal(-kl, np.sqrt(2.0 * kl), drawn.update.shape)
            mismatch = drawn.mismatch.sum(axis=1)
            print(f"| {k} | {length} | measured | {summary(drawn.update.sum(axis=1) + mismatch)} |")
            print(f"| {k} | {length} | Gaussian | {summary(noise.sum(axis=1) + mismatch)} |")


def main() -> None:
    """Reads the run and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    options = parser.parse_args()
    fit = read_staleness(RunDirectory.open_existing(options.run))
    if fit is None or fit.updates is None:
        raise SystemExit(f"{options.run}: no staleness was measured, or its legs are gone")
    print_points(fit)
    print_factors(fit)
    print_draws(fit, steps=(1, 8, 64), lengths=(55, 512))


if __name__ == "__main__":
    main()
