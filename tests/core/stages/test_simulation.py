"""`simulate` and `tune` on planted runs: derived statements within their Monte-Carlo error, files, refusals."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import norm

from benchmarks.synthetic_run import Planted, write_run
from mismatch_probe.errors import ConfigError, RunDirectoryError
from mismatch_probe.simulate import gaussian_response, respond_all
from mismatch_probe.simulate.extrapolate import STALENESS
from mismatch_probe.stages.events import SilentWatcher
from mismatch_probe.stages.measure import measure_run
from mismatch_probe.stages.simulation import simulate_run
from mismatch_probe.stages.simulation_plan import (
    DEFAULT_SWEEPS,
    SimulationPlan,
    make_plan,
    parse_checkpoint,
    parse_sweep,
)
from mismatch_probe.stages.tuning import tune_run, tuning_path
from mismatch_probe.stages.weights_section import read_responses
from mismatch_probe.trace.parts import read_table, write_table
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.schema import rollout_schema
from mismatch_probe.trace.trace import Trace
from mismatch_probe.weights import available_methods
from mismatch_probe.weights.kernel import kernel

KAPPA, LENGTH = 1.5e-3, 8192
QUICK = SimulationPlan(
    methods=("vespo", "gspo"),
    sweeps=DEFAULT_SWEEPS[3:4],
    staleness=(1, 8),
    sequences=64,
    tokens=20_000,
    resamples=50,
)


def responses_of(run: RunDirectory):
    parts = int(run.read_manifest()["num_parts"])
    return read_responses(run, Trace(run, parts), parts)


@pytest.fixture(scope="module")
def long_responses(tmp_path_factory: pytest.TempPathFactory):
    """192 responses of 8192 tokens, kappa 1.5e-3: log W is N(-12.3, 24.6)."""
    return responses_of(
        write_run(tmp_path_factory.mktemp("runs") / "long", Planted(KAPPA, LENGTH, prompts=48))
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A measured run of 64 responses."""
    run = write_run(tmp_path_factory.mktemp("runs") / "small", Planted(5e-3, 40, prompts=16, seed=3))
    measure_run(run)
    return run


@pytest.fixture
def copied(small: RunDirectory, tmp_path: Path) -> RunDirectory:
    import shutil

    return RunDirectory(Path(shutil.copytree(small.path, tmp_path / "run")))


def passing(low: float, high: float) -> float:
    """P(low <= log s <= high) for s = W^(1/T) of the long run."""
    mean, deviation = -KAPPA, np.sqrt(2 * KAPPA / LENGTH)
    return float(norm.cdf((high - mean) / deviation) - norm.cdf((low - mean) / deviation))


def binomial(expected: float, n: int) -> float:
    """Three standard errors of a share."""
    return 3 * np.sqrt(expected * (1 - expected) / n) + 0.5 / n


def test_gspo_on_pi_over_mu_passes_every_positive_and_two_percent_of_negatives(long_responses) -> None:
    got = respond_all(["gspo", "geo_rs"], long_responses, resamples=50, complete=True)
    positive, negative = (got["gspo"].by_sign[word] for word in ("positive", "negative"))
    assert positive.sequences == negative.sequences == 96
    passed = passing(np.log1p(-3e-4), np.inf)
    assert passed == pytest.approx(0.02, abs=0.005)  # the statement itself
    assert negative.kept_fraction.value == pytest.approx(passed, abs=binomial(passed, 96))
    assert negative.empty_sequences == round(96 * (1 - negative.kept_fraction.value))
    assert passing(-np.inf, np.log1p(4e-4)) > 0.999 and positive.kept_fraction.value > 0.97
    kept = passing(np.log(0.999), np.log(1.001))
    assert got["geo_rs"].kept_fraction.value == pytest.approx(kept, abs=binomial(kept, 192))


def test_at_twelve_nats_vespo_keeps_what_a_log_normal_population_predicts(long_responses) -> None:
    got = respond_all(["vespo"], long_responses, resamples=0)["vespo"]
    for mass, pair in ((got.positive_mass, (2.0, 3.0)), (got.negative_mass, (3.0, 2.0))):
        law = gaussian_response(2 * KAPPA * LENGTH, *pair)
        error = np.sqrt((law.second_moment - law.mass**2) / 96)
        assert mass.value == pytest.approx(law.mass, abs=3.5 * error)


