"""Simulated responses against closed forms and against direct computation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.result import to_json
from mismatch_probe.simulate import simulate_methods
from mismatch_probe.weights import available_methods, get_method

POPULATIONS = json.loads((Path(__file__).parents[2] / "vectors" / "weights.json").read_text())["suites"][
    "lognormal_population"
]


def run(log_ratio: list[list[float]], advantages: list[float] | None, **options: Any) -> Any:
    """Simulates sequences with these log-ratios; prompt i holds sequences 2i and 2i + 1."""
    lengths = [len(row) for row in log_ratio]
    flat = np.concatenate([np.asarray(row, dtype=float) for row in log_ratio])
    rollout = np.minimum(-1.0, -1.0 - flat)
    return simulate_methods(
        rollout + flat,
        rollout,
        np.concatenate([[0], np.cumsum(lengths)]),
        np.arange(len(lengths)) // 2,
        None if advantages is None else np.array(advantages),
        **options,
    )


def normal_quantiles(s: float, n: int) -> np.ndarray:
    from scipy.stats import norm

    return np.asarray(-s / 2 + np.sqrt(s) * norm.ppf((np.arange(n) + 0.5) / n))


@pytest.mark.parametrize("case", [c for c in POPULATIONS if c["args"]["s"] <= 4])
def test_vespo_keeps_the_signal_that_a_lognormal_population_predicts(case: Any) -> None:
    """log W at the quantiles of N(-s/2, s), so sums are a quadrature of the population's integrals."""
    expect, n = case["expect"], 4000
    got = run([[x] for x in normal_quantiles(case["args"]["s"], n)], None, methods=["vespo"], resamples=20)[
        "vespo"
    ]
    assert got.sign_basis == "assumed"
    assert got.positive_mass.value == pytest.approx(expect["Z_pos"], rel=2e-3)
    assert got.negative_mass.value == pytest.approx(expect["Z_neg"], rel=2e-3)
    assert got.mass_ratio.value == pytest.approx(expect["Z_neg"] / expect["Z_pos"], rel=2e-3)
    assert got.mean.value == pytest.approx((expect["Z_pos"] + expect["Z_neg"]) / 2, rel=2e-3)
    assert got.mean.n == n


@pytest.mark.parametrize("name", available_methods())
def test_without_mismatch_nothing_is_lost(name: str) -> None:
    got = run([[0.0] * 5] * 20, [1.0, -1.0] * 10, methods=[name])[name]
    weight = 5.0 if name == "luspo" else 1.0
    for estimate, value in (
        (got.mean, weight),
        (got.ess, 1.0),
        (got.positive_mass, weight),
        (got.negative_mass, weight),
        (got.mass_ratio, 1.0),
        (got.gradient_mass, weight),
    ):
        assert estimate.value == pytest.approx(value)
        assert (estimate.ci_low, estimate.ci_high) == (pytest.approx(value), pytest.approx(value))
    # That none of 100 tokens was dropped leaves room for a share of them.
    assert (got.kept_fraction.value, got.kept_fraction.ci_high) == (1.0, 1.0)
    assert 0.95 < got.kept_fraction.ci_low < 1.0
    assert got.empty_tokens == got.empty_sequences == 0
    assert [bucket.mean.value for bucket in got.by_length] == [pytest.approx(weight)]


