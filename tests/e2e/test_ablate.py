"""`ablate` on real engines: a weight sync that breaks experts and spares a dense model, and knobs on both sides."""

import json

import pytest
from running import run_cli


def ablate(run, *arguments):
    return run_cli("ablate", str(run), "--format", "json", *arguments)


@pytest.fixture(scope="module")
def turned(embedded, tmp_path_factory):
    """Knobs of both sides on 2 prompts of the embedded run, in a copy."""
    run = embedded.copy_to(tmp_path_factory.mktemp("ablate") / "run")
    knobs = ("rollout-float32", "rollout-prefix-caching", "train-float32", "rollout-weights-fp8")
    finished = ablate(run, "--num-prompts", "2", *[word for knob in knobs for word in ("--knob", knob)])
    assert finished.status == 0, finished.stderr
    return run, json.loads(finished.stdout)


def test_each_knob_is_in_effect_or_says_why_not(turned):
    rows = {row["knob"]: row for row in turned[1]["rows"]}
    assert rows["rollout-float32"]["in_effect"]
    assert rows["train-float32"]["change"]["mean_abs"] > 0
    assert rows["rollout-weights-fp8"]["unavailable"] or "in_effect" in rows["rollout-weights-fp8"]
    assert rows["rollout-prefix-caching"]["in_effect"] is False


def test_rows_on_disk_are_not_read_again(turned):
    run, before = turned
    parts = {path: path.stat().st_mtime_ns for path in (run / "ablation").rglob("part-*.parquet")}
    assert parts
    finished = ablate(run, "--num-prompts", "2", "--knob", "rollout-float32")
    assert finished.status == 0, finished.stderr
    assert {path: path.stat().st_mtime_ns for path in parts} == parts
    (row,) = json.loads(finished.stdout)["rows"]
    assert row["change"]["k3_change"] == next(
        held["change"]["k3_change"] for held in before["rows"] if held["knob"] == "rollout-float32"
    )


def test_what_this_vllm_does_on_a_reload_is_named(embedded, tmp_path):
    """The verdict has to agree with the log-probabilities, whatever this version of vLLM does."""
    run = embedded.copy_to(tmp_path / "run")
    finished = ablate(run, "--num-prompts", "2", "--knob", "refit")
    refit = json.loads(finished.stdout)["refit"]
    codes = {item["code"] for item in json.loads(finished.stdout)["findings"]}
    for case, code in (("same", "MP601"), ("updated", "MP602")):
        moved = not all(refit[case][path]["exact"] for path in ("decode", "prefill"))
        differing = refit[case]["weights"]["differences"]
        assert refit[case]["weights"]["unread"] == []
        assert (code in codes) == (moved or bool(differing))
        if moved:
            assert differing, "log-probabilities moved but no module was named"
    assert finished.status == (1 if codes else 0)
    assert not (run / "ablation" / "weights").exists()
    assert not (run / "ablation" / "updated-checkpoint").exists()


def test_a_knob_that_nobody_has_is_a_usage_error(embedded):
    finished = ablate(embedded.path, "--knob", "refitt")
    assert finished.status == 2
    assert "refit" in finished.stderr
