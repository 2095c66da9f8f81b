"""The variational problem: its root, its bound, and the population it was derived for."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.simulate.gaussian import gaussian_response
from mismatch_probe.simulate.variational import (
    mean_weight_estimate,
    rate_estimate,
    solve_rate,
    tilt,
    tilted_mean,
)

POPULATIONS = json.loads((Path(__file__).parents[2] / "vectors" / "weights.json").read_text())["suites"][
    "lognormal_population"
]
weights = hnp.arrays(np.float64, st.integers(2, 40), elements=st.floats(-8, 6))


@pytest.mark.parametrize("case", POPULATIONS)
def test_log_normal_population(case: Any) -> None:
    expect, s = case["expect"], case["args"]["s"]
    for sign, (c1, c2) in (("pos", (2.0, 3.0)), ("neg", (3.0, 2.0))):
        got = gaussian_response(s, c1, c2)
        for value, key in (
            (got.mass, "Z"),
            (got.mean_weight, "EQ_W"),
            (got.second_moment, "Ephi2"),
            (got.ess, "ess_frac"),
            (got.bound, "bound_ZKC"),
        ):
            assert value == pytest.approx(expect[f"{key}_{sign}"], rel=case["rtol"])
        assert got.ess_weight == pytest.approx(expect["ess_frac"], rel=case["rtol"])
        assert got.second_moment <= got.bound


def test_a_population_without_spread_keeps_everything() -> None:
    got = gaussian_response(0.0, 2.0, 3.0)
    assert (got.mass, got.mean_weight, got.ess) == (1.0, 1.0, 1.0)
    with pytest.raises(ConfigError):
        gaussian_response(-1.0, 2.0, 3.0)


@settings(max_examples=80, deadline=None)
@given(weights, st.floats(0, 4), st.floats(0.05, 3))
def test_the_rate_meets_the_budget_exactly_or_is_not_needed(
    log_w: np.ndarray, alpha: float, budget: float
) -> None:
    free = tilted_mean(log_w, alpha, 0.0)
    if free <= budget:
        assert solve_rate(log_w, alpha, budget) == 0.0
        return
    if np.exp(log_w.min()) >= budget * (1 - 1e-6):
        return
    try:
        rate = solve_rate(log_w, alpha, budget)
    except InconclusiveError:
        assert np.exp(log_w.min()) > budget * (1 - 1e-3)
        return
    assert rate > 0
    assert tilted_mean(log_w, alpha, rate) == pytest.approx(budget, rel=1e-6)


@settings(max_examples=80, deadline=None)
@given(weights, st.floats(0, 4), st.floats(0, 20), st.floats(0, 20))
def test_the_mean_weight_falls_with_the_rate(
    log_w: np.ndarray, alpha: float, first: float, second: float
) -> None:
    low, high = sorted((first, second))
    assert tilted_mean(log_w, alpha, high) <= tilted_mean(log_w, alpha, low) * (1 + 1e-9)


@settings(max_examples=80, deadline=None)
@given(weights, st.floats(1, 4), st.floats(0.05, 20))
def test_proposition_3_1_holds_on_any_sample(log_w: np.ndarray, alpha: float, rate: float) -> None:
    got = tilt(log_w, alpha, rate)
    assert got.bound is not None
    assert got.second_moment <= got.bound * (1 + 1e-9) + 1e-300
    assert got.ess <= 1 + 1e-12


def test_below_alpha_1_the_bound_is_lost() -> None:
    got = tilt(np.array([-1.0, 0.0, 1.0]), 0.5, 2.0)
    assert got.variance_constant is None and got.bound is None
    assert got.peak_weight == pytest.approx(0.25)
    free = tilt(np.array([-1.0, 0.0]), 2.0, 0.0)
    assert free.peak_weight is None and free.bound is None


def test_counts_repeat_sequences() -> None:
    log_w = np.array([-1.0, 0.5, 2.0])
    repeated = np.repeat(log_w, [3, 1, 2])
    assert tilted_mean(log_w, 2.0, 1.0, [3, 1, 2]) == pytest.approx(tilted_mean(repeated, 2.0, 1.0))
    assert solve_rate(log_w, 2.0, 0.9, [3, 1, 2]) == pytest.approx(solve_rate(repeated, 2.0, 0.9))
    assert solve_rate(log_w, 2.0, 0.9, [3, 0, 2]) == pytest.approx(
        solve_rate(np.repeat(log_w, [3, 0, 2]), 2.0, 0.9)
    )


def test_log_normal_weights_give_the_rate_that_undoes_the_power() -> None:
    """For small s, E_Q[W] = exp(s (alpha - lambda)) to first order, so the budget 1 asks for lambda = alpha."""
    from scipy.stats import norm

    s, n = 1e-3, 4000
    log_w = -s / 2 + np.sqrt(s) * norm.ppf((np.arange(n) + 0.5) / n)
    assert solve_rate(log_w, 2.0, 1.0) == pytest.approx(2.0, rel=0.02)
    assert solve_rate(log_w, 3.0, 1.0) == pytest.approx(3.0, rel=0.02)


def test_extreme_weights_neither_warn_nor_break() -> None:
    log_w = np.array([-1e4, -800.0, -1.0, 0.0, 5.0, 800.0, 1e4])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rate = solve_rate(log_w, 2.0, 1.0)
        got = tilt(log_w, 2.0, rate)
    assert 0 < rate < 1e3 and got.mean_weight == pytest.approx(1.0) and np.isfinite(got.mass)


def test_budgets_that_cannot_be_met_are_refused() -> None:
    with pytest.raises(InconclusiveError, match="at least"):
        solve_rate(np.array([1.0, 2.0]), 2.0, 1.0)
    with pytest.raises(InconclusiveError):
        solve_rate(np.array([]), 2.0, 1.0)
    with pytest.raises(ConfigError):
        solve_rate(np.array([0.0]), -1.0, 1.0)
    with pytest.raises(ConfigError):
        solve_rate(np.array([0.0]), 1.0, 0.0)


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.float64, st.integers(8, 40), elements=st.floats(-1e4, 1e4)),
    st.floats(0, 5),
    st.floats(1e-3, 1e3),
)
def test_any_weights_and_budget_give_numbers_or_a_refusal(
    log_w: np.ndarray, alpha: float, budget: float
) -> None:
    clusters = np.arange(len(log_w)) // 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            rate = rate_estimate(log_w, clusters, alpha, budget, resamples=100)
        except InconclusiveError:
            return
        got = tilt(log_w, alpha, rate.value)
        held = mean_weight_estimate(log_w, clusters, alpha, rate.value, resamples=100)
    numbers = [value for value in dataclasses.astuple(got) if value is not None]
    assert np.all(np.isfinite(numbers)) and 0 < got.ess <= 1 + 1e-12
    assert held.value == pytest.approx(got.mean_weight)
    ends = [end for end in (rate.ci_low, rate.ci_high) if end is not None]
    assert all(np.isfinite(end) and end >= 0 for end in ends)
    assert rate.ci_low is None or rate.ci_low <= rate.value


def test_effective_size_is_that_of_phi() -> None:
    log_w = np.array([-2.0, -0.5, 0.3, 1.0])
    phi = np.exp(2.0 * log_w - 3.0 * np.expm1(log_w))
    assert tilt(log_w, 2.0, 3.0).ess == pytest.approx(phi.sum() ** 2 / (4 * (phi**2).sum()))
