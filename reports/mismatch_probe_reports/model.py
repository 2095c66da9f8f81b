"""The view model: everything a view shows, built from result.json and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.reading import (
    Json,
    Number,
    look_up,
    pick,
    read_float,
    read_mapping,
    read_number,
    read_rows,
    read_text,
)
from mismatch_probe_reports.sections.ablation import build_ablation
from mismatch_probe_reports.sections.causes import build_causes
from mismatch_probe_reports.sections.legs import build_legs
from mismatch_probe_reports.sections.location import build_location
from mismatch_probe_reports.sections.recommendation import build_recommendation
from mismatch_probe_reports.sections.reference import build_glossary, build_reference
from mismatch_probe_reports.sections.routing import build_routing
from mismatch_probe_reports.sections.sequence import build_sequence, k_hat_cell
from mismatch_probe_reports.sections.simulation import build_simulation
from mismatch_probe_reports.sections.staleness import build_staleness
from mismatch_probe_reports.sections.token_drift import build_token
from mismatch_probe_reports.sections.tuning import build_tuning
from mismatch_probe_reports.sections.validity import build_provenance, build_validity, subject
from mismatch_probe_reports.sections.weights import build_weights
from mismatch_probe_reports.tables import Cell, Section, estimate_cell

SEVERITIES = ("error", "warning", "info")
SEVERITY_TONES = {"error": "fail", "warning": "warn", "info": "info"}
VERDICT_TONES = {"pass": "pass", "drift": "fail", "inconclusive": "warn"}
TOP_FINDINGS = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding, ready to show.

    Attributes:
        anchor: Identifier inside the page.
        code: Stable code such as MP201.
        severity: error, warning or info.
        tone: Colour class of the severity.
        title: What was found.
        observed: The observed value with its unit, or a reason.
        bar: The bar it was held against.
        would_pass_at: The bar at which it would pass.
        n: How many observations it rests on; empty where not stated.
        advice: What to do.
        detail: More, where there is more.
    """

    anchor: str
    code: str
    severity: str
    tone: str
    title: str
    observed: Cell
    bar: Cell
    would_pass_at: Cell
    n: str
    advice: str
    detail: str


@dataclass(frozen=True, slots=True)
class KeyNumber:
    """One number of the strip under the verdict."""

    label: str
    cell: Cell
    hint: str


@dataclass(frozen=True, slots=True)
class Report:
    """The whole report.

    Attributes:
        verdict: Verdict word in capitals.
        tone: Colour class of the verdict.
        sentence: The verdict in one plain sentence.
        subject: What was compared, in one sentence.
        exit_code: Exit status of the run, as text.
        findings: All findings, gravest first.
        key_numbers: The handful of numbers to look at first.
        sections: All parts in order.
        run_id: Identifier of the run.
        created_at: When it was made, as stated in the result.
        tool_version: Version of the tool that measured.
        command: Command line of the run.
    """

    verdict: str
    tone: str
    sentence: str
    subject: str
    exit_code: str
    findings: tuple[Finding, ...]
    key_numbers: tuple[KeyNumber, ...]
    sections: tuple[Section, ...]
    run_id: str
    created_at: str
    tool_version: str
    command: str

    @property
    def top_findings(self) -> tuple[Finding, ...]:
        """The gravest findings, at most five."""
        return self.findings[:TOP_FINDINGS]

    def section(self, name: str) -> Section:
        """Return the part called `name`.

        Raises:
            KeyError: There is no such part.
        """
        for section in self.sections:
            if section.name == name:
                return section
        raise KeyError(name)


