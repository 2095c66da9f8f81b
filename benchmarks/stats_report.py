"""The tables and the picture of the simulation study."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.stats_simulation import (
    GROWTH,
    LENGTH,
    NOMINAL,
    SAMPLES,
    Alarms,
    Coverage,
    claim,
)

ORDER = (
    "mean log-ratio",
    "K2",
    "K3",
    "mean abs log-ratio",
    "mean ratio",
    "chi2 of tokens",
    "rate of ratios beyond 1.1",
    "mean log W",
    "kappa",
    "std of log W",
    "variance per token",
    GROWTH,
    "Gaussian ratio",
    "ESS fraction",
    "chi2 of sequences",
    "mean weight",
)


def write_markdown(
    path: Path, claimed: list[Coverage], outside: list[Coverage], clean: list[Alarms], faults: list[Alarms]
) -> None:
    """Writes the page: what was planted, coverage, bias, false alarms, detection."""
    replicates = max(row.drawn for row in claimed)
    lines = [
        "# How good are the intervals and the checks?",
        "",
        "Measured on planted data, seeded; `python -m benchmarks.stats_simulation` writes this page again.",
        f"{replicates} replicates for each row, {SAMPLES} sequences a prompt, about {LENGTH} tokens a sequence"
        " (log-normal, sigma 0.5),",
        "log-ratios of variance 0.002, so that log W has a standard deviation of 0.37. With 2000 replicates a true 95 %"
        " shows as 94.0 to 96.0 %.",
        "",
        "![Coverage and alarms](images/statistics-simulation.png)",
        "",
        "## Coverage of the 95 % intervals",
        "",
        "Percent of the intervals given that hold the true value, for 8 / 16 / 48 prompts. **Bold** is where"
        f" a claim is made: {NOMINAL[0]:.0%} to {NOMINAL[1]:.0%} (for statistics marked >= at least {NOMINAL[0]:.0%}). In brackets the"
        " percent of samples for which an interval is given, where that is below 99. `-` stands for an interval"
        " given in fewer than 5 % of the samples: there the sample is refused rather than judged.",
        "",
    ]
    lines += _coverage_table([*claimed, *outside])
    lines += [
        "",
        "## Bias of the values",
        "",
        "Mean error in percent of the true value (of the spread, where that is larger),",
    ]
    lines += ["8 / 16 / 48 prompts.", ""]
    lines += _table([*claimed, *outside], lambda row: f"{100 * row.relative_bias:+.1f}")
    lines += ["", "## False alarms of the validity checks", ""]
    lines += [
        "Percent of clean data sets on which a check fails; the bar is 1. Checks not named never failed.",
        "",
    ]
    lines += ["| clean data | prompts | data sets | any check | by check |", "|---|---|---|---|---|"]
    for row in clean:
        rates = ", ".join(f"{code} {100 * rate:.2f}" for code, rate in row.rates.items()) or "none"
        s = row.scenario
        lines.append(f"| {s.name} | {s.prompts} | {row.replicates} | {100 * row.any_check:.2f} | {rates} |")
    lines += ["", "## Detection", ""]
    lines += ["Percent of data sets on which the check meant for a fault fails, and what else fails.", ""]
    lines += ["| fault | check | detected | other checks that fail |", "|---|---|---|---|"]
    for row in faults:
        code = str(row.scenario.code)
        others = ", ".join(f"{c} {100 * r:.0f}" for c, r in row.rates.items() if c != code and r >= 0.005)
        lines.append(f"| {row.scenario.name} | {code} | {100 * row.rates.get(code, 0.0):.1f} | {others} |")
    s = faults[0].scenario
    lines += [
        "",
        f"{s.prompts} prompts, {s.samples} sequences each of about {s.length} tokens, laws over 64 tokens.",
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _coverage_table(rows: list[Coverage]) -> list[str]:
    def cell(row: Coverage) -> str:
        if row.given < 0.05:
            return "-"
        text = f"{100 * row.covered:.1f}"
        if claim(row.drift, row.prompts, row.statistic):
            text = f"**{text}**"
        return text if row.given >= 0.99 else f"{text} ({100 * row.given:.0f})"

    return _table(rows, cell)


def _table(rows: list[Coverage], cell) -> list[str]:
    drifts = list(dict.fromkeys(row.drift for row in rows))
    lines = ["| statistic | " + " | ".join(drifts) + " |", "|---" * (len(drifts) + 1) + "|"]
    for name in ORDER:
        cells = []
        for drift in drifts:
            here = {row.prompts: row for row in rows if row.drift == drift and row.statistic == name}
            cells.append(" / ".join(cell(here[count]) if count in here else "-" for count in sorted(here)))
        lines.append(
            f"| {name}{' >=' if claim(None, 0, name) == 'at least' else ''} | " + " | ".join(cells) + " |"
        )
    return lines


def write_figure(
    path: Path, claimed: list[Coverage], outside: list[Coverage], clean: list[Alarms], faults: list[Alarms]
) -> None:
    """Draws coverage by statistic, false alarms and detection."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 7), width_ratios=(1.2, 1.0), layout="constrained")
    left.axvspan(*NOMINAL, color="#2a9d8f", alpha=0.15, lw=0)
    left.axvline(0.95, color="#2a9d8f", lw=1)
    marks = {8: "o", 16: "s", 48: "^"}
    for row in [*claimed, *outside]:
        if row.given < 0.05:
            continue
        y = len(ORDER) - 1 - ORDER.index(row.statistic)
        said = claim(row.drift, row.prompts, row.statistic)
        left.plot(
            row.covered, y + {8: 0.22, 16: 0.0, 48: -0.22}[row.prompts], marks[row.prompts], ms=5,
            color="#264653" if said else "#e76f51", mfc="#264653" if said else "none", alpha=0.8,
        )  # fmt: skip
    left.set_yticks(range(len(ORDER)), ORDER[::-1])
    left.set_xlim(0.6, 1.005)
    left.set_xlabel("coverage of the 95 % interval")
    left.set_title("Filled: claimed; hollow: outside the claim", loc="left", fontsize=11)
    for count, mark in marks.items():
        left.plot([], [], mark, color="#264653", label=f"{count} prompts")
    left.legend(loc="lower left", frameon=False)
    names = [row.scenario.name for row in clean] + [
        f"{row.scenario.code}  {row.scenario.name}" for row in faults
    ]
    values = [row.any_check for row in clean] + [row.rates.get(str(row.scenario.code), 0.0) for row in faults]
    colours = ["#e76f51"] * len(clean) + ["#264653"] * len(faults)
    y = np.arange(len(names))[::-1]
    right.barh(y, values, color=colours, height=0.7)
    for place, value in zip(y, values, strict=True):
        right.text(value + 0.01, place, f"{100 * value:.1f}", va="center", fontsize=8)
    right.set_yticks(y, names, fontsize=8)
    right.set_xlim(0, 1.12)
    right.set_xlabel("share of data sets")
    right.set_title("Clean data: any alarm (orange). Faults: detected", loc="left", fontsize=11)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
