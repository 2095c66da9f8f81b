import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mismatch_probe.errors import InconclusiveError
from mismatch_probe.routing.agreement import compare_routes, flips_before


def routes(rng, tokens=50, layers=3, experts=16, top_k=4):
    return np.argsort(rng.random((tokens, layers, experts)), axis=-1)[..., :top_k].astype(np.int16)


def test_order_does_not_matter_for_the_set_but_does_for_top1():
    a = np.array([[[1, 2, 3]]], dtype=np.int16)
    b = np.array([[[2, 1, 3]]], dtype=np.int16)
    compared = compare_routes(a, b)
    assert not compared.flipped.any()
    assert compared.overlap.tolist() == [[3]]
    assert not compared.same_top1.any()


def test_overlap_and_jaccard_are_those_of_the_sets():
    rng = np.random.default_rng(0)
    a, b = routes(rng), routes(rng)
    compared = compare_routes(a, b)
    for token in range(a.shape[0]):
        for layer in range(a.shape[1]):
            left, right = set(a[token, layer].tolist()), set(b[token, layer].tolist())
            assert compared.overlap[token, layer] == len(left & right)
            assert compared.jaccard[token, layer] == pytest.approx(len(left & right) / len(left | right))
            assert compared.flipped[token, layer] == (left != right)


@pytest.mark.parametrize("broken", [[-1, -1, -1, -1], [3, -1, 2, 1], [5, 5, 2, 1]])
def test_a_missing_or_sentinel_route_is_never_agreement(broken):
    a = routes(np.random.default_rng(1))
    a[7, 1] = broken
    compared = compare_routes(a, a.copy())
    assert compared.flipped[7, 1] and compared.missing[7, 1]
    assert compared.overlap[7, 1] == 0 and not compared.same_top1[7, 1]
    assert compared.flipped.sum() == 1


@given(st.integers(0, 2**32 - 1), st.integers(1, 8))
def test_permuting_a_side_changes_no_set_statistic(seed, top_k):
    rng = np.random.default_rng(seed)
    a, b = routes(rng, top_k=top_k), routes(rng, top_k=top_k)
    shuffled = rng.permuted(b, axis=-1)
    one, two = compare_routes(a, b), compare_routes(a, shuffled)
    assert np.array_equal(one.flipped, two.flipped)
    assert np.array_equal(one.overlap, two.overlap)
    assert np.array_equal(compare_routes(b, a).overlap, one.overlap)


def test_other_shapes_are_inconclusive():
    a = routes(np.random.default_rng(0))
    with pytest.raises(InconclusiveError):
        compare_routes(a, a[:-1])
    with pytest.raises(InconclusiveError):
        compare_routes(a[:0], a[:0])


def test_a_token_is_charged_with_the_position_that_predicted_it():
    # One sequence: prompt 2, response 3 -> fed positions 0..3; responses are predicted from positions 1, 2, 3.
    flips = np.array([9, 1, 2, 3, 9, 9, 4])
    got = flips_before(flips, np.array([2, 3]), np.array([3, 1]))
    assert got.tolist() == [1, 2, 3, 4]


VECTORS = json.loads((Path(__file__).parents[2] / "vectors/routing.json").read_text())["routing_overlap"]


@pytest.mark.parametrize("case", VECTORS["cases"])
def test_exact_vectors(case):
    args, expect = case["args"], case["expect"]
    compared = compare_routes(np.array(args["rollout"], np.int16), np.array(args["train"], np.int16))
    got = {
        "router_diff_frac": compared.flipped.mean(),
        "token_any_diff_frac": (compared.flipped_layers > 0).mean(),
        "mean_layers_diff": compared.flipped_layers.mean(),
        "mean_jaccard": compared.jaccard.mean(),
    }
    assert got == {name: pytest.approx(value, rel=case["rtol"]) for name, value in expect.items()}
