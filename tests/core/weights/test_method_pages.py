"""The pages and plots of methods are what the code gives."""

from __future__ import annotations

from tools.document_method_pages import FOLDER, files, prose


def test_pages_and_plots_are_what_the_code_gives() -> None:
    made = files()
    there = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}
    assert sorted(made) == sorted(there), "python tools/document_method_pages.py"
    changed = [name for name, text in made.items() if there[name] != text]
    assert not changed, "python tools/document_method_pages.py"


def test_prose_keeps_code_and_escapes_the_rest() -> None:
    assert prose("phi_t = 1[s < 2] * `a_b`") == "phi\\_t = 1\\[s &lt; 2\\] \\* `a_b`"
