"""Tuned corrections on drift whose law is known: do budgets hold on other prompts, do intervals cover?

    python benchmarks/tuning_simulation.py [--replicates 400] [--processes 2] [--out docs]

Writes docs/tuning-simulation.md. Seeded: the same options give the same tables. A token's log-ratio is a mean
plus a part of its prompt, a part of its response and a part of its own, all Gaussian, such that log W ~
N(-s / 2, s): every true value below is exact or integrated.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.stats import norm

from mismatch_probe.simulate import Responses, tune_method, tune_vespo
from mismatch_probe.simulate.gaussian import gaussian_response
from mismatch_probe.simulate.tuning import ThresholdFit, VespoTuning
from mismatch_probe.stats.estimate import Estimate

SAMPLES, LENGTH = 4, 20
PROMPTS = (16, 48, 128)
VARIANCES = (0.25, 1.0, 4.0)
# Shares of the variance of log W: what a prompt's responses have in common, and what a response's tokens have.
PROMPT_SHARE, RESPONSE_SHARE = 0.15, 0.25
BUDGETS = ((1.0, 1.0), (0.7, 0.9))
ALPHAS = (2.0, 3.0)
KEPT = 0.9
# Between the effective size without a cap and 1.
EFFECTIVE = {"token_tis": 0.98, "seq_tis": 0.7}
FITTED = ("token_tis", "icepop", "seq_tis", "seq_mis", "geo_rs", "k3_rs", "opsm")
Map = Callable[[Callable, list], Iterable]


def draw(variance: float, prompts: int, rng: np.random.Generator) -> Responses:
    """Responses of which every second one has a positive advantage, the others a negative one."""
    return responses_of(log_ratios(variance, prompts, rng), prompts)


def log_ratios(variance: float, prompts: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """[prompts, samples, tokens]; sums over tokens are N(-variance / 2, variance)."""
    per_token = np.sqrt(variance) / LENGTH
    shared = rng.normal(0.0, np.sqrt(PROMPT_SHARE) * per_token, (prompts, 1, 1))
    shared = shared + rng.normal(0.0, np.sqrt(RESPONSE_SHARE) * per_token, (prompts, SAMPLES, 1))
    own = rng.normal(0.0, token_noise(variance), (prompts, SAMPLES, LENGTH))
    return shared + own - variance / (2 * LENGTH)


def token_noise(variance: float) -> float:
    """Standard deviation of a token's own part."""
    return float(np.sqrt((1 - PROMPT_SHARE - RESPONSE_SHARE) * variance / LENGTH))


def token_law(variance: float) -> tuple[float, float]:
    """Mean and standard deviation of a token's log-ratio."""
    shared = (PROMPT_SHARE + RESPONSE_SHARE) * variance / LENGTH**2
    return -variance / (2 * LENGTH), float(np.sqrt(shared + token_noise(variance) ** 2))


