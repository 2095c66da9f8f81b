import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mismatch_probe.errors import ConfigError
from mismatch_probe.stats import (
    SequenceLayout,
    buckets_by_label,
    buckets_by_value,
    geometric_mean_probability,
    position_buckets,
    probability_buckets,
    probability_histogram,
    token_k3,
    worst_sequences,
    worst_tokens,
)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 300))
def test_every_token_falls_into_one_bucket(seed, count):
    rng = np.random.default_rng(seed)
    train, rollout = -rng.exponential(3, count), -rng.exponential(3, count)
    log_ratio = train - rollout
    layout = SequenceLayout.from_arrays([0, 0, count // 2, count])
    histogram = probability_histogram(train, rollout)
    assert sum(map(sum, histogram.counts)) + histogram.num_exact_zero == count
    for buckets in (
        probability_buckets(train, rollout),
        position_buckets(log_ratio, layout),
        buckets_by_label(rng.integers(0, 3, count), log_ratio),
        buckets_by_value(rng.normal(size=count) * 100, log_ratio, (-1, 0, 1)),
    ):
        assert sum(bucket.n for bucket in buckets) == count
        total = sum(bucket.n * bucket.k3 for bucket in buckets)
        assert total == pytest.approx(token_k3(log_ratio).sum(), rel=1e-9)
        assert all(abs(bucket.mean_log_ratio) <= bucket.mean_abs_log_ratio + 1e-12 for bucket in buckets)


def test_geometric_mean_avoids_regression_to_the_mean():
    """Symmetric noise: by one side's probability the low bucket drifts, by the geometric mean it does not."""
    rng = np.random.default_rng(0)
    middle = -rng.exponential(2.0, 200_000) - 0.5
    noise = rng.normal(0, 0.2, middle.size)
    train, rollout = middle + noise / 2, middle - noise / 2
    edges = (0.0, 0.05, 0.5, 1.0)
    fair = buckets_by_value(geometric_mean_probability(train, rollout), train - rollout, edges)
    biased = buckets_by_value(np.exp(rollout), train - rollout, edges)
    assert max(abs(b.mean_log_ratio) for b in fair) < 0.003
    assert biased[2].mean_log_ratio < -0.01


def test_positions_double():
    layout = SequenceLayout.from_arrays([0, 9])
    buckets = position_buckets(np.arange(9.0), layout)
    assert [(b.low, b.high, b.n) for b in buckets] == [(0, 1, 1), (1, 2, 1), (2, 4, 2), (4, 8, 4), (8, 16, 1)]


def test_worst_tokens_and_sequences_have_coordinates():
    layout = SequenceLayout.from_arrays([0, 2, 2, 5], [7, 7, 9])
    rollout = np.array([-1.0, -2.0, -1.0, -3.0, -0.5])
    train = rollout + np.array([0.1, -0.5, 0.0, 2.0, -3.0])
    worst = worst_tokens(train, rollout, layout, 2)
    assert [(t.sequence, t.position, t.token, t.cluster) for t in worst] == [(2, 2, 4, 9), (2, 1, 3, 9)]
    assert worst[0].log_ratio == -3.0
    sequences = worst_sequences(train - rollout, layout, 3)
    assert [s.sequence for s in sequences] == [2, 0, 1]
    assert sequences[0].log_weight == pytest.approx(-1.0)
    assert sequences[2].length == 0


def test_k3_that_overflows_is_null_in_its_bucket_only():
    buckets = buckets_by_label([0, 1], np.array([0.1, 900.0]))
    assert buckets[0].k3 is not None
    assert buckets[1].k3 is None


def test_bad_edges_are_refused():
    with pytest.raises(ConfigError):
        buckets_by_value([1.0], np.array([1.0]), (1.0, 0.0))
    with pytest.raises(ConfigError):
        buckets_by_label([1], np.array([1.0, 2.0]))