def test_at_7_64_nats_vespo_keeps_5_percent_of_positive_and_2_6_of_negative_signal(tmp_path: Path) -> None:
    """Only kappa T matters to it: many short responses know the mass better than a few long ones."""
    run = write_run(tmp_path / "run", Planted(7.64 / 128, 128, prompts=1024, seed=5))
    got = respond_all(["vespo"], responses_of(run), resamples=200)["vespo"]
    for mass, pair, stated in (
        (got.positive_mass, (2.0, 3.0), 0.049),
        (got.negative_mass, (3.0, 2.0), 0.026),
    ):
        law = gaussian_response(15.28, *pair)
        error = np.sqrt((law.second_moment - law.mass**2) / 2048)
        assert law.mass == pytest.approx(stated, abs=6e-4)
        assert error < 0.15 * stated
        assert mass.value == pytest.approx(stated, abs=3.5 * error)
        assert mass.ci_low < stated < mass.ci_high


def test_every_method_is_in_the_result_by_its_name(small: RunDirectory) -> None:
    result = json.loads(small.result_path.read_text())
    assert tuple(sorted(result["weights"])) == available_methods()
    assert "pi/mu" in result["weights_reads"]
    for name, method in result["weights"].items():
        assert {
            "mean",
            "ess",
            "kept_fraction",
            "positive_mass",
            "negative_mass",
            "by_length",
            "by_sign",
        } <= set(method)
        assert method["sign_basis"] == "advantage" and method["family"] != "other", name
        assert sum(bucket["n"] for bucket in method["by_length"]) == 64


def test_the_section_holds_every_part_and_the_same_bytes_come_again(copied: RunDirectory) -> None:
    result = simulate_run(copied, QUICK, SilentWatcher())
    first = copied.result_path.read_bytes()
    assert json.loads(first) == result
    section = result["simulation"]
    assert section["staleness"]["available"] is False and "--staleness-from" in section["staleness"]["reason"]
    (sweep,) = section["sweeps"]
    assert [point["values"]["cap"] for point in sweep["points"]] == list(DEFAULT_SWEEPS[3].grid["cap"])
    assert sweep["defaults"] == {"cap": 2.0}
    points = section["extrapolation"]["points"]
    assert {point["length"] for point in points} == {10, 20, 40, 80, 160, 320}
    for point in points:
        assert bool(point["responses"]) == (point["staleness"] == 1)
        assert point["reason"] is None or "pi_old" in point["reason"]
    keys = {"vespo", "gspo", "gspo@pi/mu"}
    assert set(section["extrapolation"]["methods"]) == keys == set(points[0]["responses"])
    # With pi = pi_old there is nothing for GSPO to see, unless it is made to read pi / mu.
    assert points[0]["responses"]["gspo"]["positive_mass"]["value"] == 1.0
    assert points[0]["responses"]["gspo@pi/mu"]["positive_mass"]["value"] < 1.0
    assert set(section["ablations"]["variants"]) == {
        "vespo", "vespo_sqrt", "vespo_lin", "vespo_both_2_3", "vespo_both_3_2",
    }  # fmt: skip
    assert simulate_run(copied, QUICK, SilentWatcher()) == result
    assert copied.result_path.read_bytes() == first


def test_extrapolated_vespo_follows_the_log_normal_law(copied: RunDirectory) -> None:
    plan = dataclasses.replace(QUICK, lengths=(160,), staleness=(1,), sequences=2000, tokens=10**6)
    (point,) = simulate_run(copied, plan, SilentWatcher())["simulation"]["extrapolation"]["points"]
    made = point["responses"]["vespo"]
    assert point["num_sequences"] == 2000 and point["measured"] is False
    log_ratio = (lambda found: found.train - found.rollout)(responses_of(copied))
    drawn = norm.ppf((np.arange(4000) + 0.5) / 4000) * np.sqrt(160 * log_ratio.var()) + 160 * log_ratio.mean()
    for key, pair in (("positive_mass", (2.0, 3.0)), ("negative_mass", (3.0, 2.0))):
        assert made[key]["value"] == pytest.approx(kernel(drawn, *pair).mean(), abs=0.05)
        assert made[key]["ci_low"] < made[key]["value"] < made[key]["ci_high"]