def responses_of(ratios: npt.NDArray[np.float64], prompts: int) -> Responses:
    """As the tool holds them."""
    flat = ratios.reshape(-1)
    rollout = np.minimum(-1.0, -1.0 - flat)
    return Responses.of(
        rollout + flat,
        rollout,
        np.arange(prompts * SAMPLES + 1) * LENGTH,
        np.repeat(np.arange(prompts), SAMPLES),
        np.tile([1.0, -1.0], prompts * SAMPLES // 2),
    )


@cache
def true_rate(variance: float, alpha: float, budget: float) -> float:
    """The rate at which the population's E_Q[W] is the budget."""
    return float(brentq(lambda x: mean_weight(variance, alpha, x) - budget, 1e-6, 200.0, xtol=1e-10))


def mean_weight(variance: float, alpha: float, rate: float) -> float:
    """E_Q[W] of the population; in closed form without a rate."""
    if rate == 0:
        return float(np.exp(alpha * variance))
    return gaussian_response(variance, alpha, rate).mean_weight


@cache
def true_thresholds(variance: float, name: str, target: str) -> dict[str, float]:
    """What the method's thresholds are in the population."""
    token_mean, token_std = token_law(variance)
    mean, std = -variance / (2 * LENGTH), np.sqrt(variance) / LENGTH
    if target == "ess":
        law = (token_mean, token_std) if name == "token_tis" else (-variance / 2, np.sqrt(variance))
        return {"cap": float(np.exp(brentq(lambda x: capped_size(*law, x) - EFFECTIVE[name], -5, 15)))}
    tail = (1 - KEPT) / 2
    two_sided = norm.ppf([tail, 1 - tail])
    if name == "token_tis":
        return {"cap": float(np.exp(norm.ppf(KEPT, token_mean, token_std)))}
    if name == "seq_tis":
        return {"cap": float(np.exp(norm.ppf(KEPT, -variance / 2, np.sqrt(variance))))}
    if name == "opsm":
        return {"delta": float(norm.ppf(KEPT, -mean, std))}
    if name == "k3_rs":
        ratios = log_ratios(variance, 100_000, np.random.default_rng(7))
        means = (np.expm1(ratios) - ratios).mean(axis=-1)
        return {"bound": float(np.quantile(means, KEPT))}
    centre, spread = {
        "icepop": (token_mean, token_std),
        "seq_mis": (-variance / 2, np.sqrt(variance)),
        "geo_rs": (mean, std),
    }[name]
    low, high = np.exp(centre + spread * two_sided)
    return {"low": float(low), "high": float(high)}


def capped_size(mean: float, std: float, log_cap: float) -> float:
    """Kish effective size, as a fraction, of log-normal weights truncated at a cap."""
    first, second = (
        np.exp(k * mean + (k * std) ** 2 / 2) * norm.cdf((log_cap - mean) / std - k * std)
        + np.exp(k * log_cap) * norm.sf((log_cap - mean) / std)
        for k in (1, 2)
    )
    return float(first**2 / second)


@dataclass(frozen=True)
class Covered:
    """How often a 95 % interval holds the truth, in percent of those given."""

    given: float
    covered: float

    @classmethod
    def of(cls, drawn: list[tuple[Estimate, float]]) -> Covered:
        given = [(e, truth) for e, truth in drawn if e.ci_low is not None]
        inside = [e.ci_low <= truth <= (np.inf if e.ci_high is None else e.ci_high) for e, truth in given]
        return cls(100 * len(given) / len(drawn), 100 * float(np.mean(inside)) if given else np.nan)

    def __str__(self) -> str:
        if not self.given:
            return "-"
        return f"{self.covered:.1f}" + (f" ({self.given:.0f})" if self.given < 99.5 else "")


@dataclass(frozen=True)
class BudgetRow:
    """One row of the table of budgets."""

    variance: float
    prompts: int
    alpha: float
    budget: float
    truth: float
    median_rate: float
    rate: Covered
    population: float
    held_out: Covered
    met: float


def _tune_vespo(job: tuple[float, int, tuple[float, float], int, int]) -> VespoTuning:
    variance, prompts, budgets, number, resamples = job
    rng = np.random.default_rng((zlib.crc32(b"vespo"), int(variance * 100), prompts, number))
    return tune_vespo(
        draw(variance, prompts, rng),
        alpha_pos=ALPHAS[0],
        alpha_neg=ALPHAS[1],
        budget_pos=budgets[0],
        budget_neg=budgets[1],
        resamples=resamples,
        seed=number,
    )


def budget_study(
    replicates: int,
    workers: Map,
    *,
    variances: Iterable[float] = VARIANCES,
    prompts: Iterable[int] = PROMPTS,
    budgets: Iterable[tuple[float, float]] = BUDGETS,
    resamples: int = 1000,
) -> list[BudgetRow]:
    """Tunes VESPO on many draws; counts intervals that hold the population's value and budgets that are met."""
    rows = []
    for variance in variances:
        for count in prompts:
            for pair in budgets:
                jobs = [(variance, count, pair, number, resamples) for number in range(replicates)]
                tuned = list(workers(_tune_vespo, jobs))
                for side, alpha, budget in zip(("positive", "negative"), ALPHAS, pair, strict=True):
                    rows.append(
                        _budget_row(variance, count, alpha, budget, [getattr(t, side) for t in tuned])
                    )
                print(f"s = {variance}, {count} prompts, budgets {pair}: done", file=sys.stderr, flush=True)
    return rows


def _budget_row(variance: float, prompts: int, alpha: float, budget: float, fits: list) -> BudgetRow:
    truth = true_rate(variance, alpha, budget)
    checks = [fit.check for fit in fits if fit.check is not None]
    judged = [check.meets for check in checks if check.meets is not None]
    # The rate of the half that was fitted is not kept: the population's value there is that of its kernel.
    held_out = [(c.held_out, mean_weight(variance, alpha, c.hyperparameters["rate"])) for c in checks]
    return BudgetRow(
        variance=variance,
        prompts=prompts,
        alpha=alpha,
        budget=budget,
        truth=truth,
        median_rate=float(np.median([fit.rate.value for fit in fits])),
        rate=Covered.of([(fit.rate, truth) for fit in fits]),
        population=float(np.median([mean_weight(variance, alpha, fit.rate.value) for fit in fits])),
        held_out=Covered.of(held_out),
        met=100 * float(np.mean(judged)) if judged else np.nan,
    )


@dataclass(frozen=True)
class ThresholdRow:
    """One row of the table of thresholds."""

    method: str
    target: str
    variance: float
    prompts: int
    thresholds: dict[str, Covered]
    truths: dict[str, float]
    centre_error: float | None
    met: float


def _tune_method(job: tuple[str, str, float, int, int]) -> ThresholdFit:
    name, target, variance, prompts, number = job
    rng = np.random.default_rng((zlib.crc32(name.encode()), int(variance * 100), prompts, number))
    goal = {"ess": EFFECTIVE[name]} if target == "ess" else {"kept": KEPT}
    return tune_method(name, draw(variance, prompts, rng), resamples=400, seed=number, **goal)


def threshold_study(
    replicates: int,
    workers: Map,
    *,
    variances: Iterable[float] = (1.0,),
    prompts: Iterable[int] = PROMPTS,
    cases: Iterable[tuple[str, str]] = (
        *((name, "kept") for name in FITTED),
        ("token_tis", "ess"),
        ("seq_tis", "ess"),
    ),
) -> list[ThresholdRow]:
    """The same for thresholds; for bands also how far their centre is from -kappa, over their half-width."""
    rows = []
    for name, target in cases:
        for variance in variances:
            truths = true_thresholds(variance, name, target)
            for count in prompts:
                jobs = [(name, target, variance, count, number) for number in range(replicates)]
                fits = list(workers(_tune_method, jobs))
                judged = [f.check.meets for f in fits if f.check is not None and f.check.meets is not None]
                rows.append(
                    ThresholdRow(
                        name,
                        target,
                        variance,
                        count,
                        {key: Covered.of([(f.thresholds[key], truths[key]) for f in fits]) for key in truths},
                        truths,
                        _centre_error(variance, name, fits),
                        100 * float(np.mean(judged)) if judged else np.nan,
                    )
                )
            print(f"{name} by {target}, s = {variance}: done", file=sys.stderr, flush=True)
    return rows


def _centre_error(variance: float, name: str, fits: list[ThresholdFit]) -> float | None:
    """Mean of (centre of the band - true centre) over its true half-width; None for one-sided thresholds."""
    truths = true_thresholds(variance, name, "kept")
    if "low" not in truths:
        return None
    low, high = np.log(truths["low"]), np.log(truths["high"])
    centres = [(np.log(f.parameters["low"]) + np.log(f.parameters["high"])) / 2 for f in fits]
    return float((np.mean(centres) - (low + high) / 2) / ((high - low) / 2))


def document(budgets: list[BudgetRow], thresholds: list[ThresholdRow], replicates: int) -> str:
    """The page."""
    lines = [
        "# Tuning on drift whose law is known",
        "",
        f"Written by `benchmarks/tuning_simulation.py`, {replicates} data sets a row. {SAMPLES} responses of {LENGTH} tokens",
        "to each prompt, half of them with positive advantage. log W ~ N(-s/2, s): "
        f"{PROMPT_SHARE:.0%} of s is common to a prompt's",
        f"responses, {RESPONSE_SHARE:.0%} to a response's tokens. True values are exact or integrated.",
        "",
        "## The problem",
        "",
        "VESPO's weights tilt the rollout policy: Q ~ mu W^alpha exp(-lambda W), with phi(W) = W^alpha exp(lambda (1 - W)) so",
        "that phi(1) = 1 (arXiv 2602.10693 v3, equations 11-17; c1 = alpha, c2 = lambda). `tune_vespo` takes alpha and a budget",
        "C and gives the smallest lambda >= 0 with E_Q[W] <= C: E_Q[W] falls with lambda (its derivative is -Var_Q(W)), so that",
        "is one root, or 0 where the power alone keeps the budget. With it come Z = E_mu[phi] (the signal that is left), E_Q[W],",
        "the Kish effective size of phi, the peak W* = alpha / lambda, K = sup phi(W) / W and Z K E_Q[W], which E_mu[phi^2]",
        "cannot pass (Proposition 3.1). For alpha < 1 phi(W) / W has no supremum: K is infinite and nothing bounds the variance.",
        "The problem is one of KL(Q, mu) - alpha E_Q[log W]; that this is a mixture of KL(Q, mu) and KL(Q, pi) holds for",
        "alpha <= 1 only, not for the 2 and 3 that are deployed.",
        "",
        "The interval of lambda holds the rates at which the 95 % interval of E_Q[W] holds C. The held-out check fits half of the",
        "prompts and reads E_Q[W] on the other half at that rate: `check.held_out`, with its own interval, and `check.gap`, its",
        "distance from the half that was fitted, whose interval has the errors of both halves, since a fit is off in the",
        "population by what its sample was off.",
        "",
        "## VESPO's rate for a budget",
        "",
        "Per sign, lambda is fitted to E_Q[W] <= C for the given alpha. *Rate covered*: percent of 95 % intervals of",
        "lambda that hold the population's. *E_Q[W]*: median over data sets of the population's value at the fitted",
        "rate. *Held-out covered*: percent of 95 % intervals of the held-out E_Q[W] that hold the population's at the",
        "rate that half of the prompts gave. *Met*: percent of data sets whose held-out prompts meet the budget within",
        "the interval of the gap; a budget is one-sided, so 97.5 would be exact. In brackets: percent of data sets with",
        "an interval, where not all have one (16 prompts are split into 8 and 8, and one prompt may dominate).",
        "",
        "| s | prompts | alpha | C | true lambda | median lambda | rate covered | E_Q[W] | held-out covered | met |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.variance:g} | {r.prompts} | {r.alpha:g} | {r.budget:g} | {r.truth:.3f} | {r.median_rate:.3f} | {r.rate} "
        f"| {r.population:.3f} | {r.held_out} | {_percent(r.met)} |"
        for r in budgets
    ]
    lines += [
        "",
        "## Thresholds",
        "",
        f"Fitted to keep {KEPT:.0%}, or to an effective size of "
        + " and ".join(f"{size:.0%} (`{name}`)" for name, size in EFFECTIVE.items())
        + ", s = 1. *Covered*: percent",
        "of 95 % intervals (expanded percentiles of refits; none where fewer than 5 units a threshold lie beyond it) that hold",
        "the population's threshold. *Centre*: how far the centre of a band lies from the",
        "population's, that is from -kappa for Geo-RS, in percent of its half-width. *Met*: percent of data sets whose",
        "held-out prompts agree with the target within the interval of the gap; 95 would be exact.",
        "",
        "| method | target | prompts | thresholds: truth, covered | centre | met |",
        "|---|---|---|---|---|---|",
    ]
    for r in thresholds:
        cells = ", ".join(f"{key} {r.truths[key]:.4g}: {r.thresholds[key]}" for key in r.truths)
        centre = "-" if r.centre_error is None else f"{100 * r.centre_error:+.1f}"
        lines.append(f"| `{r.method}` | {r.target} | {r.prompts} | {cells} | {centre} | {_percent(r.met)} |")
    return "\n".join(lines) + "\n"


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicates", type=int, default=400)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()
    with ProcessPoolExecutor(options.processes) as pool:

        def workers(function: Callable, jobs: list) -> Iterable:
            return pool.map(function, jobs, chunksize=max(1, len(jobs) // (8 * options.processes)))

        budgets = budget_study(options.replicates, workers)
        thresholds = threshold_study(options.replicates, workers)
    page = options.out / "tuning-simulation.md"
    page.write_text(document(budgets, thresholds, options.replicates))
    print(page)


if __name__ == "__main__":
    main()
