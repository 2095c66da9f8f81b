"""Workflow commands of GitHub Actions: findings and bars as annotations, and Markdown in the job summary.

The escapes are those of GitHub's toolkit (actions/toolkit, packages/core/src/command.ts): percent, carriage return and
newline in a message, colon and comma besides in a property. Without them a model's name could write a command of its own.
"""

from __future__ import annotations

import os
from pathlib import Path

from mismatch_probe.errors import ConfigError
from mismatch_probe.gate import Gate
from mismatch_probe.outcomes import Outcome
from mismatch_probe_reports.format import clean
from mismatch_probe_reports.model import build_report
from mismatch_probe_reports.reading import Json, read_rows, read_text

LEVELS = {"error": "error", "warning": "warning", "info": "notice"}
SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"


def annotation(level: str, title: str, message: str) -> str:
    """Return one workflow command.

    Args:
        level: error, warning or notice.
        title: Head of the annotation.
        message: What it says.
    """
    return f"::{level} title={_escape(title, ':,')}::{_escape(message)}"


def _escape(text: str, more: str = "") -> str:
    text = clean(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    for character in more:
        text = text.replace(character, f"%{ord(character):02X}")
    return text


def result_annotations(result: Json) -> list[str]:
    """The verdict and each finding of a result as annotations."""
    report = build_report(result)
    level = {"PASS": "notice", "DRIFT": "error"}.get(report.verdict, "warning")
    lines = [annotation(level, f"Mismatch Probe: {report.verdict}", report.sentence)]
    for finding in report.findings:
        message = " - ".join(part for part in (finding.detail, finding.advice) if part)
        lines.append(
            annotation(LEVELS.get(finding.severity, "notice"), f"{finding.code} {finding.title}", message)
        )
    return lines


def matrix_annotations(matrix: Json) -> list[str]:
    """The verdict of each pair of a matrix as annotations."""
    lines = []
    for cell in read_rows(matrix.get("cells")):
        verdict = read_text(cell.get("verdict"), "not measured")
        level = {"pass": "notice", "drift": "error"}.get(verdict, "warning")
        pair = f"{read_text(cell.get('source'))} against {read_text(cell.get('reader'))}"
        said = read_text(cell.get("sentence")) or read_text(cell.get("reason"), verdict)
        lines.append(annotation(level, f"{pair}: {verdict.upper()}", said))
    return lines


def gate_annotations(gate: Gate) -> list[str]:
    """A gate as annotations: its sentence, each bar that is broken, and each named one without a number or a say."""
    level = {"pass": "notice", "drift": "error"}.get(gate.name, "warning")
    lines = [annotation(level, f"Mismatch Probe: {gate.name.upper()}", gate.sentence)]
    for state, shown in (("fail", "error"), ("warn", "warning"), ("note", "notice")):
        lines += [annotation(shown, _title(outcome), _message(outcome)) for outcome in gate.of_state(state)]
    lines += [
        annotation("warning", _title(item.outcome), f"not measured: {item.outcome.detail}")
        for item in gate.held
        if item.state == "skip" and item.named
    ]
    lines += [annotation("notice", f"{key} has no say here", reason) for key, reason in gate.idle]
    return lines


def _title(outcome: Outcome) -> str:
    return f"{outcome.code} {outcome.name}"


def _message(outcome: Outcome) -> str:
    at = outcome.would_pass_at
    return outcome.detail if at is None else f"{outcome.detail}; observed {at:.4g}, bar {outcome.bar:.4g}"


def write_job_summary(markdown: str) -> Path | None:
    """Append Markdown to the summary of the GitHub job that runs this; None where none runs.

    Raises:
        ConfigError: The file that GitHub named cannot be written to.
    """
    named = os.environ.get(SUMMARY_VARIABLE)
    if not named:
        return None
    path = Path(named)
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(markdown + "\n")
    except OSError as error:
        raise ConfigError(
            f"the job summary {path} cannot be written: {error.strerror or error}",
            hint=f"unset {SUMMARY_VARIABLE}, or let it name a file that can be written to",
        ) from error
    return path