def test_staleness_comes_from_recorded_pi_old_where_there_are_no_checkpoints(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Planted(1e-3, 40, prompts=12, update=2e-3, seed=8))
    result = measure_run(run)
    assert "pi_old" in result["weights_reads"]
    section = simulate_run(run, QUICK, SilentWatcher())["simulation"]
    staleness = section["staleness"]
    assert staleness["available"] and staleness["kl_per_step"] == pytest.approx(2e-3, rel=0.15)
    points = {(point["length"], point["staleness"]): point for point in section["extrapolation"]["points"]}
    fresh, stale = (points[40, n]["responses"]["vespo"]["positive_mass"]["value"] for n in (1, 8))
    assert points[40, 8]["drawn"] == "model" and stale < fresh


def test_a_loss_mask_and_missing_advantages_are_heeded(copied: RunDirectory) -> None:
    path = copied.rollout_part(0)
    table = read_table(path, rollout_schema())
    masks = pa.array([[True] * 10 + [False] * 30] * table.num_rows, pa.list_(pa.bool_()))
    table = table.set_column(table.schema.get_field_index("loss_mask"), "loss_mask", masks)
    nothing = pa.array([None] * table.num_rows, pa.float64())
    table = table.set_column(table.schema.get_field_index("advantage"), "advantage", nothing)
    write_table(path, table.cast(rollout_schema()))
    responses = responses_of(copied)
    assert responses.assumed and set(responses.lengths()) == {10.0}
    measured = measure_run(copied)
    assert measured["data_quality"]["masked_tokens"] == 30 * table.num_rows
    assert "MP905" in {item["code"] for item in measured["findings"]}
    section = simulate_run(copied, QUICK, SilentWatcher())["simulation"]
    assert section["sign_basis"] == "assumed" and section["extrapolation"]["longest_measured"] == 10


def test_a_column_that_does_not_line_up_is_refused(copied: RunDirectory) -> None:
    path = copied.rollout_part(0)
    table = read_table(path, rollout_schema())
    short = pa.array([[0.0] * 39] * table.num_rows, pa.list_(pa.float32()))
    table = table.set_column(table.schema.get_field_index("old_logprobs"), "old_logprobs", short)
    write_table(path, table.cast(rollout_schema()))
    with pytest.raises(RunDirectoryError, match="old_logprobs"):
        responses_of(copied)


def test_an_unmeasured_run_is_refused(copied: RunDirectory) -> None:
    copied.result_path.unlink()
    with pytest.raises(RunDirectoryError, match="no result yet"):
        simulate_run(copied, QUICK, SilentWatcher())


def test_sweeps_of_large_runs_take_a_share_of_the_prompts(copied: RunDirectory) -> None:
    plan = dataclasses.replace(QUICK, sweep_tokens=40 * 4 * 8)
    section = simulate_run(copied, plan, SilentWatcher())["simulation"]
    assert section["sweeps"][0]["num_prompts"] == 8 and section["sweeps"][0]["num_sequences"] == 32


