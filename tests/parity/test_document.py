"""docs/parity.md says what these tests do: versions, differences and the table."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from parity.installed import pinned
from parity.table import DOCUMENT, HEAD, documented

from mismatch_probe.weights import FRAMEWORKS

TEXT = DOCUMENT.read_text(encoding="utf-8")


def defined(module: str) -> set[str]:
    tree = ast.parse(Path(__file__).with_name(module).read_text(encoding="utf-8"))
    return {
        node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_every_difference_is_documented_and_every_documented_one_tested() -> None:
    named = set(re.findall(r"\| `(test_\w+)` \|$", TEXT, re.MULTILINE))
    assert named == defined("test_differences.py")


def test_versions_are_the_installed_ones_and_those_of_the_presets() -> None:
    for package, framework in (("trl", "TRL"), ("verl", "verl")):
        stated = f"{framework} {pinned()[package]}"
        assert stated in TEXT
        assert FRAMEWORKS[package] == stated


def test_the_table_holds_what_is_within_the_stated_limits() -> None:
    rows = documented()
    assert {framework for framework, _, _ in rows} == {"TRL", "verl"}
    body = TEXT.partition("\n".join(HEAD) + "\n")[2].partition("\n\n")[0]
    for line in body.splitlines():
        *_, single, double, _ = (cell.strip() for cell in line.split("|"))
        assert not single or float(single) <= 1e-6, line
        assert not double or float(double) <= (1e-7 if "`sapo`" in line and "TRL" in line else 3e-8), line
