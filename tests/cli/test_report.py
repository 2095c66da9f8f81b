"""`report` as a user runs it: what was redacted stays redacted, and the files are where they are said to be."""

import re

import pytest
from running import run_cli

from benchmarks.synthetic_run import Planted, write_run
from mismatch_probe.stages.measure import measure_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    made = write_run(tmp_path_factory.mktemp("runs") / "run", Planted(1e-3, 16, prompts=10))
    measure_run(made)
    return made.path


def shown(run):
    """What the explorer calls the tokens."""
    page = (run / "report.html").read_text(encoding="utf-8")
    return set(re.findall(r'<bdi class="token[^>]*>([^<]*)</bdi>', page))


def test_what_was_redacted_stays_redacted(run):
    assert run_cli("report", str(run)).status == 0
    plain = shown(run)
    assert any(text.strip().isdigit() for text in plain)  # ids: there is no tokenizer
    assert run_cli("report", str(run), "--redact", "hash").status == 0
    assert all(re.fullmatch(r"t\d+ ?", text) for text in shown(run))
    assert run_cli("report", str(run)).status == 0
    assert all(re.fullmatch(r"t\d+ ?", text) for text in shown(run))
    assert run_cli("report", str(run), "--redact", "full").status == 0
    assert not any(character.isalnum() for text in shown(run) for character in text)
    assert (run / "figures" / "overview.png").read_bytes().startswith(b"\x89PNG")
