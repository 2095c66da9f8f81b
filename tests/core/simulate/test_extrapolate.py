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

Make = Callable[..., Responses]


def test_longer_responses_follow_the_log_normal_law_of_independent_noise(make_responses: Make) -> None:
    """Noise of .05 a token is s = .0025 T; the simulated mass must be that of the population."""
    responses = make_responses(noise=0.05, sequences=400, length=100)
    for point in extrapolate("vespo", responses, lengths=[50, 100, 400, 800], staleness=[1], sequences=1000):
        assert point.response is not None and point.measured == (point.length <= 100)
        population = gaussian_response(0.0025 * point.length, 2.0, 3.0)
        assert point.response.positive_mass.value == pytest.approx(population.mass, abs=0.05)
        assert point.response.mean.ci_low is None


def test_persistent_drift_is_carried_into_longer_responses(make_responses: Make) -> None:
    """A constant shift of -.01 a token makes log W = -.01 T at any length."""
    responses = make_responses([[-0.01] * 20] * 16)
    (point,) = extrapolate("seq_is", responses, lengths=[150], staleness=[1], sequences=64)
    assert point.response.mean.value == pytest.approx(np.exp(-1.5))


def test_staleness_is_what_the_model_says_and_grows_with_n(make_responses: Make) -> None:
    still = make_responses([[0.0] * 40] * 16)
    model = StalenessModel(1e-3)
    masses = []
    for point in extrapolate("vespo", still, lengths=[40], staleness=[1, 4, 16], model=model, sequences=3000):
        mixture = [gaussian_response(2 * 1e-3 * k * 40, 2.0, 3.0).mass for k in range(point.staleness)]
        assert point.response.positive_mass.value == pytest.approx(np.mean(mixture), abs=0.03)
        masses.append(point.response.positive_mass.value)
    assert masses[0] == 1.0 > masses[1] > masses[2]


def test_corrections_that_read_only_the_mismatch_do_not_see_staleness(make_responses: Make) -> None:
    still = make_responses([[0.0] * 40] * 16)
    (point,) = extrapolate(
        "geo_rs", still, lengths=[40], staleness=[8], model=StalenessModel(1e-6), sequences=64
    )
    assert point.response.kept_fraction.value == 1.0
    (point,) = extrapolate(
        "gspo", still, lengths=[40], staleness=[8], model=StalenessModel(1e-3), sequences=64
    )
    assert point.response.kept_fraction.value < 0.8


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
    (point,) = extrapolate("vespo", moved, lengths=[10], staleness=[4], sequences=64)
    assert point.response is not None


def test_what_the_data_cannot_carry_is_refused(make_responses: Make) -> None:
    responses = make_responses(length=10)
    far, stale = extrapolate("vespo", responses, lengths=[81], staleness=[1], sequences=32) + extrapolate(
        "vespo", responses, lengths=[10], staleness=[2], sequences=32
    )
    assert far.response is None and "8 times" in (far.reason or "")
    assert stale.response is None and "pi_old" in (stale.reason or "")
    with pytest.raises(ConfigError):
        extrapolate("vespo", responses, lengths=[0])


def test_the_same_seed_gives_the_same_numbers(make_responses: Make) -> None:
    responses = make_responses()
    first, second = (
        extrapolate("vespo", responses, lengths=[60], staleness=[1], sequences=50) for _ in range(2)
    )
    assert first[0].response.mean == second[0].response.mean
