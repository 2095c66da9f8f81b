"""`diff` as a user runs it."""

import json
import shutil

import pytest
from running import run_cli

from benchmarks.synthetic_run import Planted, write_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs that differ by 3 in kappa, on prompts of their own."""
    folder = tmp_path_factory.mktemp("runs")
    for name, kappa, seed in (("near", 1e-3, 1), ("far", 3e-3, 2)):
        write_run(folder / name, Planted(kappa, 40, prompts=24, seed=seed))
        run_cli("measure", str(folder / name))
    return folder


def test_a_run_that_drifts_more_is_worse_in_every_format(runs):
    near, far = str(runs / "near"), str(runs / "far")
    done = run_cli("diff", near, far)
    assert done.status == 0, done.stderr
    assert done.stdout.startswith(" WORSE ") and "token K3" in done.stdout
    failing = run_cli("diff", near, far, "--fail-on-worse", "--format", "json")
    assert failing.status == 1
    comparison = json.loads(failing.stdout)
    (k3,) = [row for row in comparison["metrics"] if row["name"] == "k3"]
    assert k3["ratio"]["ci_low"] < 3.0 < k3["ratio"]["ci_high"] and k3["worse"] is True
    assert run_cli("diff", far, near, "--fail-on-worse").status == 0
    markdown = run_cli("diff", near, far, "--format", "markdown")
    assert markdown.stdout.startswith("## ❌ Mismatch Probe: WORSE")
    github = run_cli("diff", near, far, "--format", "github")
    assert github.stdout.startswith("::error title=Mismatch Probe diff%3A WORSE::")


def test_a_run_against_itself_agrees(runs):
    done = run_cli("diff", str(runs / "near"), str(runs / "near"), "--fail-on-worse")
    assert done.status == 0 and "agree in every number" in done.stdout
    assert "Paired: the same 96 responses to the same 24 prompts" in " ".join(done.stdout.split())


def test_results_alone_are_compared_by_their_intervals(runs):
    near, far = (str(runs / name / "result.json") for name in ("near", "far"))
    done = run_cli("diff", near, far, "--format", "json")
    comparison = json.loads(done.stdout)
    assert comparison["pairing"]["basis"] == "results" and comparison["outcome"] == "worse"
    assert all(row["change"]["ci_low"] is None for row in comparison["metrics"])


def test_findings_and_settings_that_differ_are_named(runs, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(runs / "near", changed)
    result = json.loads((changed / "result.json").read_text())
    gone = result["findings"].pop(0)
    result["provenance"]["versions"]["torch"] = "9.9"
    (changed / "result.json").write_text(json.dumps(result))
    comparison = json.loads(run_cli("diff", str(runs / "near"), str(changed), "--format", "json").stdout)
    assert [(row["code"], row["change"]) for row in comparison["findings"]] == [(gone["code"], "gone")]
    assert {row["key"]: row["second"] for row in comparison["settings"]} == {"versions.torch": "9.9"}


def test_what_cannot_be_compared_is_status_3_and_a_mistake_2(runs, tmp_path):
    few = tmp_path / "few"
    write_run(few, Planted(1e-3, 40, prompts=3))
    run_cli("measure", str(few))
    done = run_cli("diff", str(runs / "near"), str(few))
    assert done.status == 3 and "INCONCLUSIVE" in done.stdout and "3 prompts" in done.stdout
    missing = run_cli("diff", str(runs / "near"), str(tmp_path / "nothing"))
    assert missing.status == 2 and "does not exist" in missing.stderr
