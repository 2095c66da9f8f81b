"""Made-up responses: they carry the measured drift, and staleness does what its model says."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mismatch_probe.errors import ConfigError
from mismatch_probe.simulate import (
    Responses,
    StalenessModel,
    extrapolate,
    gaussian_response,
    measured_staleness,
)
from mismatch_probe.simulate.stale_updates import MeasuredUpdates
from mismatch_probe.weights import get_method

Make = Callable[..., Responses]


def test_longer_responses_follow_the_log_normal_law_of_independent_noise(make_responses: Make) -> None:
    """Noise of .05 a token is s = .0025 T; the simulated mass must be that of the population."""
    responses = make_responses(noise=0.05, sequences=400, length=100)
    for point in extrapolate(
        ["vespo"], responses, lengths=[50, 100, 400, 800], staleness=[1], sequences=1000
    ):
        assert not point.reason and point.measured == (point.length <= 100)
        population = gaussian_response(0.0025 * point.length, 2.0, 3.0)
        assert point.responses["vespo"].positive_mass.value == pytest.approx(population.mass, abs=0.05)
        assert point.responses["vespo"].mean.ci_low is None


def test_persistent_drift_is_carried_into_longer_responses(make_responses: Make) -> None:
    """A constant shift of -.01 a token makes log W = -.01 T at any length."""
    responses = make_responses([[-0.01] * 20] * 16)
    (point,) = extrapolate(["seq_is"], responses, lengths=[150], staleness=[1], sequences=64)
    assert point.responses["seq_is"].mean.value == pytest.approx(np.exp(-1.5))


def test_staleness_is_what_the_model_says_and_grows_with_n(make_responses: Make) -> None:
    still = make_responses([[0.0] * 40] * 16)
    model = StalenessModel(1e-3)
    masses = []
    for point in extrapolate(
        ["vespo"], still, lengths=[40], staleness=[1, 4, 16], model=model, sequences=3000
    ):
        mixture = [gaussian_response(2 * 1e-3 * k * 40, 2.0, 3.0).mass for k in range(point.staleness)]
        assert point.responses["vespo"].positive_mass.value == pytest.approx(np.mean(mixture), abs=0.03)
        masses.append(point.responses["vespo"].positive_mass.value)
    assert masses[0] == 1.0 > masses[1] > masses[2]


def test_corrections_that_read_only_the_mismatch_do_not_see_staleness(make_responses: Make) -> None:
    still = make_responses([[0.0] * 40] * 16)
    (point,) = extrapolate(
        ["geo_rs"], still, lengths=[40], staleness=[8], model=StalenessModel(1e-6), sequences=64
    )
    assert point.responses["geo_rs"].kept_fraction.value == 1.0
    (point,) = extrapolate(
        ["gspo"], still, lengths=[40], staleness=[8], model=StalenessModel(1e-3), sequences=64
    )
    assert point.responses["gspo"].kept_fraction.value < 0.8


def test_straight_updates_outgrow_wandering_ones() -> None:
    assert StalenessModel(1e-3, growth=2.0).kl(8) == pytest.approx(0.064)
    assert StalenessModel(1e-3).kl(8) == pytest.approx(0.008)
    for wrong in ((-1.0, 1.0), (float("nan"), 1.0), (1.0, 0.0)):
        with pytest.raises(ConfigError):
            StalenessModel(*wrong)


def test_staleness_is_measured_from_recomputed_log_probabilities(make_responses: Make) -> None:
    assert measured_staleness(make_responses()) is None
    moved = make_responses(update=0.1, sequences=400)
    assert measured_staleness(moved).kl_per_step == pytest.approx(0.1**2 / 2, rel=0.1)
    assert measured_staleness(moved, steps=4.0).kl_per_step == pytest.approx(0.1**2 / 8, rel=0.1)
    (point,) = extrapolate(["vespo"], moved, lengths=[10], staleness=[4], sequences=64)
    assert point.responses


def test_what_the_data_cannot_carry_is_refused(make_responses: Make) -> None:
    responses = make_responses(length=10)
    far, stale = extrapolate(["vespo"], responses, lengths=[81], staleness=[1], sequences=32) + extrapolate(
        ["vespo"], responses, lengths=[10], staleness=[2], sequences=32
    )
    assert not far.responses and "8 times" in (far.reason or "")
    assert not stale.responses and "pi_old" in (stale.reason or "")
    with pytest.raises(ConfigError):
        extrapolate(["vespo"], responses, lengths=[0])


def test_the_same_seed_gives_the_same_numbers(make_responses: Make) -> None:
    responses = make_responses()
    first, second = (
        extrapolate(["vespo"], responses, lengths=[60], staleness=[1], sequences=50) for _ in range(2)
    )
    assert first[0].responses["vespo"].mean == second[0].responses["vespo"].mean


def test_measured_updates_are_drawn_with_the_mismatch_of_their_tokens(make_responses: Make) -> None:
    """The update takes back the mismatch token by token, so that W is 1: independent draws would not give that."""
    responses = make_responses(noise=0.2, sequences=64, length=20)
    mismatch = (responses.train - responses.rollout)[: 64 * 20]
    updates = MeasuredUpdates.of(
        [1.0], [-mismatch], mismatch, responses.offsets[:65], responses.clusters[:64]
    )
    (point,) = extrapolate(
        ["seq_is"],
        responses,
        lengths=[20],
        staleness=[2],
        model=StalenessModel(0.02),
        updates=updates,
        sequences=256,
    )
    assert point.drawn == "measured" and point.sequences == 256
    fresh, stale = 0.5, 0.5  # half of the responses have no update behind them
    expected = fresh * np.exp(mismatch.reshape(64, 20).sum(axis=1)).mean() + stale
    assert point.responses["seq_is"].mean.value == pytest.approx(expected, rel=0.25)
    (drawn,) = extrapolate(
        ["seq_is"], responses, lengths=[20], staleness=[2], model=StalenessModel(0.02), sequences=256
    )
    assert (
        drawn.drawn == "model" and drawn.responses["seq_is"].ess.value < point.responses["seq_is"].ess.value
    )


def test_checkpoints_that_do_not_reach_so_far_are_a_reason_and_not_a_guess(make_responses: Make) -> None:
    responses = make_responses(noise=0.1, sequences=16, length=10)
    update = np.random.default_rng(0).normal(-0.005, 0.1, 160)
    mismatch = (responses.train - responses.rollout)[:160]
    updates = MeasuredUpdates.of([1.0], [update], mismatch, responses.offsets[:17], responses.clusters[:16])
    near, far = extrapolate(
        ["vespo"],
        responses,
        lengths=[10],
        staleness=[2, 64],
        model=StalenessModel(0.005),
        updates=updates,
        sequences=64,
    )
    assert near.responses and not far.responses and "too far beyond" in (far.reason or "")


def test_one_method_with_several_hyperparameters_sees_the_same_responses(make_responses: Make) -> None:
    responses = make_responses(noise=0.3, sequences=40, length=30)
    tried = {"tight": get_method("seq_tis", cap=1.01), "loose": get_method("seq_tis", cap=50.0)}
    (point,) = extrapolate(tried, responses, lengths=[30], staleness=[1], sequences=128, resamples=50)
    tight, loose = point.responses["tight"], point.responses["loose"]
    assert tight.mean.value < loose.mean.value and tight.ess.value > loose.ess.value
    assert tight.mean.ci_low < tight.mean.value < tight.mean.ci_high
