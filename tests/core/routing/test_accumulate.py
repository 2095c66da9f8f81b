"""The accumulator against the same numbers worked out token by token, and in any order of parts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.routing.accumulate import RoutedPart, RoutingAccumulator, column_counts
from mismatch_probe.routing.flips import predicting_positions
from mismatch_probe.stats.kl import token_k3

LAYERS, EXPERTS, TOP_K = 3, 8, 2


def part_of(rng, sequences=5, prompts=None, missing=0.0):
    prompt_lengths, response_lengths = rng.integers(1, 5, sequences), rng.integers(0, 9, sequences)
    lengths = prompt_lengths + response_lengths - 1
    shape = (int(lengths.sum()), LAYERS)
    ids = np.argsort(rng.random((2, *shape, EXPERTS)), axis=-1)[..., :TOP_K].astype(np.int16)
    train = np.where(rng.random((*shape, 1)) < 0.3, ids[1], ids[0])
    rollout = ids[0].copy()
    rollout[rng.random(shape) < missing] = 255
    return RoutedPart(
        rollout=rollout,
        train=train,
        lengths=lengths,
        prompts=rng.integers(0, 3, sequences) if prompts is None else prompts,
        predicting=predicting_positions(prompt_lengths, response_lengths),
        log_ratio=rng.normal(0, 0.3, int(response_lengths.sum())),
        margins=rng.exponential(0.1, shape).astype(np.float16),
    )


def empty():
    return RoutingAccumulator(num_layers=LAYERS, num_experts=EXPERTS, top_k=TOP_K)


def accumulated(*parts):
    routing = empty()
    for part in parts:
        routing.update(part)
    return routing


def sums_of(routing):
    return {
        "tokens": routing.num_tokens,
        **{name: getattr(routing, name) for name in ("flips", "missing", "same_top1", "same_order", "load")},
        **{name: getattr(routing, name).table() for name in ("by_layer", "by_token", "by_flips", "by_first")},
        "margins": routing.margins.sums,
        "margin_bins": routing.margins.bins,
    }


def assert_same(one, other):
    one, other = sums_of(one), sums_of(other)
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-12, atol=1e-12, err_msg=name)


def test_every_sum_is_that_of_the_tokens():
    part = part_of(np.random.default_rng(0), sequences=12, missing=0.05)
    routing = accumulated(part)
    prompt = np.repeat(part.prompts, part.lengths)
    load = np.zeros((2, LAYERS, EXPERTS))
    agree, jaccard, missing = np.zeros((3, LAYERS)), np.zeros((3, LAYERS)), np.zeros(LAYERS)
    flips, first, complete = [], [], []
    for token in range(len(part.rollout)):
        layers = []
        for layer in range(LAYERS):
            left, right = set(part.rollout[token, layer].tolist()), set(part.train[token, layer].tolist())
            if 255 in left:
                missing[layer] += 1
                continue
            load[0, layer, list(left)] += 1
            load[1, layer, list(right)] += 1
            agree[prompt[token], layer] += left == right
            jaccard[prompt[token], layer] += len(left & right) / len(left | right)
            layers += [layer] if left != right else []
        flips.append(len(layers))
        first.append(layers[0] if layers else LAYERS)
        complete.append(not (part.rollout[token] == 255).any())
    seen = sorted(set(part.prompts.tolist()))
    table = routing.by_layer.table()
    np.testing.assert_allclose(table[:, :LAYERS], agree[seen])
    np.testing.assert_allclose(table[:, LAYERS:-1], jaccard[seen])
    np.testing.assert_array_equal(routing.missing, missing)
    np.testing.assert_array_equal(routing.load, load)
    flips, first, complete = np.array(flips), np.array(first), np.array(complete)
    np.testing.assert_array_equal(routing.flips, np.bincount(flips[complete], minlength=LAYERS + 1))
    kept = complete[part.predicting]
    for sums, key in ((routing.by_flips, flips), (routing.by_first, first)):
        rows = sums.table().sum(axis=0).reshape(-1, 3)
        for value, (n, absolute, k3) in enumerate(rows):
            chosen = part.log_ratio[kept & (key[part.predicting] == value)]
            assert (n, absolute, k3) == pytest.approx(
                (chosen.size, np.abs(chosen).sum(), token_k3(chosen).sum()), abs=1e-12
            )


@given(st.integers(0, 2**32 - 1))
def test_parts_and_merging_make_no_difference(seed):
    rng = np.random.default_rng(seed)
    parts = [part_of(rng, missing=0.1) for _ in range(3)]
    whole = accumulated(*parts)
    assert_same(whole, accumulated(*parts[::-1]))
    left, right = accumulated(parts[1]), accumulated(parts[2], parts[0])
    left.merge(right)
    assert_same(whole, left)


def test_tokens_with_a_missing_route_count_neither_as_flipped_nor_as_agreeing():
    part = part_of(np.random.default_rng(1), missing=1.0)
    routing = accumulated(part)
    assert routing.flips.sum() == 0 and not routing.load.any()
    assert not routing.by_layer.table()[:, : 2 * LAYERS].any()
    assert routing.missing.tolist() == [len(part.rollout)] * LAYERS
    assert not routing.by_flips.table().any() and not routing.by_token.table().any()


def test_margins_are_filed_by_whether_the_decision_flipped():
    rng = np.random.default_rng(2)
    part = part_of(rng, sequences=20)
    flipped = np.sort(part.rollout) != np.sort(part.train)
    flipped = flipped.any(axis=-1)
    margins = np.where(flipped, 0.001, 0.3).astype(np.float16)
    margins[0, 0] = np.inf
    routing = empty()
    routing.update(
        RoutedPart(**{name: getattr(part, name) for name in part.__slots__} | {"margins": margins})
    )
    bins = routing.margins.histogram()
    assert [(edge.flipped, edge.n - edge.flipped > 0) for edge in bins] == [
        (flipped.sum() - flipped[0, 0], False),
        (0, True),
    ]
    assert bins[0].low <= 0.001 < bins[0].high and bins[1].low <= 0.3 < bins[1].high
    assert routing.margins.means(1) == (pytest.approx(0.3, rel=1e-3), pytest.approx(0.001, rel=1e-3))


def test_what_does_not_fit_is_refused():
    rng = np.random.default_rng(3)
    part = part_of(rng)

    def changed(**fields):
        return RoutedPart(**{name: getattr(part, name) for name in part.__slots__} | fields)

    for fields in (
        {"lengths": part.lengths + 1},
        {"log_ratio": part.log_ratio[:-1]},
        {"prompts": part.prompts[1:]},
    ):
        with pytest.raises(ConfigError):
            empty().update(changed(**fields))
    with pytest.raises(InconclusiveError):
        empty().update(changed(train=part.train[:-1]))
    with pytest.raises(InconclusiveError, match="below 0"):
        empty().update(changed(margins=-np.ones(part.rollout.shape[:2], np.float32)))
    with pytest.raises(ConfigError):
        RoutingAccumulator(num_layers=LAYERS + 1, num_experts=EXPERTS, top_k=TOP_K).update(part)
    with pytest.raises(ConfigError):
        empty().merge(RoutingAccumulator(num_layers=LAYERS, num_experts=EXPERTS + 1, top_k=TOP_K))


@pytest.mark.parametrize("rows", [1, 254, 255, 256, 1000])
def test_columns_are_counted_beyond_a_byte(rows):
    flags = np.random.default_rng(rows).random((rows, 5)) < 0.9
    assert column_counts(flags).tolist() == flags.sum(axis=0).tolist()


def test_memory_does_not_grow_with_the_tokens():
    import tracemalloc

    rng = np.random.default_rng(4)
    routing = accumulated(part_of(rng, sequences=400))
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(5):
        routing.update(part_of(rng, sequences=400))
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert held < 20_000
