"""The page of the command line says what the command line says."""

from __future__ import annotations

import re

import pytest
from documentation.printed import help_texts
from typer.testing import CliRunner

from mismatch_probe_cli.app import app
from tools.document_cli import PAGE, page

SECTIONS = dict(re.findall(r"^### (\S+)\n(.*?)(?=^### |\Z)", page(), re.M | re.S))
VERBS = dict(help_texts())


def test_the_page_is_what_the_verbs_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python tools/document_cli.py"


def test_every_verb_is_there_once() -> None:
    assert list(SECTIONS) == list(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_and_example_of_help_is_there(verb: str) -> None:
    shown = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).stdout
    for option in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", shown)) - {"--help"}:
        assert f"`{option}`" in SECTIONS[verb] or f" {option} " in SECTIONS[verb], option
    examples = re.findall(r"`(mismatch-probe [^`]+)`", VERBS[verb].partition("**Examples**")[2])
    assert len(examples) >= 2
    for example in examples:
        assert f"    {' '.join(example.split())}\n" in SECTIONS[verb]
