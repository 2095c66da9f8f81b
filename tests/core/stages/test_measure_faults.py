"""`measure` on runs with broken values: the fault is named, and no number is given that it entered."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.synthetic_run import Planted, write_run
from mismatch_probe.stages.events import SilentWatcher
from mismatch_probe.stages.measure import measure_run
from mismatch_probe.stages.simulation import simulate_run
from mismatch_probe.stages.simulation_plan import SimulationPlan
from mismatch_probe.trace.parts import read_table, write_table
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.schema import rollout_schema, score_schema

SECTIONS = ("token", "sequence", "legs", "routing", "weights")


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("runs") / "run", Planted(1e-4, 32, prompts=24))
    scores = run.score_part("train/forward", 0)
    for part in range(int(run.read_manifest()["num_parts"])):
        repeat = run.score_part("train/repeat", part)
        repeat.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run.score_part("train/forward", part), repeat)
    assert scores.is_file()
    manifest = run.read_manifest()
    run.write_manifest({**manifest, "legs": [*manifest["legs"], "train/repeat"]})
    return run


def spoilt(healthy, folder, value, *, leg=None, sequence=5, token=2):
    """A copy with one value of the rollout (no leg) or of a leg replaced."""
    shutil.copytree(healthy.path, folder)
    run = RunDirectory(folder)
    path, schema, name = (
        (run.rollout_part(0), rollout_schema(), "rollout_logprobs")
        if leg is None
        else (run.score_part(leg, 0), score_schema(), "logprobs")
    )
    columns = read_table(path, schema).to_pydict()
    columns[name][sequence][token] = value
    write_table(path, pa.table(columns, schema=schema))
    return run


@pytest.mark.parametrize("leg", [None, "train/forward"])
@pytest.mark.parametrize("value", [np.nan, -np.inf, -9999.0])
def test_a_value_that_is_no_log_probability_is_named_and_enters_no_number(healthy, tmp_path, value, leg):
    run = spoilt(healthy, tmp_path / "run", value, leg=leg)
    result = measure_run(run)
    assert (result["verdict"], result["exit_code"]) == ("inconclusive", 3)
    causes = result["causes"]["diagnosis"]["causes"]
    assert [item["cause"] for item in causes] == ["sentinel-values"]
    assert "MP620" in result["verdict_sentence"]
    for name in SECTIONS:
        assert result[name]["available"] is False and "sequence 5" in result[name]["reason"]
    assert result["data_quality"]["unusable"]["sequences"] == [5]
    assert result["data_quality"]["trusted"] is False
    (found,) = [item for item in result["findings"] if item["code"] == "MP102"]
    # The check leads, the cause is linked to it: one fact, one finding.
    assert found["severity"] == "error" and found["linked"] == ["MP620"]
    assert not any(item["code"] == "MP620" for item in result["findings"])
    assert result["recommendation"]["method"] is None
    assert json.loads(run.result_path.read_text()) == result


def test_nothing_is_simulated_with_holes(healthy, tmp_path):
    run = spoilt(healthy, tmp_path / "run", np.nan)
    measure_run(run)
    simulated = simulate_run(run, SimulationPlan(), SilentWatcher())
    assert simulated["simulation"]["available"] is False


def test_a_broken_leg_beside_the_pair_is_left_out_and_said(healthy, tmp_path):
    whole, result = (
        measure_run(run) for run in (healthy, spoilt(healthy, tmp_path / "run", np.nan, leg="train/repeat"))
    )
    assert "train/repeat" in whole["legs"]["available"] and "MP102" not in str(whole["findings"])
    assert result["data_quality"]["broken_legs"] == {"train/repeat": 1}
    assert "train/repeat" not in result["legs"]["available"]
    assert result["token"]["k3"] == whole["token"]["k3"]
    (found,) = [item for item in result["findings"] if item["code"] == "MP102"]
    assert found["severity"] == "warning" and "train/repeat" in found["detail"]