def test_a_plan_is_what_was_asked_for() -> None:
    plan = make_plan(methods=["gspo", "vespo"], lengths="8192,1024", staleness="4,1,4", sequences=64)
    assert (plan.methods, plan.lengths_for(100), plan.staleness) == (("gspo", "vespo"), (1024, 8192), (1, 4))
    assert {item.method for item in plan.sweeps} == {"gspo", "vespo"} and plan.sequences == 64
    default = make_plan()
    assert default == SimulationPlan() and default.staleness == STALENESS == (1, 2, 4, 8, 16, 32, 64)
    assert default.lengths_for(100) == (25, 50, 100, 200, 400, 800)
    assert max(default.lengths_for(16_000)) == 32_000 and max(default.lengths_for(50_000)) == 50_000
    swept = parse_sweep("vespo:k_pos=1,2.5;reads=train/old,train/rollout")
    assert swept.grid == {"k_pos": (1.0, 2.5), "reads": ("train/old", "train/rollout")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["vesp0"]}, "did you mean"),
        ({"sweeps": ["vespo"]}, "METHOD:KEY"),
        ({"sweeps": ["vespo:k_pos"]}, "METHOD:KEY"),
        ({"sweeps": ["vespo:k_pos=1,,2"]}, "empty value"),
        ({"sweeps": ["vespo:k_pos=1;k_pos=2"]}, "METHOD:KEY"),
        ({"sweeps": ["vespo:k_poss=1"]}, "k_pos"),
        ({"sweeps": ["gspo:eps_low=2"]}, "eps_low"),
        ({"sweeps": ["vespo:k_pos=" + ",".join(map(str, range(1, 402)))]}, "401 combinations"),
        ({"lengths": "0"}, "--lengths"),
        ({"lengths": "12x"}, "--lengths"),
        ({"staleness": "-1"}, "--staleness"),
        ({"sequences": 3}, "--sequences"),
        ({"checkpoints": ["8=/no/such/folder"]}, "no folder"),
    ],
)
def test_what_cannot_be_simulated_is_refused_before_any_work(options, message) -> None:
    with pytest.raises(ConfigError) as caught:
        make_plan(**options)
    assert message in str(caught.value)


def test_checkpoints_may_name_their_steps(tmp_path: Path) -> None:
    (tmp_path / "a=b").mkdir()
    assert parse_checkpoint(f"8={tmp_path}") == (8.0, tmp_path)
    assert parse_checkpoint(str(tmp_path / "a=b")) == (None, tmp_path / "a=b")


def test_tuned_vespo_is_written_with_its_check_and_stands_in_the_result(copied: RunDirectory) -> None:
    content = tune_run(copied, "vespo", budget=1.0, alpha_neg=2.5)
    assert json.loads(tuning_path(copied, "vespo").read_text()) == content
    positive, negative = content["positive"], content["negative"]
    assert (positive["alpha"], negative["alpha"]) == (2.0, 2.5)
    assert content["parameters"]["lambda_pos"] == pytest.approx(max(positive["rate"]["value"], 1e-4))
    assert (
        positive["tilt"]["mean_weight"] <= 1.0 + 1e-9 and positive["check"]["held_out"]["value"] is not None
    )
    first = tuning_path(copied, "vespo").read_bytes()
    tune_run(copied, "icepop", keep=0.95)
    assert set(json.loads(copied.result_path.read_text())["tuning"]) == {"vespo", "icepop"}
    tune_run(copied, "vespo", budget=1.0, alpha_neg=2.5)
    assert tuning_path(copied, "vespo").read_bytes() == first


def test_a_band_is_centred_on_minus_kappa(copied: RunDirectory) -> None:
    content = tune_run(copied, "geo_rs", keep=0.9)
    found = responses_of(copied)
    assert content["minus_kappa"] == pytest.approx((found.train - found.rollout).mean())
    assert content["centre"] == pytest.approx(content["minus_kappa"], abs=1e-9)
    assert content["kept"]["value"] == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("gspo", {}, "can be tuned: cispo, geo_rs"),
        ("vesp0", {}, "did you mean"),
        ("vespo", {}, "--budget"),
        ("vespo", {"budget": -1.0}, "positive"),
        ("vespo", {"budget_pos": 1.0}, "--budget-neg"),
        ("vespo", {"budget": 1.0, "keep": 0.9}, "--keep"),
        ("icepop", {"budget": 1.0}, "--budget"),
        ("icepop", {"ess": 0.5}, "no cap"),
        ("seq_tis", {"keep": 0.9, "ess": 0.5}, "not both"),
        ("seq_tis", {"keep": 1.5}, "(0, 1]"),
    ],
)
def test_what_cannot_be_tuned_says_what_can(small: RunDirectory, method, options, message) -> None:
    with pytest.raises(ConfigError) as caught:
        tune_run(small, method, **options)
    assert message in str(caught.value)
    assert not (small.path / "tuning").exists()