def test_numbers_are_those_of_the_coefficients() -> None:
    generator = np.random.default_rng(5)
    rows = [list(generator.normal(-0.02, 0.3, size)) for size in generator.integers(1, 40, 30)]
    advantages = list(generator.choice([-1.5, 0.0, 0.5], 30))
    for name in ("icepop", "vespo"):
        got = run(rows, advantages, methods=[name], resamples=200)[name]
        flat = np.concatenate(rows)
        sign = np.repeat(advantages, [len(row) for row in rows])
        if name == "icepop":
            phi = np.exp(flat) * ((np.exp(flat) >= 0.5) & (np.exp(flat) <= 5.0))
            entry, signs = phi, sign
        else:
            log_w = np.array([sum(row) for row in rows])
            c1, c2 = (
                np.where(np.array(advantages) >= 0, 2.0, 3.0),
                np.where(np.array(advantages) >= 0, 3.0, 2.0),
            )
            entry, signs = np.exp(c1 * log_w + c2 * (1 - np.exp(log_w))), np.array(advantages)
            phi = np.repeat(entry, [len(row) for row in rows])
        assert got.mean.value == pytest.approx(entry.mean())
        assert got.ess.value == pytest.approx(entry.sum() ** 2 / (len(entry) * (entry**2).sum()))
        assert got.kept_fraction.value == pytest.approx((phi > got.kept_above).mean())
        assert got.positive_mass.value == pytest.approx(entry[signs > 0].mean())
        assert got.negative_mass.value == pytest.approx(entry[signs < 0].mean())
        assert got.gradient_mass.value == pytest.approx((np.abs(sign) * phi).sum() / np.abs(sign).sum())
        assert got.max_weight_share == pytest.approx(entry.max() / entry.sum())
        assert got.mean.ci_low < got.mean.value < got.mean.ci_high
        assert sum(bucket.n for bucket in got.by_length) == 30
        assert int(got.points.n.sum()) == (len(phi) if name == "icepop" else 30)


def test_gspo_is_blind_on_one_side_where_the_drift_passes_its_floor() -> None:
    """kappa of 1e-3 a token puts s below 1 - 3e-4: every negative sample is masked and no positive one."""
    got = run([[-1e-3] * 50] * 8, [1.0, -1.0] * 4)["gspo"]
    assert got.positive_mass.value == pytest.approx(np.exp(-1e-3))
    assert got.negative_mass.value == 0.0 and got.mass_ratio.value == 0.0
    assert got.empty_sequences == 4 and got.empty_tokens == 200
    assert got.kept_fraction.value == pytest.approx(0.5)


def test_curves_pass_through_the_method_and_points_lie_on_them() -> None:
    rows = [[x / 4] * 4 for x in np.linspace(-3, 2, 40)]
    results = run(rows, [1.0, -1.0] * 20)
    curve = results["vespo"].curve
    from mismatch_probe.weights.kernel import kernel

    assert (curve.over, curve.length) == ("log_weight", 4)
    assert curve.positive == pytest.approx(kernel(curve.grid, 2.0, 3.0), rel=1e-4)
    assert curve.negative == pytest.approx(kernel(curve.grid, 3.0, 2.0), rel=1e-4)
    gspo = results["gspo"].curve
    assert gspo.negative[0] == 0.0 and gspo.positive[0] == pytest.approx(np.exp(gspo.grid[0] / 4), rel=1e-4)
    capped = results["token_tis"].curve
    assert capped.over == "log_ratio" and capped.length is None
    assert capped.positive == pytest.approx(np.minimum(np.exp(capped.grid), 2.0), rel=1e-4)
    clipped = results["ppo_clip"].curve
    ratio = np.exp(clipped.grid)
    assert clipped.positive == pytest.approx(ratio * (ratio <= 1.2), rel=1e-4)
    assert clipped.negative == pytest.approx(ratio * (ratio >= 0.8), rel=1e-4)
    # Hang on the prefix, on the response's mean and on the whole batch: no curve of one number.
    assert results["prefix_is"].curve is results["gmpo"].curve is results["m2po"].curve is None


def test_hyperparameters_and_staleness_are_used() -> None:
    capped = run([[2.0], [0.0]], [1.0, 1.0], methods=[get_method("seq_tis", cap=1.5)])["seq_tis"]
    assert capped.parameters["cap"] == 1.5 and capped.mean.value == pytest.approx(1.25)
    stale = simulate_methods(
        [-1.0, -1.0],
        [-1.0, -1.0],
        [0, 1, 2],
        [0, 1],
        [1.0, -1.0],
        old_logprobs=[-1.5, -1.5],
        methods=["ppo_clip"],
    )["ppo_clip"]
    assert stale.positive_mass.value == 0.0  # pi / pi_old = e^0.5 is above the cap
    assert stale.negative_mass.value == pytest.approx(np.exp(0.5))


