"""Writes docs/causes.md from the catalogue of causes; what was measured stands in docs/planted-faults.md."""

from __future__ import annotations

from pathlib import Path

from mismatch_probe.causes.catalogue import CAUSES, catalogue_markdown

PAGE = Path(__file__).parents[1] / "docs" / "causes.md"

if __name__ == "__main__":
    PAGE.write_text(catalogue_markdown(CAUSES.values()), encoding="utf-8")
    print(f"{PAGE.name}: {len(CAUSES)} causes")
