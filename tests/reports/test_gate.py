"""Hostile text of a result in JUnit XML and in workflow commands, which other programs execute or parse."""

import xml.etree.ElementTree as ElementTree

from core.test_verdict import result
from hypothesis import given
from hypothesis import strategies as st

from mismatch_probe.config.bars import load_bars
from mismatch_probe.gate import hold_gate
from mismatch_probe_reports.github import annotation, gate_annotations, write_job_summary
from mismatch_probe_reports.junit import render_junit

HOSTILE = "a]]></failure><x>&\x00\x1b[31m\n::set-env name=X::1\r\u202e%0A"


def hostile():
    made = result()
    made["data_quality"]["checks"] = [
        {"code": "MP101", "name": HOSTILE, "status": "fail", "observed": 1.0, "bar": 0.0, "detail": HOSTILE}
    ]
    return hold_gate(made, load_bars()), made


def test_junit_stays_xml_and_says_the_same_twice():
    gate, made = hostile()
    content = render_junit(gate, made)
    root = ElementTree.fromstring(content)
    (failure,) = root.findall(".//failure")
    assert "</failure><x>" in failure.text and root.findall(".//x") == []
    assert content == render_junit(gate, made)


def test_hostile_text_writes_no_command_of_its_own():
    gate, _ = hostile()
    lines = "\n".join(gate_annotations(gate)).splitlines()
    assert len(lines) == 2 and all(line.startswith("::error title=") for line in lines)


@given(st.text(), st.text())
def test_an_annotation_is_one_line_with_one_title(title, message):
    made = annotation("error", title, message)
    assert len(made.splitlines()) == 1
    head, _, _ = made.removeprefix("::error title=").partition("::")
    assert ":" not in head and "," not in head


def test_no_summary_where_no_job_runs(monkeypatch, tmp_path):
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    assert write_job_summary("x") is None
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "s.md"))
    write_job_summary("one")
    write_job_summary("two")
    assert (tmp_path / "s.md").read_text() == "one\ntwo\n"