def build_report(result: Json) -> Report:
    """Build the view model from a result.

    Args:
        result: result.json as a mapping; any part may be null or `{"available": false, "reason": ...}`.
    """
    verdict = read_text(result.get("verdict"), "unknown")
    exit_code = read_number(result.get("exit_code")).value
    provenance = read_mapping(result.get("provenance"))
    return Report(
        verdict=verdict.upper(),
        tone=VERDICT_TONES.get(verdict, "muted"),
        sentence=read_text(result.get("verdict_sentence"), "The result gives no reason for this verdict."),
        subject=subject(result),
        exit_code="not reported" if exit_code is None else str(int(exit_code)),
        findings=_findings(result),
        key_numbers=_key_numbers(result),
        sections=(
            build_validity(result),
            build_provenance(result),
            build_legs(result),
            build_token(result),
            build_sequence(result),
            build_weights(result),
            build_simulation(result),
            build_staleness(result),
            build_tuning(result),
            build_routing(result),
            build_causes(result),
            build_ablation(result),
            build_location(result),
            build_recommendation(result),
            build_reference(result),
            build_glossary(),
        ),
        run_id=read_text(provenance.get("run_id"), "run without a name"),
        created_at=read_text(provenance.get("created_at"), "time not reported"),
        tool_version=read_text(provenance.get("tool_version"), "version not reported"),
        command=read_text(provenance.get("command"), "command not reported"),
    )


def _findings(result: Json) -> tuple[Finding, ...]:
    def gravity(raw: Json) -> int:
        severity = raw.get("severity")
        return SEVERITIES.index(severity) if severity in SEVERITIES else len(SEVERITIES)

    ordered = sorted(read_rows(result.get("findings")), key=gravity)
    return tuple(_finding(raw, position) for position, raw in enumerate(ordered, start=1))


def _finding(raw: Json, position: int) -> Finding:
    severity = read_text(raw.get("severity"), "info")
    unit = read_text(raw.get("unit"))
    count = read_float(raw.get("n"))
    return Finding(
        anchor=f"finding-{position}",
        code=read_text(raw.get("code"), "no code"),
        severity=severity,
        tone=SEVERITY_TONES.get(severity, "muted"),
        title=read_text(raw.get("title"), "finding without a title"),
        observed=_quantity(raw, "observed", unit),
        bar=_quantity(raw, "bar", unit),
        would_pass_at=_quantity(raw, "would_pass_at", unit),
        n="" if count is None else fmt.integer(count),
        advice=read_text(raw.get("advice")),
        detail=read_text(raw.get("detail")),
    )


def _quantity(raw: Json, key: str, unit: str) -> Cell:
    """Write a number of a finding; many findings have none by nature, which a dash says."""
    value = raw.get(key)
    if isinstance(value, str | bool):
        return Cell(fmt.scalar(value))
    if value is None:
        return Cell("-", reason=read_text(raw.get(f"{key}_reason")), tone="muted")
    return estimate_cell(value, lambda number: fmt.with_unit(number, unit))


def _key_numbers(result: Json) -> tuple[KeyNumber, ...]:
    token = result.get("token")
    sequence = read_mapping(result.get("sequence"))
    k_hat = k_hat_cell(sequence)
    ess = estimate_cell(_or_reason(result, "sequence", "ess"), fmt.percent)
    read_with = f"k-hat {k_hat.text}" + (f", {k_hat.detail}" if k_hat.detail else "")
    exact = look_up(token, "exact") is True
    numbers = [
        KeyNumber(
            "K3 per token",
            Cell("EXACT", tone="exact") if exact else estimate_cell(_or_reason(result, "token", "k3")),
            "nats, KL(mu || pi)",
        ),
        KeyNumber(
            "Mean |log-ratio|",
            estimate_cell(_or_reason(result, "token", "mean_abs_log_ratio")),
            "nats per token",
        ),
        KeyNumber(
            "Total over floor",
            estimate_cell(_or_reason(result, "legs", "floor", "total_over_floor"), fmt.times),
            f"floor from {read_text(look_up(result, 'legs', 'floor', 'source'), 'an unreported source')}",
        ),
        KeyNumber("ESS of sequences", ess, read_with),
        KeyNumber(
            "Kappa",
            estimate_cell(_or_reason(result, "sequence", "length_law", "kappa")),
            "nats of log W per token",
        ),
        KeyNumber(
            "Experts agree",
            estimate_cell(_or_reason(result, "routing", "set_agreement"), fmt.percent),
            "same set, token by layer",
        ),
    ]
    return tuple(numbers)


def _or_reason(result: Json, *path: str) -> object:
    """Return the number at `path`; where a part on the way is absent, a number with that part's reason."""
    here: object = result
    for key in path[:-1]:
        here = read_mapping(here).get(key)
        if isinstance(here, dict) and here.get("available") is False:
            return Number(None, reason=read_text(here.get("reason")) or "not available")
    return pick(here, path[-1])
