import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.stats import extreme_rates, quantiles, top_share
from mismatch_probe.stats.tails import upper_quantile


def test_rates_match_exact_values(suites, check_case):
    for case in suites["extreme_token"]["cases"]:
        for rate in extreme_rates(case["args"]["log_ratio"], (1.25, 2.0, 5.0)):
            check_case(case, f"F_{rate.tau:g}", rate.rate.value)


def test_rates_carry_clustered_intervals():
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(20), 200)
    noisy = np.where(rng.random(20) < 0.3, 0.8, 0.05)[clusters]
    log_ratio = noisy * rng.normal(size=4000)
    clustered = extreme_rates(log_ratio, (1.25,), clusters)[0].rate
    alone = extreme_rates(log_ratio, (1.25,))[0].rate
    assert clustered.value == alone.value
    assert clustered.ci_high - clustered.ci_low > 4 * (alone.ci_high - alone.ci_low)


def test_no_event_gives_an_upper_bound_that_respects_clusters():
    clusters = np.repeat(np.arange(10), 100)
    rate = extreme_rates(np.linspace(0.0, 0.01, 10)[clusters], (2.0,), clusters)[0].rate
    assert (rate.value, rate.ci_low) == (0.0, 0.0)
    assert rate.ci_high > 0.2  # ten prompts, each constant: about ten trials, not a thousand
    assert extreme_rates([0.1], (2.0,))[0].rate.ci_high is None


@given(st.lists(st.floats(0, 1e300, allow_subnormal=False), min_size=1, max_size=60), st.floats(0.01, 1.0))
def test_top_share_bounds(values, fraction):
    share = top_share(values, fraction)
    if max(values) == 0:
        assert share is None
    else:
        assert (
            max(values) / sum(v / len(values) for v in values) / len(values) <= share * (1 + 1e-9) <= 1 + 1e-8
        )


def test_top_share_on_a_worked_example():
    assert top_share([1.0] * 99 + [99.0], 0.01) == pytest.approx(0.5)
    assert top_share([3.0], 0.001) == 1.0
    with pytest.raises(ConfigError):
        top_share([-1.0])
    with pytest.raises(ConfigError):
        extreme_rates([0.1], (1.0,))


@pytest.mark.parametrize("size", [1, 2, 3, 50, 101, 5000, 20_001])
@pytest.mark.parametrize("level", [0.0, 0.5, 0.9, 0.99, 0.999, 1.0])
@pytest.mark.parametrize("kind", ["normal", "sorted", "reversed", "ties", "periodic"])
def test_the_upper_quantile_is_the_quantile(size, level, kind):
    values = np.random.default_rng(size).normal(size=size)
    if kind in ("sorted", "reversed"):
        values = np.sort(values)[:: 1 if kind == "sorted" else -1]
    elif kind == "ties":
        values = np.round(values)
    elif kind == "periodic":
        # What every so many values tell is wrong.
        values[:: max(1, size // 4096)] += 100
    assert upper_quantile(values, level) == quantiles(values, (level,))[0]


def test_quantiles_reach_both_ends():
    values = np.random.default_rng(1).normal(size=501)
    got = quantiles(values, (0.0, 0.5, 1.0))
    assert got == (values.min(), np.median(values), values.max())
    with pytest.raises(InconclusiveError):
        quantiles([])
