"""The overview: what it says, that it is the same twice, and that no result breaks it."""

import io
import subprocess
import sys

import pytest
from PIL import Image

from mismatch_probe_reports.figures.overview import head_lines, overview_png, panels
from mismatch_probe_reports.model import build_report
from reports import sample


def test_it_tells_the_verdict_and_the_gravest_findings() -> None:
    report = build_report(sample.drifting())
    said = [text for text, _ in head_lines(report)]
    assert " ".join(said).startswith(report.sentence[:60])
    named = [text.split()[0] for text in said if text.startswith("MP")]
    assert named == [finding.code for finding in report.findings[:3]]


def test_panels_follow_what_was_measured() -> None:
    names = [panel.title for panel in panels(sample.drifting())]
    assert len(names) == 4 and "Experts that flip, by layer" in names
    assert [panel.title for panel in panels(sample.dense())][-1] == "What corrections leave"
    for panel in panels(sample.drifting()):
        assert panel.note, panel.title


@pytest.mark.parametrize("name", ["drifting", "exact", "inconclusive", "huge", "hostile", "absent", "bare"])
def test_every_result_has_one(name: str) -> None:
    with Image.open(io.BytesIO(overview_png(getattr(sample, name)()))) as picture:
        assert picture.width == 1600 and 200 < picture.height < 1400


def test_the_bytes_are_the_same_in_another_process() -> None:
    program = (
        "import sys, hashlib; from reports.sample import dense;"
        "from mismatch_probe_reports.figures.overview import overview_png;"
        "from mismatch_probe_reports.figures import prepare_figures;"
        "from mismatch_probe_reports.figures.canvas import Plot, draw;"
        "drawn = [draw(plot) for plot in prepare_figures(dense()) if isinstance(plot, Plot)];"
        "content = b''.join(item.svg.encode() + item.png for item in drawn) + overview_png(dense());"
        "print(len(drawn), hashlib.sha256(content).hexdigest())"
    )
    made = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(made) == 1 and next(iter(made)).startswith("9 ")
