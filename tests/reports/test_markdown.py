"""Markdown for CI comments: tables that hold, strings that cannot mark up or call anyone."""

import re

import pytest
from reports.sample import SAMPLES

from mismatch_probe_reports import render_markdown


@pytest.mark.parametrize("name", SAMPLES)
def test_every_row_of_a_table_has_the_cells_of_its_head(name: str) -> None:
    width = None
    for line in render_markdown(SAMPLES[name]()).splitlines():
        if not line.startswith("|"):
            width = None
            continue
        cells = len(re.findall(r"(?<!\\)\|", line)) - 1
        width = width or cells
        assert cells == width, line


@pytest.mark.parametrize("name", ["drifting", "dense", "exact", "inconclusive"])
def test_verdict_and_findings_come_first(name: str) -> None:
    result = SAMPLES[name]()
    text = render_markdown(result)
    assert result["verdict"].upper() in text.splitlines()[0]
    for finding in result["findings"]:
        assert f"**{finding['code']}**" in text
    assert text.index("### Findings") < text.index("### Legs") < text.index("### Recommendation")
    for action in result["recommendation"]["actions"]:
        assert action["code"] in text or action["action"].split()[0] in text


def test_hostile_strings_are_escaped() -> None:
    text = render_markdown(SAMPLES["hostile"]())
    assert "<img" not in text and "</script" not in text and "\x1b" not in text
    assert "@octocat" not in text, "a comment must not call a user"
    assert "\\[bold\\]" in text and "\\*" in text


def test_absent_sections_give_reasons() -> None:
    text = render_markdown(SAMPLES["absent"]())
    assert text.count("Not available: ") == 6
    assert render_markdown(SAMPLES["bare"]()).count("not reported in result.json") >= 5
