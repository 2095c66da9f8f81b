"""Flips by token, and which fed token a response token is charged with."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mismatch_probe.routing.agreement import compare_routes
from mismatch_probe.routing.flips import predicting_positions, token_flips


def test_a_token_is_charged_with_the_position_that_predicted_it():
    # One sequence: prompt 2, response 3 -> fed positions 0..3; responses are predicted from positions 1, 2, 3.
    flips = np.array([9, 1, 2, 3, 9, 9, 4])
    assert flips[predicting_positions(np.array([2, 3]), np.array([3, 1]))].tolist() == [1, 2, 3, 4]


def test_an_empty_response_is_charged_with_nothing():
    assert predicting_positions(np.array([2, 3]), np.array([0, 2])).tolist() == [3, 4]


@given(st.integers(0, 2**32 - 1))
def test_count_first_and_completeness_are_those_of_the_rows(seed):
    rng = np.random.default_rng(seed)
    a = np.argsort(rng.random((30, 5, 6)), axis=-1)[..., :2].astype(np.int16)
    b = np.where(rng.random((30, 5, 1)) < 0.2, np.argsort(rng.random((30, 5, 6)), axis=-1)[..., :2], a)
    b[rng.random((30, 5)) < 0.05] = -1
    compared = compare_routes(a, b, num_experts=6)
    flips = token_flips(compared)
    for token in range(30):
        layers = [layer for layer in range(5) if compared.flipped[token, layer]]
        assert flips.count[token] == len(layers)
        assert flips.first[token] == (layers[0] if layers else 5)
        assert flips.complete[token] == (not compared.missing[token].any())