def test_masked_tokens_and_empty_sequences_do_not_count() -> None:
    got = simulate_methods(
        [-1.0, np.nan, -2.0], [-1.0, -1.0, -2.0], [0, 2, 2, 3], [0, 1, 1], [1.0, 1.0, -1.0], mask=[1, 0, 1]
    )["vespo"]
    assert got.mean.value == 1.0 and got.mean.n == 2 and got.kept_fraction.n == 2


def test_extreme_weights_give_numbers_and_json(recwarn: pytest.WarningsRecorder) -> None:
    results = run([[9000.0], [-9000.0], [0.0], [5000.0]], [1.0, -1.0, 1.0, 0.0], methods=available_methods())
    for name, got in results.items():
        assert np.isfinite(got.mean.value), name
    text = json.dumps(to_json(results), allow_nan=False)
    assert "Infinity" not in text
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


def test_one_prompt_has_a_value_and_no_interval_and_no_signs_have_reasons() -> None:
    got = simulate_methods([-1.0], [-1.1], [0, 1], [0], [2.0])["vespo"]
    assert got.mean.value is not None and got.mean.ci_low is None and "an interval needs" in got.mean.reason
    assert got.negative_mass.value is None and "below 0" in got.negative_mass.reason
    assert got.mass_ratio.value is None and got.mass_ratio.reason


def test_the_same_seed_gives_the_same_interval() -> None:
    rows = [[x] for x in np.linspace(-1, 1, 20)]
    first, second = (run(rows, None, seed=7)["vespo"] for _ in range(2))
    assert first.mean == second.mean and first.mean != run(rows, None, seed=8)["vespo"].mean


def test_intervals_resample_prompts() -> None:
    """Two equal sequences a prompt carry no more than one: the interval must not shrink."""
    values = np.linspace(-2, 1, 30)
    single = run([[x] for x in values for _ in range(2)], [1.0] * 60)["vespo"].mean
    naive = simulate_methods(
        *(lambda flat: (np.minimum(-1.0, -1.0 - flat) + flat, np.minimum(-1.0, -1.0 - flat)))(
            np.repeat(values, 2)
        ),
        np.arange(61),
        np.arange(60),
        np.ones(60),
    )["vespo"].mean
    assert (single.ci_high - single.ci_low) > 1.25 * (naive.ci_high - naive.ci_low)


def test_what_does_not_line_up_is_refused() -> None:
    with pytest.raises(ConfigError, match="offsets"):
        simulate_methods([-1.0], [-1.0], [0, 2], [0], [1.0])
    with pytest.raises(ConfigError, match="prompts"):
        simulate_methods([-1.0], [-1.0], [0, 1], [0, 1], [1.0])
    with pytest.raises(ConfigError, match="advantages"):
        simulate_methods([-1.0], [-1.0], [0, 1], [0], [1.0, 2.0])
    with pytest.raises(ConfigError, match="did you mean"):
        simulate_methods([-1.0], [-1.0], [0, 1], [0], [1.0], methods=["vesp0"])
    with pytest.raises(InconclusiveError):
        simulate_methods([], [], [0], [], None)
    with pytest.raises(InconclusiveError):
        simulate_methods([-1.0], [-1.0], [0, 1], [0], None, mask=[0])


def test_an_interval_with_an_open_end_is_not_given() -> None:
    """One of 20 prompts differs, in one response: no spread in the resamples without it, so no interval of the mean."""
    rows = [[-1e-3] * 10] * 79 + [[0.0] * 10]
    got = simulate_methods(
        *(lambda flat: (flat - 1.0, np.full(len(flat), -1.0)))(np.concatenate(rows)),
        np.arange(81) * 10,
        np.arange(80) // 4,
        np.tile([1.0, -1.0], 40),
        methods=["gspo"],
    )["gspo"]
    assert got.mean.value == pytest.approx((40 * np.exp(-1e-3) + 1.0) / 80)
    assert got.mean.ci_low is None and "too few prompts" in got.mean.reason
    # The share that is kept is a rate: its interval holds, and tells the signs apart.
    positive, negative = (got.by_sign[word].kept_fraction for word in ("positive", "negative"))
    assert positive.ci_low > negative.ci_high and negative.ci_low < 1 / 40 < negative.ci_high
    assert 0.4 < got.kept_fraction.ci_low < got.kept_fraction.value < got.kept_fraction.ci_high < 0.65
