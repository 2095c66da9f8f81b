"""Named causes as findings: one finding for one fact, whichever part of the tool saw it first."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mismatch_probe.causes.catalogue import CAUSES
from mismatch_probe.findings import Finding

_SAME = {
    "moe-routing": ("MP402",),
    "bf16-head": ("MP109",),
    "engine-self-disagreement": ("MP204",),
}
"""Findings that state the same fact as a cause, beside the validity checks that a cause rests on."""
_CHECK = re.compile(r"data_quality\.checks\[(MP\d+)")


def with_causes(findings: Sequence[Finding], result: Mapping[str, Any]) -> list[Finding]:
    """Adds what the diagnosis names. A fact that has a finding keeps it, and the cause is linked to that.

    Args:
        findings: Of the run, without causes.
        result: With the section `causes`, where there is one.
    """
    merged = list(findings)
    for cause in _named(result):
        code, name = str(cause["code"]), str(cause["cause"])
        leads = {
            *_SAME.get(name, ()),
            *(code for fact in cause["facts"] for code in _CHECK.findall(fact["where"])),
        }
        place = next((i for i, item in enumerate(merged) if item.code in leads), None)
        if place is None:
            merged.append(_own_finding(cause, code, name))
            continue
        lead = merged[place]
        merged[place] = dataclasses.replace(
            lead, linked=(*lead.linked, code), advice=f"{lead.advice} (more: mismatch-probe explain {name})"
        )
    return merged


def cause_clause(result: Mapping[str, Any]) -> str:
    """What the verdict's sentence says of causes: the first one, or that none was identified; may be empty."""
    causes = _named(result)
    if causes:
        return f"; cause: {causes[0]['title']} ({causes[0]['code']})"
    status = _diagnosis(result).get("status")
    return "; no cause was identified" if status == "not_identified" else ""


def _own_finding(cause: Mapping[str, Any], code: str, name: str) -> Finding:
    entry = CAUSES[name]
    fact = next((item for item in cause["facts"] if isinstance(item["value"], int | float)), None)
    return Finding(
        code=code,
        # How large the drift is was judged already; a cause says where it comes from.
        severity="warning",
        title=f"cause: {entry.title}",
        observed=None if fact is None else float(fact["value"]),
        bar=None if fact is None else fact.get("bar"),
        would_pass_at=None,
        unit="",
        n=None,
        advice="; ".join(f"{who}: {what}" for who, what in entry.remedies)
        + f" (more: mismatch-probe explain {name})",
        detail=str(cause["because"]),
    )


def _diagnosis(result: Mapping[str, Any]) -> Mapping[str, Any]:
    return (result.get("causes") or {}).get("diagnosis") or {}


def _named(result: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return _diagnosis(result).get("causes") or ()
