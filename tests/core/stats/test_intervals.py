import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.stats import MEAN, POSITIVE_MEAN, Statistic, cluster_bootstrap, interval_from_table
from mismatch_probe.stats import intervals as module


def test_value_is_the_plain_statistic():
    rng = np.random.default_rng(0)
    values, clusters = rng.normal(size=300), rng.integers(0, 20, 300)
    assert cluster_bootstrap(values, clusters).value == pytest.approx(values.mean(), rel=1e-12)
    sizes = rng.integers(1, 9, 300).astype(float)
    ratio = Statistic(lambda sums: sums[..., 0] / sums[..., 1])
    estimate = cluster_bootstrap(np.column_stack([values, sizes]), clusters, statistic=ratio)
    assert estimate.value == pytest.approx(values.sum() / sizes.sum(), rel=1e-12)
    assert estimate.ci_low < estimate.value < estimate.ci_high


def test_same_seed_same_interval_and_labels_do_not_matter():
    rng = np.random.default_rng(1)
    values, clusters = rng.normal(size=100), np.repeat(np.arange(10), 10)
    one = cluster_bootstrap(values, clusters, seed=3)
    assert cluster_bootstrap(values, clusters * 7 - 3, seed=3) == one
    other = cluster_bootstrap(values, clusters, seed=4)
    assert (other.ci_low, other.ci_high) != (one.ci_low, one.ci_high)


def test_chunks_cover_the_same_statistic(monkeypatch):
    rng = np.random.default_rng(2)
    table = np.column_stack([rng.exponential(size=50), np.ones(50)])
    whole = interval_from_table(table, POSITIVE_MEAN, n=50)
    monkeypatch.setattr(module, "_CHUNK", 3000)
    parts = interval_from_table(table, POSITIVE_MEAN, n=50)
    assert parts.ci_low == pytest.approx(whole.ci_low, rel=0.05)
    assert parts.ci_high == pytest.approx(whole.ci_high, rel=0.05)


@settings(max_examples=25, deadline=None)
@given(st.floats(1e-200, 1e200), st.integers(0, 1000))
def test_interval_scales_with_the_unit(unit, seed):
    rng = np.random.default_rng(seed)
    table = np.column_stack([rng.exponential(size=12), rng.integers(1, 5, 12).astype(float)])
    one = interval_from_table(table, POSITIVE_MEAN, n=12)
    two = interval_from_table(table * [unit, 1.0], POSITIVE_MEAN, n=12)
    for end in ("value", "ci_low", "ci_high"):
        assert getattr(two, end) == pytest.approx(getattr(one, end) * unit, rel=1e-5)


def test_clustering_widens_the_interval():
    rng = np.random.default_rng(3)
    prompt = np.repeat(np.arange(12), 100)
    values = rng.normal(size=12)[prompt] + 0.1 * rng.normal(size=1200)
    clustered = cluster_bootstrap(values, prompt)
    alone = cluster_bootstrap(values, np.arange(1200))
    assert clustered.ci_high - clustered.ci_low > 5 * (alone.ci_high - alone.ci_low)


@pytest.mark.parametrize("prompts", [1, 2, 7])
def test_too_few_prompts_give_a_reason_and_no_interval(prompts):
    estimate = cluster_bootstrap(np.arange(20.0), np.arange(20) % prompts)
    assert estimate.value == 9.5
    assert estimate.ci_low is None
    assert "8" in estimate.reason


def test_one_dominant_prompt_gives_no_interval():
    table = np.column_stack([np.r_[500.0, np.ones(30)], np.ones(31)])
    estimate = interval_from_table(table, POSITIVE_MEAN, n=31)
    assert estimate.ci_low is None
    assert "one prompt carries 94%" in estimate.reason


def test_drift_in_few_prompts_gives_no_interval():
    table = np.column_stack([np.r_[1.0, 1.0, 1.0, np.zeros(20)], np.ones(23)])
    estimate = interval_from_table(table, POSITIVE_MEAN, n=23)
    assert estimate.value == pytest.approx(3 / 23)
    assert estimate.ci_low is None
    assert "too few prompts carry" in estimate.reason


def test_constant_statistic_has_a_point_interval():
    table = np.column_stack([np.zeros(10), np.arange(1.0, 11.0)])
    estimate = interval_from_table(table, POSITIVE_MEAN, n=55)
    assert (estimate.value, estimate.ci_low, estimate.ci_high) == (0.0, 0.0, 0.0)


def test_undefined_statistic_is_null_with_a_reason():
    table = np.column_stack([np.ones(10), np.zeros(10)])
    estimate = interval_from_table(table, MEAN, n=10)
    assert estimate.value is None
    assert estimate.reason


def test_bad_input_is_refused():
    with pytest.raises(ConfigError):
        cluster_bootstrap([1.0, 2.0], [0])
    with pytest.raises(InconclusiveError):
        cluster_bootstrap([], [])
    with pytest.raises(InconclusiveError):
        cluster_bootstrap([np.nan, 1.0], [0, 1])
