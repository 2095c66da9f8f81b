"""Fits reach what they were asked for, on the prompts they saw and about so on those they did not."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.tuning_simulation import budget_study, threshold_study
from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.result import to_json
from mismatch_probe.simulate import Responses, respond, tune_method, tune_vespo
from mismatch_probe.simulate.fitting import FITTERS, effective_fraction, weighted_quantile
from mismatch_probe.simulate.held_out import check
from mismatch_probe.simulate.variational import mean_weight_estimate, rate_estimate, solve_rate
from mismatch_probe.stats.estimate import Estimate
from mismatch_probe.weights import get_method

Make = Callable[..., Responses]


def test_vespo_meets_its_budget_for_each_sign(make_responses: Make) -> None:
    responses = make_responses(advantages=[1.0, -1.0] * 40)
    got = tune_vespo(responses, budget_pos=0.9, budget_neg=1.05)
    for fit, sign, budget in ((got.positive, 1, 0.9), (got.negative, -1, 1.05)):
        log_w = responses.log_weight()[np.sign(responses.advantages) == sign]
        phi = np.exp(fit.alpha * log_w - fit.rate.value * np.exp(log_w))
        assert (phi * np.exp(log_w)).sum() / phi.sum() == pytest.approx(budget)
        assert fit.tilt.mean_weight == pytest.approx(budget) and fit.active
        assert fit.rate.ci_low < fit.rate.value < fit.rate.ci_high
        assert fit.tilt.peak_weight == pytest.approx(fit.alpha / fit.rate.value)
        assert fit.tilt.second_moment <= fit.tilt.bound
        check = fit.check
        assert check.target == budget and check.fitted.value == pytest.approx(budget)
        assert check.held_out.value == pytest.approx(budget, rel=0.2)
        assert check.held_out.ci_low < check.held_out.value < check.held_out.ci_high
        assert check.gap.value == pytest.approx(check.held_out.value - check.fitted.value)
        assert check.gap.ci_low < 0 < check.gap.ci_high and check.meets
    method = get_method("vespo", **got.parameters)
    assert respond(method, responses, resamples=0).positive_mass.value == pytest.approx(
        got.positive.tilt.mass
    )
    assert not got.assumed
    json.dumps(to_json(got), allow_nan=False)


def test_a_slack_budget_needs_no_rate_and_says_so(make_responses: Make) -> None:
    got = tune_vespo(make_responses(), budget_pos=50.0, budget_neg=50.0)
    assert not got.positive.active and got.positive.rate.value == 0.0
    assert "does not bind" in (got.positive.note or "")
    assert got.parameters["lambda_pos"] == 1e-4 and got.assumed


def test_alpha_below_1_says_that_the_bound_is_lost(make_responses: Make) -> None:
    got = tune_vespo(make_responses(), alpha_pos=0.5, budget_pos=0.9)
    assert "no bound" in (got.positive.note or "") and got.positive.tilt.bound is None
    assert got.negative.note is None


def test_signs_that_are_missing_are_refused(make_responses: Make) -> None:
    with pytest.raises(InconclusiveError, match="negative"):
        tune_vespo(make_responses(advantages=[1.0] * 80))


@pytest.mark.parametrize("name", FITTERS)
@pytest.mark.parametrize("kept", [0.8, 0.95, 1.0])
def test_the_share_that_was_asked_for_is_kept(make_responses: Make, name: str, kept: float) -> None:
    responses = make_responses(sequences=120, length=25, advantages=[1.0, -1.0] * 60)
    got = tune_method(name, responses, kept=kept, resamples=30)
    phi = responses.coefficients(get_method(name, **got.parameters))
    if "cap" in got.parameters:
        full = np.exp(responses.train - responses.rollout)
        if name == "seq_tis":
            full = np.exp(np.repeat(responses.log_weight(), 25))
        share = (phi >= full * (1 - 1e-9)).mean()
    elif name == "opsm":
        share = (phi > 0)[np.repeat(responses.advantages, 25) < 0].mean()
    else:
        share = (phi > 0).mean()
    assert kept - 1e-9 <= share <= kept + 0.03
    assert got.check is not None and got.check.target == kept
    assert got.check.fitted.value >= kept - 1e-9
    assert got.check.held_out.value == pytest.approx(kept, abs=0.15)
    for key, estimate in got.thresholds.items():
        if kept == 1.0:  # the largest of a sample: no interval, and no share that fails
            assert estimate.ci_low is None and "beyond" in (estimate.reason or "")
            assert got.check.meets is None
        elif estimate.ci_low is not None:
            assert estimate.ci_low < got.parameters[key] < estimate.ci_high
        else:
            assert name not in ("token_tis", "icepop", "cispo") and "beyond" in (estimate.reason or "")


def test_geo_band_is_centred_on_the_drift_and_keeps_what_a_band_around_1_drops(make_responses: Make) -> None:
    responses = make_responses([[-0.02 + 0.001 * i / 40] * 20 for i in range(40)])
    fitted = tune_method("geo_rs", responses, kept=0.95, resamples=0)
    low, high = fitted.parameters["low"], fitted.parameters["high"]
    assert (np.log(low) + np.log(high)) / 2 == pytest.approx(float(-0.02 + 0.001 * np.arange(40).mean() / 40))
    assert fitted.kept.value == pytest.approx(0.95, abs=0.03)
    assert respond(get_method("geo_rs"), responses, resamples=0).kept_fraction.value == 0.0


@pytest.mark.parametrize("name", ["token_tis", "seq_tis", "cispo"])
def test_the_effective_size_that_was_asked_for_is_reached(make_responses: Make, name: str) -> None:
    responses = make_responses(noise=0.4)
    uncapped = effective_fraction(*_log_weights(name, responses), 1e3)
    target = (1 + 3 * uncapped) / 4
    got = tune_method(name, responses, ess=target, resamples=20)
    if name != "seq_tis":
        assert got.ess.value == pytest.approx(target, rel=1e-6)
    assert got.check is not None and got.check.fitted.value == pytest.approx(target, rel=1e-6)
    easy = tune_method(name, responses, ess=0.5 * uncapped, resamples=0)
    assert easy.parameters["cap"] == pytest.approx(np.exp(_log_weights(name, responses)[0].max()))


def _log_weights(name: str, responses: Responses) -> tuple[np.ndarray, np.ndarray]:
    units = FITTERS[name].units(responses)
    return units.statistic, units.weight


def test_targets_that_make_no_sense_are_refused(make_responses: Make) -> None:
    responses = make_responses()
    with pytest.raises(ConfigError, match="not both"):
        tune_method("token_tis", responses, kept=0.9, ess=0.9)
    with pytest.raises(ConfigError, match=r"\(0, 1\]"):
        tune_method("token_tis", responses, kept=1.5)
    with pytest.raises(ConfigError, match="no cap"):
        tune_method("icepop", responses, ess=0.9)
    with pytest.raises(ConfigError, match="can be fitted"):
        tune_method("gspo", responses, kept=0.9)


def test_few_prompts_give_values_without_intervals(make_responses: Make) -> None:
    got = tune_method("token_tis", make_responses(sequences=12), kept=0.9)
    assert got.thresholds["cap"].value is not None and got.thresholds["cap"].ci_low is None
    assert "an interval needs" in (got.thresholds["cap"].reason or "")
    assert tune_method("token_tis", make_responses(sequences=3), kept=0.9).check is None


def test_intervals_cover_the_truth_about_as_often_as_they_claim(make_responses: Make) -> None:
    """The 0.9 quantile of N(-.005, .1^2), over 40 runs: a 95 % interval that covers less than 80 % is broken."""
    truth = float(np.exp(-0.005 + 0.1 * 1.2815515655446004))
    hits = 0
    for seed in range(40):
        fit = tune_method(
            "token_tis", make_responses(seed=seed), kept=0.9, resamples=100, seed=seed
        ).thresholds["cap"]
        hits += fit.ci_low <= truth <= fit.ci_high
    assert hits >= 32


def test_weighted_quantile_is_that_of_repeated_values() -> None:
    values, counts = np.array([1.0, 2.0, 3.0]), np.array([2.0, 1.0, 1.0])
    for level, expect in ((0.1, 1.0), (0.5, 1.0), (0.51, 2.0), (0.75, 2.0), (0.76, 3.0), (1.0, 3.0)):
        assert weighted_quantile(values, counts, level) == expect


def test_a_budget_that_other_prompts_break_is_noticed(make_responses: Make) -> None:
    """The other half's weights are a quarter larger: at the first half's rate E_Q[W] is above the budget."""
    quiet = make_responses(noise=0.05, sequences=400).log_weight()[:400]
    loud = make_responses(noise=0.05, sequences=400, seed=1).log_weight()[:400] + 0.25
    clusters = np.arange(400) // 4
    rate = solve_rate(quiet, 2.0, 0.97)
    fitted = mean_weight_estimate(quiet, clusters, 2.0, rate)
    broken = mean_weight_estimate(loud, clusters, 2.0, rate)
    assert check({"rate": rate}, 0.97, fitted, broken, at_most=True).meets is False
    assert check({"rate": rate}, 0.97, fitted, fitted, at_most=True).meets is True
    # Less than the budget is no breach of a bound, but not what was asked for otherwise.
    low = solve_rate(quiet, 2.0, 0.9)
    under = mean_weight_estimate(quiet, clusters, 2.0, low)
    assert check({"rate": rate}, 0.97, fitted, under, at_most=True).meets is True
    assert check({"rate": rate}, 0.97, fitted, under, at_most=False).meets is False


def test_the_gap_has_the_error_of_both_halves() -> None:
    got = check({}, 1.0, Estimate(1.0, 0.7, 1.4, 10), Estimate(1.2, 1.0, 1.5, 10), at_most=True)
    assert got.gap.value == pytest.approx(0.2)
    assert got.gap.ci_low == pytest.approx(0.2 - np.hypot(0.2, 0.4))
    assert got.gap.ci_high == pytest.approx(0.2 + np.hypot(0.3, 0.3))
    assert got.meets is True
    unknown = check(
        {}, 1.0, Estimate(1.0, None, None, 1, "one prompt"), Estimate(1.2, 1.0, 1.5, 10), at_most=True
    )
    assert unknown.meets is None and unknown.gap.reason == "one prompt"


def test_rate_intervals_hold_the_rates_that_the_data_allow(make_responses: Make) -> None:
    responses = make_responses(sequences=200)
    log_w, clusters = responses.log_weight()[:200], responses.clusters[:200]
    got = rate_estimate(log_w, clusters, 2.0, 0.95)
    assert got.value == pytest.approx(solve_rate(log_w, 2.0, 0.95))
    for end, side in ((got.ci_low, "ci_low"), (got.ci_high, "ci_high")):
        assert getattr(mean_weight_estimate(log_w, clusters, 2.0, end), side) == pytest.approx(0.95, rel=1e-3)
    slack = rate_estimate(log_w, clusters, 2.0, 50.0)
    assert (slack.value, slack.ci_low) == (0.0, 0.0) and slack.ci_high is not None
    assert rate_estimate(log_w[:12], clusters[:12], 2.0, 0.95).ci_low is None


def test_tuning_on_known_drift_covers_and_meets() -> None:
    """A small version of docs/tuning-simulation.md; binomial bounds at 3 standard errors of 95 %."""
    for row in budget_study(40, map, variances=(1.0,), prompts=(48,), budgets=((1.0, 1.0),), resamples=300):
        assert row.median_rate == pytest.approx(row.truth, rel=0.1)
        assert row.population == pytest.approx(row.budget, abs=0.06)
        assert row.rate.given == row.held_out.given == 100.0
        assert row.rate.covered >= 85.0 and row.held_out.covered >= 85.0
        assert row.met >= 85.0
    cases = [("token_tis", "kept"), ("geo_rs", "kept"), ("seq_tis", "ess")]
    for fit in threshold_study(40, map, prompts=(48,), cases=cases):
        assert all(covered.covered >= 80.0 for covered in fit.thresholds.values()), fit
        assert fit.met >= 85.0
        assert fit.centre_error is None or abs(fit.centre_error) < 0.1
