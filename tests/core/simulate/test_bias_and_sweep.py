"""Bias and variance against sequence importance sampling, and sweeps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mismatch_probe.errors import ConfigError
from mismatch_probe.simulate import Responses, bias_variance, sweep
from mismatch_probe.weights import get_method

Make = Callable[..., Responses]
SIGNS = [1.0, -0.5] * 100


def test_sequence_is_has_no_bias_against_itself(make_responses: Make) -> None:
    got = bias_variance(get_method("seq_is"), make_responses(sequences=200, noise=0.05, advantages=SIGNS))
    assert got.bias.value == pytest.approx(0.0, abs=1e-15)
    assert got.variance_ratio.value == pytest.approx(1.0)
    assert got.break_even is None


def test_bias_and_variance_are_those_of_the_sample(make_responses: Make) -> None:
    responses = make_responses(sequences=200, noise=0.05, advantages=SIGNS)
    weight = np.exp(responses.log_weight())
    for name, own in (("reinforce", np.ones(200)), ("seq_tis", np.minimum(weight, 1.1))):
        method = get_method("seq_tis", cap=1.1) if name == "seq_tis" else get_method(name)
        got = bias_variance(method, responses)
        amounts = np.array(SIGNS)
        assert got.bias.value == pytest.approx(((own - weight) * amounts).mean())
        assert got.variance_ratio.value == pytest.approx((own * amounts).var() / (weight * amounts).var())


def test_truncation_is_biased_and_has_a_batch_size_that_it_loses_at(make_responses: Make) -> None:
    responses = make_responses(sequences=2000, noise=0.1, advantages=[1.0] * 2000)
    got = bias_variance(get_method("seq_tis", cap=1.0), responses)
    assert got.bias.ci_high < 0 and got.variance_ratio.value < 0.5
    weight = np.exp(responses.log_weight())
    own = np.minimum(weight, 1.0)
    expect = (weight.var(ddof=1) - own.var(ddof=1)) / (own - weight).mean() ** 2
    assert got.break_even == pytest.approx(expect)


def test_heavy_tails_are_refused_with_the_number_that_says_so(make_responses: Make) -> None:
    got = bias_variance(
        get_method("vespo"), make_responses(sequences=200, noise=0.6, length=60, advantages=SIGNS)
    )
    assert got.bias.value is None and "k-hat" in (got.bias.reason or "")
    assert got.k_hat.value is not None and got.k_hat.value > got.k_hat.good_k


def test_without_advantages_there_is_nothing_to_compare(make_responses: Make) -> None:
    assert "no advantages" in (bias_variance(get_method("vespo"), make_responses()).bias.reason or "")


def test_a_sweep_is_the_method_at_each_point(make_responses: Make) -> None:
    responses = make_responses(noise=0.3, advantages=[1.0, -1.0] * 40)
    points = sweep("token_tis", {"cap": [1.1, 1.5, 3.0], "floor": [0.0, 0.9]}, responses, resamples=50)
    assert [point.values for point in points][:3] == [
        {"cap": 1.1, "floor": 0.0},
        {"cap": 1.1, "floor": 0.9},
        {"cap": 1.5, "floor": 0.0},
    ]
    flat = np.exp(responses.train - responses.rollout)
    for point in points:
        expect = np.clip(flat, point.values["floor"], point.values["cap"]).mean()
        assert point.response.mean.value == pytest.approx(expect)
        assert point.response.curve is None
    kernel = sweep("vespo", {"lambda_pos": [1.0, 4.0]}, responses, fixed={"k_pos": 3.0}, resamples=0)
    assert kernel[0].response.parameters["k_pos"] == 3.0
    assert kernel[0].response.positive_mass.value != kernel[1].response.positive_mass.value
    assert kernel[0].response.negative_mass == kernel[1].response.negative_mass


def test_sweeps_of_nothing_are_refused(make_responses: Make) -> None:
    for grid in ({}, {"cap": []}):
        with pytest.raises(ConfigError, match="at least one"):
            sweep("token_tis", grid, make_responses())
    with pytest.raises(ConfigError, match="cap"):
        sweep("token_tis", {"capp": [1.0]}, make_responses())
