"""Writes the table of dashboard names in docs/measurement.md from the code that computes them.

`python -m tools.naming_table` rewrites the table, with `--print` it only prints it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from mismatch_probe.stats import framework_metrics

DOCUMENT = Path(__file__).parents[1] / "docs" / "measurement.md"
BEGIN, END = "<!-- names: begin -->", "<!-- names: end -->"


def naming_table() -> str:
    """Every name that the result's `token.dashboards` has, with its convention, as a Markdown table."""
    rollout = np.log([0.5, 0.25, 0.125, 0.5])
    rows = framework_metrics(rollout - 0.01, rollout, [0, 2, 4])
    lines = ["| framework | name | what it is |", "|---|---|---|"]
    lines += [f"| {row.framework} | `{row.name}` | {row.convention.replace('|', '&#124;')} |" for row in rows]
    return "\n".join(lines)


def with_table(document: str) -> str:
    """The document with the table of today between its markers."""
    before, rest = document.split(BEGIN)
    return f"{before}{BEGIN}\n{naming_table()}\n{END}{rest.split(END)[1]}"


def main() -> None:
    """Rewrites or prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--print", action="store_true", help="print the table instead of writing it")
    if parser.parse_args().print:
        print(naming_table())
    else:
        DOCUMENT.write_text(with_table(DOCUMENT.read_text()))


if __name__ == "__main__":
    main()
