"""`ablate` on real engines: knobs of both sides and a weight sync, on 2 prompts of the shared audit."""

import json

import pytest
from running import run_cli

pytestmark = pytest.mark.slow

KNOBS = ("refit", "rollout-float32", "train-float32", "train-batch-32", "train-bfloat16")


def ablate(run, *arguments):
    return run_cli("ablate", str(run), "--format", "json", "--num-prompts", "2", *arguments)


@pytest.fixture(scope="module")
def turned(embedded, tmp_path_factory):
    """One call in a copy of the shared audit; its status depends on what this vLLM does on a reload."""
    run = embedded.copy_to(tmp_path_factory.mktemp("ablate") / "run")
    finished = ablate(run, *[word for knob in KNOBS for word in ("--knob", knob)])
    assert finished.status in (0, 1), finished.stderr
    return run, finished


def test_each_knob_is_in_effect_or_says_why_not(turned):
    rows = {row["knob"]: row for row in json.loads(turned[1].stdout)["rows"]}
    for knob in ("rollout-float32", "train-float32"):
        assert rows[knob]["in_effect"]
        assert rows[knob]["change"]["mean_abs"] > 0
        assert rows[knob]["seconds"] > 0
    # 2 prompts x 4 samples are one batch already.
    assert rows["train-batch-32"]["in_effect"] is False
    assert "own setting" in rows["train-bfloat16"]["unavailable"]


def test_what_this_vllm_does_on_a_reload_is_named(turned):
    """The verdict has to agree with the log-probabilities, whatever this version of vLLM does."""
    run, finished = turned
    content = json.loads(finished.stdout)
    codes = {item["code"] for item in content["findings"]}
    for case, code in (("same", "MP601"), ("updated", "MP602")):
        held = content["refit"][case]
        moved = not all(held[path]["exact"] for path in ("decode", "prefill"))
        assert held["weights"]["unread"] == []
        assert (code in codes) == (moved or bool(held["weights"]["differences"]))
        if moved:
            assert held["weights"]["differences"], "log-probabilities moved but no module was named"
    assert finished.status == (1 if codes else 0)
    assert not (run / "ablation" / "weights").exists()
    assert not (run / "ablation" / "updated-checkpoint").exists()


def test_a_second_call_reads_nothing_again_and_keeps_every_row(turned):
    run, before = turned
    parts = {path: path.stat().st_mtime_ns for path in (run / "ablation").rglob("part-*.parquet")}
    assert parts
    finished = ablate(run, "--knob", "rollout-float32")
    assert finished.status == before.status, finished.stderr
    assert {path: path.stat().st_mtime_ns for path in parts} == parts
    assert json.loads(finished.stdout) == json.loads(before.stdout)
    assert json.loads((run / "result.json").read_text())["ablation"] == json.loads(before.stdout)
    assert (run / "figures" / "ablation.png").is_file()


def test_a_knob_that_nobody_has_is_a_usage_error(embedded):
    finished = ablate(embedded.path, "--knob", "refitt")
    assert finished.status == 2
    assert "refit" in finished.stderr
