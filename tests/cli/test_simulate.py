"""`simulate` and `tune` as a user runs them, on a run directory that another program wrote."""

import json

import pytest
from running import run_cli

from benchmarks.synthetic_run import Planted, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A measured run of 48 responses."""
    path = tmp_path_factory.mktemp("runs") / "planted"
    write_run(path, Planted(5e-3, 30, prompts=12, seed=1))
    measured = run_cli("measure", str(path))
    assert measured.status == 1, measured.stderr  # it drifts, as planted
    return path


def test_simulate_writes_the_section_and_the_report_and_prints_it(run):
    options = (
        "--method",
        "vespo",
        "--sweep",
        "vespo:k_pos=1,2;lambda_pos=2,3",
        "--lengths",
        "15,60",
        "--staleness",
        "1",
    )
    done = run_cli("simulate", str(run), *options, "--sequences", "64")
    assert done.status == 0, done.stderr
    assert "VESPO: k_pos x lambda_pos" in done.stdout and "15" in done.stdout and "60 *" in done.stdout
    assert "ablations" in done.stdout and str(run / "report.html") in done.stdout
    assert "simulate: " in done.stderr and "simulate: " not in done.stdout
    result = json.loads((run / "result.json").read_text())
    assert {point["length"] for point in result["simulation"]["extrapolation"]["points"]} == {15, 60}
    page = (run / "report.html").read_text()
    assert "drawing-weight_sweep" in page and "drawing-weight_extrapolation" in page
    assert (run / "figures" / "weight_sweep.png").is_file()


def test_formats_go_to_stdout_whole(run):
    options = ("--method", "token_tis", "--lengths", "30", "--staleness", "1", "--sequences", "32")
    as_json = run_cli("simulate", str(run), *options, "--format", "json")
    assert json.loads(as_json.stdout) == json.loads((run / "result.json").read_text())["simulation"]
    assert "report:" in as_json.stderr
    as_markdown = run_cli("tune", str(run), "--method", "vespo", "--budget", "1", "--format", "markdown")
    assert as_markdown.stdout.startswith("### Tuning") and "| lambda | " in as_markdown.stdout


def test_tune_writes_its_file_and_keeps_other_fits(run):
    first = run_cli(
        "tune", str(run), "--method", "vespo", "--budget-pos", "1", "--budget-neg", "1.1", "--format", "json"
    )
    assert first.status == 0, first.stderr
    written = json.loads((run / "tuning" / "vespo.json").read_text())
    assert json.loads(first.stdout) == written and written["negative"]["budget"] == 1.1
    second = run_cli("tune", str(run), "--method", "geo_rs", "--keep", "0.9")
    assert "-kappa" in second.stdout and "Held-out half" in second.stdout
    assert set(json.loads((run / "result.json").read_text())["tuning"]) == {"vespo", "geo_rs"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["simulate", "RUN", "--sweep", "vespo:k_poss=1,2"], "did you mean 'k_pos'"),
        (["simulate", "RUN", "--lengths", "many"], "--lengths 1024,8192"),
        (["simulate", "RUN", "--staleness-from", "/no/such/folder"], "no folder"),
        (["tune", "RUN", "--method", "gspo"], "can be tuned: cispo, geo_rs"),
        (["tune", "RUN", "--method", "vespo"], "--budget"),
        (["simulate", "/no/such/run"], "does not exist"),
    ],
)
def test_a_mistake_ends_with_status_2_and_the_mend(run, arguments, said):
    before = (run / "result.json").read_bytes()
    done = run_cli(*(str(run) if word == "RUN" else word for word in arguments))
    assert done.status == 2 and said in done.stderr and not done.stdout
    assert (run / "result.json").read_bytes() == before
