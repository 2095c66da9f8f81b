"""History of runs: which step a run has, which are left out, and that a trend is claimed only where there is one."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import binom

from benchmarks.synthetic_run import Planted, write_run
from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.stages.history import fit_trend, read_history
from mismatch_probe.stages.measure import measure_run
from mismatch_probe.trace.parts import read_table, write_table
from mismatch_probe.trace.schema import rollout_schema


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """Three measured runs whose K3 doubles, in the order of their names."""
    folder = tmp_path_factory.mktemp("runs")
    for step, kappa in ((10, 1e-4), (9, 5e-5), (100, 2e-4)):
        measure_run(write_run(folder / f"step-{step}", Planted(kappa, 16, prompts=10, seed=step)))
    return folder


def test_runs_stand_by_the_number_in_their_names(training):
    history = read_history([training])
    assert history["basis"] == "name"
    assert [(row["step"], row["run"]) for row in history["rows"]] == [
        (9, "step-9"),
        (10, "step-10"),
        (100, "step-100"),
    ]
    values = [row["k3"]["value"] for row in history["rows"]]
    assert values == sorted(values)
    assert history["trend"]["direction"] == "unknown" and "3 runs" in history["trend"]["reason"]
    assert read_history([training / "step-9", training / "step-10"])["rows"][0]["step"] == 9


def test_the_recorded_version_comes_first(training, tmp_path):
    for name, version in (("a1", "v7"), ("a2", "step-3")):
        run = shutil.copytree(training / "step-9", tmp_path / name)
        for part in sorted(run.glob("rollout/part-*.parquet")):
            columns = read_table(part, rollout_schema()).to_pydict()
            columns["weight_version"] = [version] * len(columns["weight_version"])
            write_table(part, pa.table(columns, schema=rollout_schema()))
    history = read_history([tmp_path])
    assert history["basis"] == "version"
    assert [(row["step"], row["run"]) for row in history["rows"]] == [(3, "a2"), (7, "a1")]
    assert [row["step"] for row in read_history([tmp_path], "name")["rows"]] == [1, 2]
    assert read_history([tmp_path], "time")["basis"] == "time"
    for odd in ("3f2a9c1e77b", "v1.2"):
        run = shutil.copytree(tmp_path / "a1", tmp_path / "odd" / "a1")
        part = run / "rollout" / "part-00000.parquet"
        columns = read_table(part, rollout_schema()).to_pydict()
        columns["weight_version"] = [odd] * len(columns["weight_version"])
        write_table(part, pa.table(columns, schema=rollout_schema()))
        assert read_history([run])["basis"] == "name"
        shutil.rmtree(tmp_path / "odd")
    with pytest.raises(InconclusiveError, match="no run has a step"):
        read_history([training], "version")


def test_broken_runs_are_named_and_left_out(training, tmp_path):
    folder = shutil.copytree(training, tmp_path / "runs")
    (folder / "step-9" / "result.json").write_text("{")
    (folder / "step-10" / "result.json").unlink()
    history = read_history([folder])
    assert [row["run"] for row in history["rows"]] == ["step-100"]
    assert {path.rpartition("/")[2] for path in (item["path"] for item in history["skipped"])} == {
        "step-9",
        "step-10",
    }
    (folder / "step-100" / "result.json").write_text("[]")
    with pytest.raises(InconclusiveError):
        read_history([folder])
    with pytest.raises(ConfigError, match="no folder"):
        read_history([tmp_path / "nowhere"])


def test_what_changed_along_the_way_is_named(training, tmp_path):
    folder = shutil.copytree(training, tmp_path / "runs")
    path = folder / "step-100" / "result.json"
    result = json.loads(path.read_text())
    result["provenance"]["versions"]["torch"] = "9.9"
    result["provenance"]["model"]["name"] = "step-100"
    path.write_text(json.dumps(result))
    rows = read_history([folder])["rows"]
    # The checkpoint is meant to change, and is not told; synthetic runs name themselves by what was planted.
    assert [item["key"] for item in rows[2]["changed"] if item["key"].startswith("versions")] == [
        "versions.torch"
    ]
    assert not any(item["key"] == "model.name" for item in rows[2]["changed"])


def test_a_planted_trend_is_found_and_its_size_is_right():
    steps = np.arange(0, 200, 20)
    noise = np.exp(np.random.default_rng(0).normal(0, 0.05, steps.size))
    trend = fit_trend(list(zip(steps, 1e-4 * 1.01**steps * noise, strict=True)))
    assert trend.direction == "rising" and trend.low < 1.01 < trend.high
    falling = fit_trend(list(zip(steps, 1e-4 * 0.99**steps * noise, strict=True)))
    assert falling.direction == "falling"


def test_noise_is_rarely_called_a_trend():
    generator = np.random.default_rng(1)
    draws = [
        fit_trend(list(zip(range(8), np.exp(generator.normal(0, 1, 8)), strict=True))) for _ in range(300)
    ]
    alarms = sum(trend.direction != "none" for trend in draws)
    assert alarms <= binom.ppf(0.999, 300, 0.05)


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        ([(0, 1.0)] * 4, "a trend needs 5"),
        ([(0, 0.0)] * 9, "a trend needs 5"),
        ([(3, 1.0)] * 6, "all runs have one step"),
    ],
)
def test_no_trend_without_a_basis(points, reason):
    trend = fit_trend(points)
    assert trend.direction == "unknown" and reason in trend.reason


def test_the_step_0_of_a_checkpoint_is_a_step(training, tmp_path):
    for step in (0, 12):
        run = shutil.copytree(training / "step-9", tmp_path / f"run-{step + 40}")
        manifest = json.loads((run / "manifest.json").read_text())
        manifest["model"] |= {"path": f"checkpoints/global_step_{step}", "name": "policy"}
        (run / "manifest.json").write_text(json.dumps(manifest))
    history = read_history([tmp_path])
    assert history["basis"] == "model" and [row["step"] for row in history["rows"]] == [0, 12]
