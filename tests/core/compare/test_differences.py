"""Differences between runs: true ones are found, equal runs are called equal, and what cannot be told is not told."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from benchmarks.diff_false_alarms import Case, compare, draw_pair
from benchmarks.planted_drift import DRIFTS, draw_log_ratios
from mismatch_probe.compare.differences import RunSums, compare_sums, shared_prompts
from mismatch_probe.compare.metrics import METRICS, applicable, drift_sums, step_column, step_metric
from mismatch_probe.stats.kl import token_k3
from mismatch_probe.stats.layout import SequenceLayout


def run_of(log_ratio, offsets, clusters, keys=None):
    layout = SequenceLayout.from_arrays(offsets, clusters)
    names = [f"p{label}" for label in np.unique(clusters)] if keys is None else keys
    return RunSums(
        tuple(name.encode() for name in names), drift_sums(np.asarray(log_ratio, dtype=float), layout)
    )


def planted(seed=0, prompts=24, drift=DRIFTS[1]):
    data = draw_log_ratios(drift, prompts, 4, 30, np.random.default_rng(seed))
    return data.log_ratio, data.offsets, data.clusters


def by_name(first, second, **options):
    metrics = applicable(first.columns, second.columns, ())
    return {item.name: item for item in compare_sums(first, second, metrics, **options)}


def test_values_are_those_of_plain_numpy():
    log_ratio, offsets, clusters = planted()
    found = by_name(run_of(log_ratio, offsets, clusters), run_of(2 * log_ratio, offsets, clusters))
    weight = np.add.reduceat(log_ratio, offsets[:-1])
    assert found["k3"].first == pytest.approx(token_k3(log_ratio).mean())
    assert found["k3"].second == pytest.approx(token_k3(2 * log_ratio).mean())
    assert found["mean_abs_log_ratio"].ratio.value == pytest.approx(2.0)
    assert found["log_weight_std"].first == pytest.approx(weight.std(ddof=1))
    assert found["extreme_rate_2"].second == pytest.approx(np.mean(np.abs(2 * log_ratio) > np.log(2)))
    assert found["mean_log_ratio"].change.value == pytest.approx(log_ratio.mean())


def test_a_run_against_itself_differs_in_nothing():
    run = run_of(*planted())
    for item in by_name(run, run).values():
        assert item.beyond_noise == "no" and item.change.value == 0.0, item


def test_what_is_twice_as_far_is_worse_and_the_other_way_round_better():
    log_ratio, offsets, clusters = planted(prompts=48)
    near, far = run_of(log_ratio, offsets, clusters), run_of(2 * log_ratio, offsets, clusters)
    assert by_name(near, far)["k3"].worse is True
    found = by_name(far, near)["k3"]
    assert (found.beyond_noise, found.worse) == ("yes", False)
    assert found.ratio.ci_low < 0.25 < found.ratio.ci_high or found.ratio.value == pytest.approx(
        0.25, rel=0.1
    )


def test_pairing_sees_what_unpaired_runs_do_not():
    """The same small change of prompts that differ widely: only against themselves does it show."""
    log_ratio, offsets, clusters = planted(prompts=16, drift=replace(DRIFTS[0], prompt_spread=0.8))
    first = run_of(log_ratio, offsets, clusters)
    paired = run_of(1.1 * log_ratio, offsets, clusters)
    unpaired = run_of(1.1 * log_ratio, offsets, clusters, keys=[f"q{i}" for i in range(16)])
    assert shared_prompts(first, paired) == 16 and shared_prompts(first, unpaired) == 0
    assert by_name(first, paired)["mean_abs_log_ratio"].beyond_noise == "yes"
    assert by_name(first, unpaired)["mean_abs_log_ratio"].beyond_noise == "no"


def test_a_prompt_of_one_run_alone_counts_there():
    log_ratio, offsets, clusters = planted(prompts=12)
    keys = [f"p{i}" for i in range(10)] + ["x", "y"]
    first, second = run_of(log_ratio, offsets, clusters), run_of(log_ratio, offsets, clusters, keys=keys)
    assert shared_prompts(first, second) == 10
    assert by_name(first, second)["k3"].change.value == 0.0


def test_few_prompts_are_unknown_with_a_reason():
    run = run_of(*planted(prompts=5))
    for item in by_name(run, run).values():
        assert item.beyond_noise == "unknown" and "5 prompts" in item.reason and item.change.ci_low is None


def test_a_prompt_that_carries_all_is_unknown():
    log_ratio, offsets, clusters = planted(prompts=12)
    wild = log_ratio * 1e-6
    wild[: offsets[1]] = 1.0
    item = by_name(run_of(wild, offsets, clusters), run_of(log_ratio, offsets, clusters))["k3"]
    assert item.beyond_noise == "unknown" and "one prompt" in item.reason


def test_an_exact_run_against_one_that_drifts():
    log_ratio, offsets, clusters = planted(prompts=24)
    found = by_name(run_of(0 * log_ratio, offsets, clusters), run_of(log_ratio, offsets, clusters))["k3"]
    assert (found.first, found.ratio, found.beyond_noise, found.worse) == (0.0, None, "yes", True)


def test_a_step_is_told_and_is_neither_worse_nor_better():
    log_ratio, offsets, clusters = planted(prompts=24)
    layout = SequenceLayout.from_arrays(offsets, clusters)
    runs = []
    for factor in (1.0, 2.0):
        run = run_of(log_ratio, offsets, clusters)
        sums = layout.sequence_sums(token_k3(factor * log_ratio))
        column = np.bincount(layout.cluster_index, weights=sums)
        runs.append(RunSums(run.prompts, {**run.columns, step_column("a", "b"): column}))
    metrics = applicable(runs[0].columns, runs[1].columns, (step_metric("a", "b"),))
    (step,) = [item for item in compare_sums(*runs, metrics) if item.name == "k3[a -> b]"]
    assert (step.beyond_noise, step.worse) == ("yes", None)


def test_metrics_need_their_columns():
    run = run_of(*planted(prompts=8))
    names = {metric.name for metric in applicable(run.columns, run.columns, ())}
    assert names == {metric.name for metric in METRICS} - {"flip_rate", "mean_reward"}


@pytest.mark.parametrize("paired", [False, True])
def test_equal_runs_rarely_differ(paired):
    """At most 5 % of equal pairs show any difference; 60 draws of the hardest shape, by the binomial's tail."""
    case = Case(DRIFTS[3], 16, paired)
    alarms = sum(
        any(item.beyond_noise == "yes" for item in compare(case, replicate)) for replicate in range(60)
    )
    assert alarms <= binom.ppf(0.999, 60, 0.05)


def test_a_planted_change_is_found():
    case = Case(DRIFTS[1], 64, True, factor=2.0)
    found = [
        next(item for item in compare(case, replicate) if item.name == "k3").worse for replicate in range(20)
    ]
    assert found.count(True) >= 18


def test_pairs_share_what_they_should():
    same = draw_pair(Case(DRIFTS[0], 8, True), np.random.default_rng(0))
    other = draw_pair(Case(DRIFTS[0], 8, False), np.random.default_rng(0))
    assert shared_prompts(*same) == 8 and shared_prompts(*other) == 0
