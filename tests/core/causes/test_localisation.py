"""Which unit is wrong, from states of both sides."""

import numpy as np
import pytest

from mismatch_probe.causes.localisation import LocationSums
from mismatch_probe.errors import InconclusiveError

LAYERS, TOKENS, WIDTH = 6, 30, 16
UNITS = ("input_norm", "qkv_proj", "attention", "o_proj", "layer")


def states(seed, *, step=1e-3):
    """Rollout, training side and float32: the two engines round on their own."""
    rng = np.random.default_rng(seed)
    rollout, train, reference = {}, {}, {}
    for layer in range(LAYERS):
        rollout[f"{layer}.layer.in"] = rng.normal(size=(TOKENS, WIDTH))
        for unit in UNITS:
            name = f"{layer}.{unit}.out"
            exact = rng.normal(size=(TOKENS, WIDTH))
            reference[name] = exact
            train[name] = exact + step * rng.normal(size=exact.shape)
            rollout[f"{layer}.o_proj.in" if unit == "attention" else name] = exact + step * rng.normal(
                size=exact.shape
            )
    return rollout, train, reference


def located(rollout, train, reference):
    sums = LocationSums()
    free = [{name: rows for name, rows in side.items() if ".layer." in name} for side in (train, reference)]
    sums.add(rollout, free, [train, reference], None)
    return sums.location()


@pytest.mark.parametrize("seed", range(20))
def test_independent_rounding_names_nothing(seed):
    found = located(*states(seed))
    assert found.first is None
    assert "No module stands out" in found.sentence
    assert all(0.5 < unit.over_rounding < 2.0 for unit in found.units)


@pytest.mark.parametrize("unit", UNITS[:-1])
def test_a_wrong_unit_is_named_and_not_the_layers_after_it(unit):
    rollout, train, reference = states(1)
    for side in (train, reference):
        side[f"4.{unit}.out"] = side[f"4.{unit}.out"] * 1.01
        side["4.layer.out"] = side["4.layer.out"] * 1.005
    found = located(rollout, train, reference)
    assert (found.first.layer, found.first.unit) == (4, unit)
    assert found.first.finding == "stands out"
    assert {entry.layer for entry in found.ranked} == {4}


def test_a_kernel_that_is_wrong_on_one_side_only_is_found_and_the_side_named():
    for wrong in ("train", "rollout"):
        rollout, train, reference = states(8)
        side = train if wrong == "train" else rollout
        side["1.qkv_proj.out"] = side["1.qkv_proj.out"] * 1.02
        found = located(rollout, train, reference)
        assert (found.first.layer, found.first.unit, found.first.farther) == (1, "qkv_proj", wrong)


def test_a_unit_that_differs_in_every_layer_is_said_to_differ_everywhere():
    rollout, train, reference = states(2)
    for layer in range(LAYERS):
        for side in (train, reference):
            side[f"{layer}.attention.out"] = side[f"{layer}.attention.out"] * 1.02
    found = located(rollout, train, reference)
    assert found.first.finding == "everywhere"
    assert found.first.unit == "attention"
    assert f"{LAYERS} of {LAYERS} layers" in found.sentence


def test_where_the_others_are_equal_in_every_bit_less_than_two_roundings_is_still_odd():
    rollout, train, reference = states(3)
    for layer in range(LAYERS):
        rollout[f"{layer}.qkv_proj.out"] = train[f"{layer}.qkv_proj.out"].copy()
    rollout["2.qkv_proj.out"] += 2.5e-3
    found = located(rollout, train, reference)
    assert (found.first.layer, found.first.unit) == (2, "qkv_proj")


def test_accumulated_error_is_relative_to_the_stream():
    rollout, train, reference = states(4)
    for layer in range(LAYERS):
        rollout[f"{layer}.layer.out"] = np.ones((TOKENS, WIDTH))
        train[f"{layer}.layer.out"] = np.full((TOKENS, WIDTH), 1.0 + 0.01 * (layer + 1))
    drift = located(rollout, train, reference).layers
    assert [row.accumulated for row in drift] == pytest.approx(
        [0.01 * (layer + 1) for layer in range(LAYERS)]
    )


def test_sums_over_sequences_add_up():
    sums = LocationSums()
    parts = [states(seed) for seed in (5, 6)]
    for rollout, train, reference in parts:
        sums.add(rollout, [{}, {}], [train, reference], None)
    joined = [
        {name: np.concatenate([part[side][name] for part in parts]) for name in parts[0][side]}
        for side in range(3)
    ]
    whole = LocationSums()
    whole.add(joined[0], [{}, {}], joined[1:], None)
    for one, other in zip(sums.location().units, whole.location().units, strict=True):
        assert one.local == pytest.approx(other.local)
        assert one.over_rounding == pytest.approx(other.over_rounding)


def test_states_that_do_not_fit_or_are_not_finite_are_refused():
    rollout, train, reference = states(7)
    train["1.qkv_proj.out"][0, 0] = np.nan
    with pytest.raises(InconclusiveError, match="not finite"):
        located(rollout, train, reference)
    rollout, train, reference = states(7)
    rollout["1.qkv_proj.out"] = rollout["1.qkv_proj.out"][:-1]
    with pytest.raises(InconclusiveError, match=r"1\.qkv_proj"):
        located(rollout, train, reference)
    with pytest.raises(InconclusiveError, match="no hidden state"):
        LocationSums().location()


def test_the_head_is_held_in_nats():
    rng = np.random.default_rng(0)
    exact = -rng.random(500)
    train, rollout = exact + 1e-3 * rng.normal(size=500), exact + 1e-3 * rng.normal(size=500) + 0.05
    sums = LocationSums()
    sums.add({}, [{}, {}], [{"head": train}, {"head": exact}], rollout)
    head = sums.location().units[0]
    assert head.unit == "head"
    assert head.local == pytest.approx(0.05, rel=0.01)
    assert head.finding == "stands out"
