"""The published schema of result.json is what the code writes, and refuses what it does not."""

import copy
import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from benchmarks.synthetic_run import Planted, write_run
from mismatch_probe.errors import RunDirectoryError
from mismatch_probe.result import SCHEMA_PATH, check_schema, read_result
from mismatch_probe.stages.events import SilentWatcher
from mismatch_probe.stages.measure import measure_run
from mismatch_probe.stages.simulation import simulate_run
from mismatch_probe.stages.simulation_plan import SimulationPlan
from mismatch_probe.stages.tuning import tune_run
from mismatch_probe.trace.parts import read_table, write_table
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.schema import rollout_schema
from tools.document_result_schema import build

SCHEMA = json.loads(SCHEMA_PATH.read_text(encoding="utf-8"))
VALIDATOR = Draft202012Validator(SCHEMA)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "run", Planted(1e-4, 32, prompts=24))


@pytest.fixture(scope="module")
def measured(run):
    return measure_run(run)


def copy_of(run, folder):
    shutil.copytree(run.path, folder)
    return RunDirectory(folder)


def test_the_file_is_what_the_code_says():
    Draft202012Validator.check_schema(SCHEMA)
    assert json.loads(json.dumps(build())) == SCHEMA, "run: python -m tools.document_result_schema"


def test_every_number_of_the_contract_is_described():
    sections = SCHEMA["properties"]
    token = sections["token"]["anyOf"][0]["properties"]
    for name in ("k1", "k3", "mean_abs_log_ratio", "chi2", "top_share"):
        assert len(token[name].get("description", "")) > 10, name
    assert all(definition.get("description") for definition in SCHEMA["$defs"].values())


def test_a_measured_run_follows_it(measured, run):
    check_schema(measured, run.result_path)


def test_a_simulated_and_tuned_run_follows_it(run, tmp_path):
    other = copy_of(run, tmp_path / "run")
    measure_run(other)
    plan = SimulationPlan(
        methods=("vespo",), sweeps=(), staleness=(1,), sequences=16, tokens=512, resamples=20
    )
    simulate_run(other, plan, SilentWatcher())
    tune_run(other, "geo_rs", keep=0.9)
    result = json.loads(other.result_path.read_text())
    assert {"simulation", "tuning"} <= set(result)
    check_schema(result, other.result_path)


def test_a_run_with_a_hole_in_it_follows_it(run, tmp_path):
    other = copy_of(run, tmp_path / "run")
    columns = read_table(other.rollout_part(0), rollout_schema()).to_pydict()
    columns["rollout_logprobs"][3][1] = np.nan
    write_table(other.rollout_part(0), pa.table(columns, schema=rollout_schema()))
    result = measure_run(other)
    assert result["token"]["available"] is False
    check_schema(result, other.result_path)


@pytest.mark.parametrize(
    "planted", [Planted(0.0, 8, prompts=4), Planted(0.5, 4, prompts=2), Planted(1e-3, 3, prompts=1)]
)
def test_exact_wild_and_tiny_runs_follow_it(planted, tmp_path):
    run = write_run(tmp_path / "run", planted)
    check_schema(measure_run(run), run.result_path)


def places(node, path=()):
    """Paths to every object of the contract with keys that it must have."""
    if isinstance(node, dict):
        yield path
        for key, value in node.items():
            yield from places(value, (*path, key))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_key_too_many_or_too_few_is_refused(measured, data):
    """Every section is closed, and so is each estimate in it."""
    names = ("token", "sequence", "legs", "data_quality", "provenance")
    path = data.draw(st.sampled_from([(name, *p) for name in names for p in places(measured[name])]))
    free = {
        ("provenance", key)
        for key in (
            "model",
            "train_model",
            "rollout",
            "train",
            "sampling",
            "versions",
            "prompts",
            "finish_reasons",
        )
    }
    if path[:2] in free or path[-1] == "broken_legs":
        return
    changed = copy.deepcopy(measured)
    node = changed
    for key in path:
        node = node[key]
    keys = [key for key in node if key != "reason"]
    if keys and data.draw(st.booleans()):
        del node[data.draw(st.sampled_from(keys))]
    else:
        node["no_such_key"] = 1
    assert not VALIDATOR.is_valid(changed), path


def test_a_number_that_cannot_be_had_needs_a_reason(measured):
    changed = copy.deepcopy(measured)
    changed["token"]["k3"] |= {"value": None}
    assert not VALIDATOR.is_valid(changed)
    changed["token"]["k3"]["reason"] = "no tokens"
    assert VALIDATOR.is_valid(changed)


def test_the_message_says_where(measured, tmp_path):
    changed = copy.deepcopy(measured)
    changed["findings"] = [{"code": "MP201"}]
    with pytest.raises(RunDirectoryError, match=r"\$\.findings\[0\]"):
        check_schema(changed, tmp_path / "result.json")


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 400])
def test_a_number_that_is_not_finite_is_refused(measured, tmp_path, literal):
    path = tmp_path / "result.json"
    made = copy.deepcopy(measured)
    made["token"]["k3"]["value"] = "HERE"
    path.write_text(json.dumps(made).replace('"HERE"', literal))
    with pytest.raises(RunDirectoryError, match=r"\$\.token\.k3\.value is no finite number"):
        check_schema(read_result(path), path)


def test_the_mend_is_a_command_only_where_the_run_is_at_hand(measured, tmp_path):
    path = tmp_path / "result.json"
    path.write_text(json.dumps({**measured, "schema_version": 2}))
    with pytest.raises(RunDirectoryError) as caught:
        read_result(path)
    assert "mismatch-probe measure" not in (caught.value.hint or "")
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(RunDirectoryError) as caught:
        read_result(path)
    assert caught.value.hint == f"run: mismatch-probe measure {tmp_path}"


def test_a_result_that_is_nested_too_deeply_is_refused_and_not_crashed_on(measured, tmp_path):
    made = copy.deepcopy(measured)
    for _ in range(5000):
        made["token"] = {"k3": made["token"]}
    with pytest.raises(RunDirectoryError, match="nested too deeply"):
        check_schema(made, tmp_path / "result.json")
