"""`history` as a user runs it."""

import json

import pytest
from running import run_cli

from benchmarks.synthetic_run import Planted, write_run
from mismatch_probe.stages.measure import measure_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Six checkpoints whose K3 rises."""
    folder = tmp_path_factory.mktemp("runs")
    for step in range(6):
        measure_run(
            write_run(folder / f"step-{10 * step}", Planted(1e-4 * 1.5**step, 16, prompts=10, seed=step))
        )
    return folder


def test_table_page_and_picture(runs, tmp_path):
    done = run_cli("history", str(runs), "--out", str(tmp_path))
    assert done.status == 0, done.stderr
    assert "K3 is rising" in " ".join(done.stdout.split()) and "50" in done.stdout
    page = (tmp_path / "history.html").read_text()
    assert "drawing-history" in page and "<script" not in page
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")
    first = (tmp_path / "history.png").read_bytes()
    as_json = run_cli("history", str(runs), "--out", str(tmp_path), "--format", "json", "--gate")
    content = json.loads(as_json.stdout)
    assert [row["step"] for row in content["rows"]] == [0, 10, 20, 30, 40, 50]
    assert as_json.status == content["rows"][-1]["exit_code"]
    assert (tmp_path / "history.png").read_bytes() == first
    markdown = run_cli("history", str(runs), "--out", str(tmp_path), "--format", "markdown")
    assert markdown.stdout.startswith("### Drift over training")


def test_a_file_of_somebody_else_stays(runs, tmp_path):
    (tmp_path / "history.png").write_text("mine")
    refused = run_cli("history", str(runs), "--out", str(tmp_path))
    assert refused.status == 2 and "--force" in refused.stderr
    assert (tmp_path / "history.png").read_text() == "mine"
    assert run_cli("history", str(runs), "--out", str(tmp_path), "--force").status == 0


def test_nothing_to_read_is_status_3_and_a_mistake_2(tmp_path):
    (tmp_path / "empty").mkdir()
    assert run_cli("history", str(tmp_path / "empty")).status == 3
    assert run_cli("history", str(tmp_path / "missing")).status == 2
