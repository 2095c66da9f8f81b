"""The table of docs/parity.md, from a run of these tests.

python -m pytest tests/parity --junitxml=parity.xml && python tests/parity/table.py parity.xml
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path

from parity.batches import AGGREGATIONS

HEAD = (
    "| framework | function or keys | method | aggregations | float32 | float64 |",
    "|---|---|---|---|---|---|",
)
DOCUMENT = Path(__file__).parents[2] / "docs" / "parity.md"


def documented() -> set[tuple[str, str, str]]:
    """Framework, function and method of each row that the document has."""
    _, found, body = DOCUMENT.read_text(encoding="utf-8").partition("\n".join(HEAD) + "\n")
    assert found, f"{DOCUMENT.name} has lost its table"
    cells = ([cell.strip() for cell in line.split("|")] for line in body.partition("\n\n")[0].splitlines())
    return {(row[1], row[2], row[3]) for row in cells}


def rows(report: Path) -> list[str]:
    """Lines of a Markdown table: by function and method, the largest difference of each dtype."""
    largest: dict[tuple[str, str, str], dict[str, float]] = defaultdict(dict)
    ways: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for item in ElementTree.parse(report).iter("property"):
        parts = item.attrib["name"].split("|")
        if len(parts) != 5:
            continue
        framework, function, method, aggregation, dtype = parts
        key = (framework, function, method)
        ways[key].add(aggregation)
        largest[key][dtype] = max(float(item.attrib["value"]), largest[key].get(dtype, 0.0))
    lines = [
        "| framework | function or keys | method | aggregations | float32 | float64 |",
        "|---|---|---|---|---|---|",
    ]
    for key in sorted(largest):
        names = "all five" if ways[key] == set(AGGREGATIONS) else ", ".join(sorted(ways[key]))
        numbers = (_short(largest[key].get(dtype)) for dtype in ("float32", "float64"))
        lines.append(f"| {' | '.join((*key, names, *numbers))} |")
    return lines


def _short(number: float | None) -> str:
    return "" if number is None else f"{number:.0e}" if number else "0"


if __name__ == "__main__":
    sys.stdout.write("\n".join(rows(Path(sys.argv[1]))) + "\n")
