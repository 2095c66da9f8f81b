"""`check` as a CI job runs it."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from running import run_cli

from benchmarks.synthetic_run import Planted, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A measured run that drifts, of 48 responses."""
    path = tmp_path_factory.mktemp("runs") / "planted"
    write_run(path, Planted(5e-3, 30, prompts=12, seed=1))
    assert run_cli("measure", str(path)).status == 1
    return path


def bars(folder, text):
    path = folder / "bars.toml"
    path.write_text(text)
    return str(path)


def test_bars_that_hold_are_status_0_and_junit_agrees(run, tmp_path):
    junit = tmp_path / "out" / "junit.xml"
    done = run_cli("check", str(run), "--bars", bars(tmp_path, "k3_max = 1.0\n"), "--junit", str(junit))
    assert done.status == 0, done.stderr
    assert done.stdout.startswith(" PASS ") and "token K3" in done.stdout
    root = ElementTree.parse(junit).getroot()
    cases = root.findall("testsuite/testcase")
    assert int(root.attrib["tests"]) == len(cases) > 15
    assert root.attrib["failures"] == "0" and not root.findall(".//failure")
    assert int(root.attrib["skipped"]) == len(root.findall(".//skipped")) > 0


def test_a_broken_bar_is_status_1_in_every_format(run, tmp_path, monkeypatch):
    path = bars(tmp_path, "[bars]\nk3_max = 1e-9\n")
    junit = tmp_path / "junit.xml"
    as_json = run_cli("check", str(run), "--bars", path, "--format", "json", "--junit", str(junit))
    assert as_json.status == 1
    (broken,) = [bar for bar in json.loads(as_json.stdout)["bars"] if bar["state"] == "fail"]
    assert broken["code"] == "MP201" and broken["would_pass_at"] == broken["observed"] > broken["bar"] == 1e-9
    (failure,) = ElementTree.parse(junit).getroot().findall(".//failure")
    assert failure.attrib["type"] == "MP201" and f"would pass at: {broken['observed']!r} nats" in failure.text
    markdown = run_cli("check", str(run), "--bars", path, "--format", "markdown")
    assert markdown.status == 1 and markdown.stdout.startswith("## ❌ Mismatch Probe: DRIFT")
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    github = run_cli("check", str(run / "result.json"), "--bars", path, "--format", "github")
    assert github.status == 1
    assert any(line.startswith("::error title=MP201 token K3::") for line in github.stdout.splitlines())
    assert summary.read_text().startswith("## ❌ Mismatch Probe: DRIFT")


def test_what_cannot_be_had_is_status_3(run, tmp_path):
    done = run_cli("check", str(run), "--bars", bars(tmp_path, "k3_max = 1.0\nset_agreement = 0.5\n"))
    assert done.status == 3 and "INCONCLUSIVE" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "bars.k3_mx=1"], "k3_max"),
        (["--set", "sampling.temperature=1"], "only bars.KEY=VALUE"),
        (["--bars", "no-such.toml"], "does not exist"),
    ],
)
def test_a_mistake_is_status_2_and_says_the_mend(run, arguments, said):
    done = run_cli("check", str(run), *arguments)
    assert done.status == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_a_run_that_is_not_there_is_status_2(tmp_path):
    done = run_cli("check", str(tmp_path / "nothing"))
    assert done.status == 2 and "does not exist" in done.stderr


def test_a_result_that_is_none_is_status_2(run, tmp_path):
    path = tmp_path / "result.json"
    path.write_text(json.dumps({**json.loads((run / "result.json").read_text()), "token": {"k3": 1}}))
    done = run_cli("check", str(path))
    assert done.status == 2 and "does not follow the schema" in done.stderr and "$.token" in done.stderr


def test_nothing_of_the_run_is_changed(run):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    run_cli("check", str(run), "--strict")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_findings_of_a_result_are_annotations(run):
    done = run_cli("measure", str(run), "--format", "github")
    assert done.status == 1
    lines = done.stdout.splitlines()
    assert lines[0].startswith("::error title=Mismatch Probe%3A DRIFT::")
    assert any(line.startswith("::error title=MP20") for line in lines[1:])


def test_what_is_read_is_not_written_over(run, tmp_path):
    path = tmp_path / "result.json"
    path.write_bytes((run / "result.json").read_bytes())
    named = bars(tmp_path, "k3_max = 1.0\n")
    for target in (str(path), named):
        before = Path(target).read_bytes()
        done = run_cli("check", str(path), "--bars", named, "--junit", target)
        assert done.status == 2 and "would write over" in done.stderr
        assert Path(target).read_bytes() == before


def test_output_that_cannot_be_written_is_status_2_and_no_bug(run, tmp_path):
    done = run_cli("check", str(run), "--junit", str(tmp_path))
    assert done.status == 2 and "JUnit" in done.stderr and "bug" not in done.stderr
    assert list(tmp_path.iterdir()) == []
    done = run_cli("check", str(run), "--format", "github", GITHUB_STEP_SUMMARY=str(tmp_path))
    assert done.status == 2 and "GITHUB_STEP_SUMMARY" in done.stderr and "bug" not in done.stderr


def test_nan_in_a_result_is_status_2_and_no_pass(run, tmp_path):
    made = json.loads((run / "result.json").read_text())
    made["token"]["k3"]["value"] = float("nan")
    path = tmp_path / "result.json"
    path.write_text(json.dumps(made))
    done = run_cli("check", str(path), "--set", "bars.k3_max=1")
    assert done.status == 2 and "$.token.k3.value is no finite number" in done.stderr


def test_a_named_bar_without_a_say_is_a_notice(run):
    done = run_cli(
        "check", str(run), "--set", "bars.k3_max=1", "--set", "bars.k3_moe=1", "--format", "github"
    )
    assert done.status == 0
    assert any(
        line.startswith("::notice title=k3_moe has no say here::") for line in done.stdout.splitlines()
    )
