"""What every exported config says of the run that it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mismatch_probe.export.annotated import Entry
from mismatch_probe.export.exporter import Plan
from mismatch_probe.export.measured import look_up, read
from mismatch_probe.export.thresholds import Band, Fitted


def value_of(result: Mapping[str, Any], path: str) -> str:
    """A number for a comment, or why there is none."""
    found = read(result, path)
    return "not measured" if found is None else f"{found.value:.4g}"


def heading(result: Mapping[str, Any], plan: Plan, target: str, contents: str) -> list[str]:
    """The comment paragraphs on top of a config."""
    model = look_up(result, "provenance.model.name") or "an unnamed model"
    rollout = look_up(result, "provenance.rollout.engine") or "rollout engine"
    train = look_up(result, "provenance.train.scorer") or "trainer"
    run = look_up(result, "provenance.run_id") or "unknown"
    place = f" in the place of {plan.instead_of}, which cannot be expressed here" if plan.instead_of else ""
    return [
        f"{target}.",
        f"Run {run}: {model}, {rollout} against {train}, {value_of(result, 'token.num_tokens')} tokens, "
        f"token K3 {value_of(result, 'token.k3')} nats, verdict {result.get('verdict')}.",
        f"Correction: {plan.method}{place}. {plan.summary}",
        f"What the weights contain: {contents}",
    ]


def hyperparameter(plan: Plan, name: str) -> Any:
    """A hyperparameter of the plan's method: as recommended, else its default."""
    from mismatch_probe.weights import get_method

    if name in plan.parameters and plan.parameters[name] is not None:
        return plan.parameters[name]
    return getattr(get_method(plan.method), name)


def parameter_entries(plan: Plan, keys: Mapping[str, str]) -> list[Entry]:
    """Entries for hyperparameters, by the framework's name for each."""
    entries = []
    for name, key in keys.items():
        source = (
            "recommendation.parameters" if plan.parameters.get(name) is not None else "default of the method"
        )
        entries.append(Entry(key, float(hyperparameter(plan, name)), f"{plan.method} {name}, {source}."))
    return entries


def cap_entries(key: str, fitted: Fitted | None) -> list[Entry]:
    """A cap; nothing where the run has no number for it."""
    return [] if fitted is None else [Entry(key, fitted.value, f"Set by {fitted.because}.")]


def bound_entries(high: str, low: str, band: Band | None, effect: str) -> list[Entry]:
    """Two bounds of a ratio; nothing where the run has no numbers for them."""
    if band is None:
        return []
    return [
        Entry(high, band.high, f"Set by {band.because}; {effect}."),
        Entry(low, band.low, "The lower bound of the same measurement."),
    ]


def sampling_entries(result: Mapping[str, Any], *names: str) -> list[Entry]:
    """The sampling that the run measured; under another the thresholds do not hold."""
    entries = []
    for name in names:
        value = look_up(result, f"provenance.sampling.{name}")
        if isinstance(value, int | float) and not isinstance(value, bool):
            why = f"provenance.sampling.{name}: what was measured holds for this sampling."
            entries.append(Entry(name, value if name == "top_k" else float(value), why))
    return entries


def top_k_of(result: Mapping[str, Any]) -> int | None:
    """The measured top_k; None where all tokens could be drawn."""
    value = look_up(result, "provenance.sampling.top_k")
    return (
        int(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None
    )


def sampling_notes(result: Mapping[str, Any], title: str, *missing: str) -> list[str]:
    """What was measured with and the framework has no key for.

    Args:
        result: result.json.
        title: The framework's name.
        missing: "top_p" or "top_k", or both.
    """
    notes = []
    top_p, top_k = read(result, "provenance.sampling.top_p"), top_k_of(result)
    if "top_p" in missing and top_p is not None and top_p.value < 1.0:
        notes.append(f"{title} samples at top_p = 1 only; the run was measured at {top_p.value:g}")
    if "top_k" in missing and top_k is not None:
        notes.append(f"{title} has no top_k for its rollouts; the run was measured at {top_k}")
    return notes


def replay_reason(result: Mapping[str, Any], plan: Plan) -> str | None:
    """Why routing replay is or is not switched on; None for a model without routing."""
    if not look_up(result, "routing.available"):
        return None
    explained = value_of(result, "routing.replay.explained")
    flips = value_of(result, "routing.token_any_flip_rate")
    because = f"routing.replay.explained = {explained}, routing.token_any_flip_rate = {flips}."
    return because if plan.routing_replay else f"{because} Not worth its cost."


def fp32_reason(result: Mapping[str, Any], plan: Plan) -> str:
    """Why the output head is or is not computed in float32."""
    for action in look_up(result, "recommendation.actions") or []:
        measured = action.get("measured") or {}
        if action.get("code") == "MP109" and measured.get("name"):
            return f"{measured['name']} = {float(measured['value']):.4g}."
    checks: list[Mapping[str, Any]] = look_up(result, "data_quality.checks") or []
    check: Mapping[str, Any] = next((row for row in checks if row.get("code") == "MP109"), {})
    if plan.fp32_head:
        return (
            f"data_quality.checks[MP109] {check.get('status', 'not_run')}, observed {check.get('observed')}."
        )
    status = check.get("status", "not_run")
    return f"data_quality.checks[MP109] {status}: no sign that rounding of the head's output is the cause."
