"""Distance of gate weights and of expert loads, against their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.routing.agreement import compare_routes
from mismatch_probe.routing.expert_load import ExpertCounter, load_of
from mismatch_probe.routing.gates import GateSums, gate_distance


def mixture(ids, gates, experts):
    dense = np.zeros((len(ids), experts))
    np.put_along_axis(dense, ids.astype(np.int64), gates, axis=1)
    return dense


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_gate_distance_is_half_the_l1_distance_of_the_mixtures(seed, top_k):
    rng = np.random.default_rng(seed)
    ids = np.argsort(rng.random((2, 20, 8)), axis=-1)[..., :top_k].astype(np.int16)
    gates = rng.dirichlet(np.ones(top_k), size=(2, 20))
    expected = 0.5 * np.abs(mixture(ids[0], gates[0], 8) - mixture(ids[1], gates[1], 8)).sum(axis=1)
    np.testing.assert_allclose(gate_distance(ids[0], gates[0], ids[1], gates[1]), expected, atol=1e-12)


def test_disjoint_experts_are_at_distance_one_and_order_does_not_matter():
    ids, gates = np.array([[0, 1]]), np.array([[0.75, 0.25]])
    assert gate_distance(ids, gates, ids + 2, gates) == pytest.approx([1.0])
    assert gate_distance(ids, gates, ids[:, ::-1], gates[:, ::-1]).tolist() == [0.0]


def test_gate_sums_by_layer_and_by_flip():
    a = np.array([[[0, 1], [0, 1]], [[0, 1], [2, 3]]])
    b = np.array([[[1, 0], [0, 2]], [[0, 1], [255, 3]]])
    gates_a = np.full(a.shape, 0.5)
    gates_b = np.array([[[0.4, 0.6], [0.5, 0.5]], [[0.5, 0.5], [0.5, 0.5]]])
    sums = GateSums(2)
    sums.update(a, gates_a, b, gates_b, compare_routes(a, b, num_experts=4))
    assert sums.means(0) == (pytest.approx(0.05), None)
    # The row with a sentinel counts nowhere.
    assert sums.means(1) == (None, pytest.approx(0.5))
    with pytest.raises(ConfigError):
        sums.update(a, gates_a[:1], b, gates_b, compare_routes(a, b, num_experts=4))


@given(st.integers(0, 2**32 - 1))
def test_both_loads_are_those_counted_one_by_one(seed):
    rng = np.random.default_rng(seed)
    a = np.argsort(rng.random((60, 3, 8)), axis=-1)[..., :2].astype(np.int16)
    b = np.where(rng.random((60, 3, 1)) < 0.3, np.argsort(rng.random((60, 3, 8)), axis=-1)[..., :2], a)
    a[rng.random((60, 3)) < 0.1] = -1
    compared = compare_routes(a, b, num_experts=8)
    counter = ExpertCounter(num_layers=3, num_experts=8, top_k=2)
    load = counter.count(a, b, flipped=compared.flipped, missing=compared.missing)
    for side, ids in enumerate((a, b)):
        for layer in range(3):
            known = ids[~compared.missing[:, layer], layer]
            assert load[side, layer].tolist() == np.bincount(known.ravel(), minlength=8).tolist()


def test_total_variation_and_imbalance():
    load = load_of(np.array([10, 10, 0, 0]), np.array([10, 0, 10, 0]))
    assert load.total_variation == pytest.approx(0.5)
    assert load.rollout_imbalance == load.train_imbalance == pytest.approx(2.0)
    with pytest.raises(InconclusiveError):
        load_of(np.zeros(4, np.int64), np.ones(4, np.int64))
