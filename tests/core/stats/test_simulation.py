"""A small version of the simulation study: gross failures of coverage, alarms and detection."""

import dataclasses

import numpy as np
import pytest

from benchmarks.planted_drift import DRIFTS, Drift
from benchmarks.stats_simulation import CLEAN, FAULTS, Scenario, coverage_study, validity_study
from mismatch_probe.stats import SequenceLayout
from mismatch_probe.stats.means import effective_fraction, token_chi2, token_mean_ratio
from mismatch_probe.stats.tails import extreme_rates


@pytest.mark.parametrize("drift", [DRIFTS[1], DRIFTS[5]], ids=lambda drift: drift.name)
def test_intervals_cover(drift: Drift, monkeypatch):
    monkeypatch.setattr("benchmarks.stats_simulation.POPULATION", 8000)
    rows = coverage_study([drift], (12,), 60, map)
    names = {
        "mean log-ratio",
        "K2",
        "K3",
        "mean abs log-ratio",
        "mean log W",
        "std of log W",
        "variance per token",
    }
    found = {row.statistic: row for row in rows if row.statistic in names}
    assert set(found) == names
    for row in found.values():
        # 60 samples of 93 %: 48 or fewer hits have a probability below 1 in 1000.
        assert row.covered * row.given * 60 >= 49, row
        assert abs(row.relative_bias) < 0.6, row


@pytest.mark.parametrize("scenario", CLEAN, ids=lambda scenario: scenario.name)
def test_clean_data_rarely_alarm(scenario: Scenario):
    assert validity_study([dataclasses.replace(scenario, prompts=8)], 15, map)[0].any_check <= 1 / 15


@pytest.mark.parametrize("scenario", [s for s in FAULTS if "0.1" not in s.name], ids=lambda s: s.name)
def test_faults_are_detected(scenario: Scenario):
    found = validity_study([scenario], 6, map)[0]
    assert found.rates.get(scenario.code, 0.0) >= 0.5, found.rates


def test_one_token_takes_the_interval_of_the_ratio_away():
    rng = np.random.default_rng(0)
    log_ratio = rng.normal(0, 0.02, 4000)
    layout = SequenceLayout.from_arrays(np.arange(0, 4001, 100), np.arange(40) // 2)
    assert token_chi2(log_ratio, layout).ci_low is not None
    log_ratio[17] = 2.0
    for estimate in (token_chi2(log_ratio, layout), token_mean_ratio(log_ratio, layout)):
        assert estimate.value is not None
        assert estimate.ci_low is None
        assert "one token carries" in estimate.reason


def test_effective_size_is_bracketed_and_refused_when_the_sample_is_no_guide():
    rng = np.random.default_rng(1)
    layout = SequenceLayout.from_arrays(np.arange(0, 6401, 50), np.arange(128) // 4)
    calm = effective_fraction(rng.normal(-0.02, 0.2, 128), layout)
    assert calm.ci_low < np.exp(-0.04) < calm.ci_high
    wild = effective_fraction(rng.normal(-0.5, 1.0, 128), layout)
    assert wild.value is not None
    assert wild.ci_low is None
    assert "no guide" in wild.reason


def test_rates_of_clustered_events_widen():
    rng = np.random.default_rng(2)
    clusters = np.repeat(np.arange(30), 100)
    scale = np.exp(rng.normal(0, 0.5, 30))[clusters] * 0.1
    rate = extreme_rates(scale * rng.normal(size=3000), (1.2,), clusters)[0].rate
    naive = 1.96 * np.sqrt(rate.value * (1 - rate.value) / 3000)
    assert rate.ci_high - rate.ci_low > 3 * naive
