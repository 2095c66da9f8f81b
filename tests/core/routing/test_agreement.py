import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mismatch_probe.errors import InconclusiveError
from mismatch_probe.routing.agreement import BLOCK_ROWS
from mismatch_probe.routing.agreement import compare_routes as compare


def compare_routes(rollout, train, num_experts=16):
    return compare(rollout, train, num_experts=num_experts)


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


@pytest.mark.parametrize(
    "broken", [[-1, -1, -1, -1], [3, -1, 2, 1], [5, 5, 2, 1], [255, 1, 2, 3], [1, 2, 3, 16]]
)
@pytest.mark.parametrize("sides", ["both", "rollout", "train"])
def test_a_missing_or_sentinel_route_is_neither_agreement_nor_a_flip(broken, sides):
    a = routes(np.random.default_rng(1))
    b = a.copy()
    for side, name in ((a, "rollout"), (b, "train")):
        if sides in ("both", name):
            side[7, 1] = broken
    compared = compare_routes(a, b)
    assert compared.missing[7, 1] and compared.missing.sum() == 1
    assert not compared.agrees[7, 1] and compared.agrees.sum() == compared.agrees.size - 1
    assert not compared.flipped.any()
    assert compared.overlap[7, 1] == 0 and not compared.same_top1[7, 1] and not compared.same_order[7, 1]


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint8, np.int64])
def test_any_integer_type_gives_the_same(dtype):
    rng = np.random.default_rng(2)
    a, b = routes(rng), routes(rng)
    plain, other = compare_routes(a, b), compare_routes(a.astype(dtype), b.astype(dtype))
    assert np.array_equal(plain.overlap, other.overlap)


@pytest.mark.parametrize("experts", [255, 256, 257, 600])
def test_experts_beyond_a_byte_are_told_apart(experts):
    a = np.array([[[0, experts - 1, 3, 7]]], dtype=np.int16)
    b = a.copy()
    b[0, 0, 1] = (experts - 1) % 256 if experts > 256 else experts - 2
    assert compare_routes(a, a, experts).agrees.all()
    compared = compare_routes(a, b, experts)
    assert not compared.agrees.any()


def test_blocks_make_no_difference():
    rng = np.random.default_rng(3)
    tokens = BLOCK_ROWS // 3 + 1000
    a = routes(rng, tokens=tokens)
    b = np.where(rng.random((tokens, 3, 1)) < 0.3, rng.permuted(a, axis=-1), routes(rng, tokens=tokens))
    whole = compare_routes(a, b)
    pieces = [
        compare_routes(a[start : start + 997], b[start : start + 997]) for start in range(0, tokens, 997)
    ]
    for name in ("flipped", "missing", "overlap", "same_top1", "same_order"):
        assert np.array_equal(
            getattr(whole, name), np.concatenate([getattr(piece, name) for piece in pieces])
        )


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
