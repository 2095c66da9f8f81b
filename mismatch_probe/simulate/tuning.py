"""Hyperparameters fitted to a measured drift, with intervals over prompts and a check on prompts left out of the fit.

On drift of known law (`benchmarks/tuning_simulation.py`, docs/tuning-simulation.md; 16 to 128 prompts) the 95 %
intervals of VESPO's rate hold the population's in 95-99 % of data sets and those of thresholds in 91-97 %; held-out
prompts meet a tuned budget within the interval of the gap in 96 % or more, and a share or an effective size in 94 % or
more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.simulate.fitting import Fitter, Thresholds, Units, fitter_of, reached
from mismatch_probe.simulate.held_out import Check, check, halves
from mismatch_probe.simulate.respond import respond
from mismatch_probe.simulate.responses import Responses
from mismatch_probe.simulate.variational import (
    Tilt,
    mean_weight_estimate,
    rate_estimate,
    solve_rate,
    tilt,
)
from mismatch_probe.stats.estimate import Estimate
from mismatch_probe.stats.intervals import MIN_CLUSTERS

FloatArray = npt.NDArray[np.float64]
T = TypeVar("T")

MIN_RATE = 1e-4
MIN_BEYOND = 5


@dataclass(frozen=True, slots=True)
class KernelFit:
    """VESPO's kernel for one sign of the advantage.

    Attributes:
        alpha: The power that was given.
        budget: C.
        rate: lambda, the smallest with E_Q[W] <= C; see `rate_estimate` for its interval.
        active: Whether the budget binds; if not the rate is 0 and the power alone keeps it.
        tilt: What the kernel does with these weights at that rate.
        check: E_Q[W] on both halves of the prompts, or None with too few of them or where the half that was
            fitted cannot reach the budget.
        note: What to know about it, or None.
        n: Sequences.
    """

    alpha: float
    budget: float
    rate: Estimate
    active: bool
    tilt: Tilt
    check: Check | None
    note: str | None
    n: int


@dataclass(frozen=True, slots=True)
class VespoTuning:
    """VESPO fitted to a variance budget.

    Attributes:
        positive: For A > 0.
        negative: For A < 0.
        parameters: For `get_method("vespo", **parameters)`; rates of 0 become 1e-4, which implementations
            clamp to.
        assumed: Whether both signs were tried on every response, for want of advantages.
    """

    positive: KernelFit
    negative: KernelFit
    parameters: dict[str, float]
    assumed: bool


@dataclass(frozen=True, slots=True)
class ThresholdFit:
    """The thresholds of a method, fitted to keep a share or to reach an effective size.

    Attributes:
        method: Its name.
        target: What was asked for: "kept" or "ess".
        level: How much of it.
        thresholds: By hyperparameter, with expanded percentile intervals over refits on resampled prompts.
        parameters: For `get_method(method, **parameters)`.
        kept: Share of tokens that the method keeps with them (all, for caps).
        ess: Effective size of its weights as a fraction.
        check: The target's quantity (for caps the untruncated share) on both halves of the prompts, or None
            with too few of them.
    """

    method: str
    target: str
    level: float
    thresholds: dict[str, Estimate]
    parameters: dict[str, float | str]
    kept: Estimate
    ess: Estimate
    check: Check | None


def tune_vespo(
    responses: Responses,
    *,
    alpha_pos: float = 2.0,
    alpha_neg: float = 3.0,
    budget_pos: float = 1.0,
    budget_neg: float = 1.0,
    resamples: int = 1000,
    seed: int = 0,
) -> VespoTuning:
    """Solves VESPO's variational problem on measured weights, for each sign of the advantage.

    Args:
        responses: The responses.
        alpha_pos: Power for A > 0.
        alpha_neg: Power for A < 0.
        budget_pos: C for A > 0: the mean weight that the reweighted sample may have.
        budget_neg: C for A < 0.
        resamples: Of the bootstrap over prompts.
        seed: Of the resampling and of the split.

    Raises:
        ConfigError: A power is negative or a budget not positive.
        InconclusiveError: A sign without responses, or a budget that no rate can reach.
    """
    positive = _fit_kernel(responses, 1.0, alpha_pos, budget_pos, resamples, seed)
    negative = _fit_kernel(responses, -1.0, alpha_neg, budget_neg, resamples, seed)
    return VespoTuning(
        positive=positive,
        negative=negative,
        parameters={
            "k_pos": alpha_pos,
            "lambda_pos": max(positive.tilt.rate, MIN_RATE),
            "k_neg": alpha_neg,
            "lambda_neg": max(negative.tilt.rate, MIN_RATE),
        },
        assumed=responses.assumed,
    )


def tune_method(
    name: str,
    responses: Responses,
    *,
    kept: float | None = None,
    ess: float | None = None,
    resamples: int = 400,
    seed: int = 0,
) -> ThresholdFit:
    """Fits the thresholds of a method to the measured drift.

    Caps: `kept` is the share left untruncated, `ess` the effective size that the truncated weights reach.
    Masks: `kept` is the share of tokens inside. Geo-RS is centred on -kappa. OPSM is fitted to responses with
    A < 0, the only ones it drops.

    Args:
        name: One of `mismatch_probe.simulate.fitting.FITTERS`.
        responses: The responses.
        kept: Share to keep, in (0, 1]; 0.99 where neither target is given.
        ess: Effective size to reach, in (0, 1); for caps.
        resamples: Refits on resampled prompts.
        seed: Of the resampling and of the split.

    Raises:
        ConfigError: Both targets, one out of range, or a method without thresholds.
        InconclusiveError: Nothing to fit to.
    """
    from mismatch_probe.weights import get_method

    if kept is not None and ess is not None:
        raise ConfigError("give a share to keep or an effective size, not both")
    level = ess if ess is not None else 0.99 if kept is None else kept
    if not 0 < level <= 1:
        raise ConfigError(f"a target must lie in (0, 1], not {level:g}")
    fitter = fitter_of(name, by_ess=ess is not None)

    def fit(units: Units, counts: FloatArray) -> Thresholds:
        by = fitter.by_kept if ess is None or fitter.by_ess is None else fitter.by_ess
        return by(units.statistic, units.weight * counts, level)

    units = fitter.units(responses)
    value = fit(units, np.ones(len(units.statistic)))
    # Prompts without a unit are no part of the sample: a resample of these alone has nothing to fit to.
    cluster = np.unique(units.cluster, return_inverse=True)[1]
    prompts = int(cluster.max()) + 1
    draws = _refits(
        lambda counts: fit(units, counts[cluster]),
        prompts,
        resamples=resamples,
        seed=seed,
    )
    # A quantile is known no better than what lies beyond it: the largest of a sample bounds nothing.
    outside = int((~fitter.inside(units.statistic, value)).sum()) if ess is None else len(units.statistic)
    parameters: dict[str, float | str] = {**dict(fitter.fixed), **value}
    too_few = None
    if outside < MIN_BEYOND * len(value):
        too_few = f"{outside} units lie beyond: an interval needs {MIN_BEYOND} for each threshold"
    response = respond(get_method(name, **parameters), responses, resamples=500, seed=seed)
    return ThresholdFit(
        method=name,
        target="ess" if ess is not None else "kept",
        level=level,
        thresholds={
            key: Estimate(value[key], None, None, len(units.statistic), too_few)
            if too_few is not None
            else _percentiles(value[key], [draw[key] for draw in draws], prompts, len(units.statistic))
            for key in value
        },
        parameters=parameters,
        kept=response.kept_fraction,
        ess=response.ess,
        check=_check_thresholds(fitter, responses, fit, level, by_ess=ess is not None, seed=seed),
    )


def _fit_kernel(
    responses: Responses, sign: float, alpha: float, budget: float, resamples: int, seed: int
) -> KernelFit:
    chosen = (responses.lengths() > 0) & (np.sign(responses.advantages) == sign)
    if not chosen.any():
        raise InconclusiveError(
            f"no response with {'positive' if sign > 0 else 'negative'} advantage to fit a rate to",
            hint="give advantages of both signs, or none at all",
        )
    log_weight, clusters = responses.log_weight()[chosen], responses.clusters[chosen]
    rate = rate_estimate(log_weight, clusters, alpha, budget, resamples=resamples, seed=seed)
    made = tilt(log_weight, alpha, rate.value or 0.0)
    return KernelFit(
        alpha=alpha,
        budget=budget,
        rate=rate,
        active=made.rate > 0,
        tilt=made,
        check=_check_kernel(log_weight, clusters, alpha, budget, resamples=resamples, seed=seed),
        note=_kernel_note(alpha, made.rate),
        n=len(log_weight),
    )


def _kernel_note(alpha: float, rate: float) -> str | None:
    if alpha < 1:
        return (
            f"alpha = {alpha:g} is below 1: phi(W) / W is unbounded near W = 0, so "
            "Proposition 3.1 gives no bound on the "
            "variance"
        )
    if rate == 0:
        return "the budget does not bind: the rate is 0, and no bound on the variance follows from it"
    return None


def _refits(refit: Callable[[FloatArray], T], prompts: int, *, resamples: int, seed: int) -> list[T]:
    """Refits on resampled prompts; resamples that cannot be fitted are left out."""
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(resamples if prompts >= MIN_CLUSTERS else 0):
        counts = generator.multinomial(prompts, np.full(prompts, 1.0 / prompts)).astype(np.float64)
        try:
            made.append(refit(counts))
        except InconclusiveError:
            continue
    return made


def _percentiles(value: float, draws: list[float], prompts: int, n: int) -> Estimate:
    """Percentiles of refits, further out the fewer prompts there are.

    Plain percentiles are too narrow with few prompts: the levels are those of Student's t on G - 1 degrees of
    freedom times sqrt(G / (G - 1)) (the expanded percentile interval; Hesterberg, The American Statistician
    69, 2015, section 3.3).
    """
    from scipy.special import ndtr, stdtrit

    if prompts < MIN_CLUSTERS:
        return Estimate(value, None, None, n, f"{prompts} prompts: an interval needs {MIN_CLUSTERS}")
    if len(draws) < 20:
        return Estimate(value, None, None, n, "too few resamples could be fitted")
    tail = float(ndtr(-np.sqrt(prompts / (prompts - 1)) * stdtrit(prompts - 1, 0.975)))
    low, high = np.quantile(draws, [tail, 1.0 - tail])
    return Estimate(value, min(float(low), value), max(float(high), value), n)


def _check_kernel(
    log_weight: FloatArray,
    clusters: npt.NDArray[np.int64],
    alpha: float,
    budget: float,
    *,
    resamples: int,
    seed: int,
) -> Check | None:
    index = np.unique(clusters, return_inverse=True)[1]
    split = halves(int(index.max()) + 1, seed)
    if split is None:
        return None
    here = np.isin(index, split[0])
    try:
        rate = solve_rate(log_weight[here], alpha, budget)
    except InconclusiveError:
        return None
    fitted, held_out = (
        mean_weight_estimate(log_weight[side], index[side], alpha, rate, resamples=resamples, seed=seed)
        for side in (here, ~here)
    )
    return check({"rate": rate}, budget, fitted, held_out, at_most=True)


def _check_thresholds(
    fitter: Fitter,
    responses: Responses,
    fit: Callable[[Units, FloatArray], Thresholds],
    level: float,
    *,
    by_ess: bool,
    seed: int,
) -> Check | None:
    split = halves(responses.num_prompts, seed)
    if split is None:
        return None
    try:
        first, second = (fitter.units(responses.subset(half)) for half in split)
    except InconclusiveError:
        return None
    thresholds = fit(first, np.ones(len(first.statistic)))
    fitted, held_out = (
        reached(fitter, units, thresholds, by_ess=by_ess, seed=seed) for units in (first, second)
    )
    return check(thresholds, level, fitted, held_out, at_most=False)
