"""ROLL: train_infer_correction and router replay as YAML. Keys as of August 2026 (8eb27cc)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mismatch_probe.export.annotated import Entry
from mismatch_probe.export.applied.roll import methods as applied_methods
from mismatch_probe.export.exporter import ExportedConfig, Plan, register_exporter
from mismatch_probe.export.provenance import replay_reason, sampling_entries
from mismatch_probe.export.target import ON_TOP, WITHOUT_MISMATCH, Target
from mismatch_probe.export.thresholds import (
    Band,
    Fitted,
    mean_band,
    sequence_band,
    sequence_cap,
    token_band,
    token_cap,
)

TARGET = Target(
    name="roll",
    title="ROLL (August 2026, 8eb27cc)",
    fragment="to merge into a pipeline config",
    layout="yaml",
    package=None,
    versions=("8eb27cc",),
    history=None,
    loaded=False,
    applied=applied_methods,
)
_WEIGHT = "train_infer_correction.is_weight"
_FILTERS = "train_infer_correction.filters"
_WITHOUT = ("ppo_clip",)


@register_exporter("roll", summary="train_infer_correction of ROLL (YAML)")
def export_roll(result: Mapping[str, Any], plan: Plan) -> ExportedConfig:
    """Writes ROLL keys; see `mismatch_probe.export.exporter.Exporter`."""
    TARGET.refuse_unless(plan, (*_WITHOUT, "token_tis", "seq_tis", "icepop", "seq_mis", "geo_rs"))
    entries = [*_weight(result, plan), _filter(result, plan)]
    because = replay_reason(result, plan)
    mode = "R3" if plan.routing_replay else "disable"
    if because is not None:
        why = f"{because} R3 needs SGLang and megatron_train; ROLL ignores it elsewhere with a warning."
        entries.append(Entry("actor_train.router_replay.mode", mode, why))
        entries.append(
            Entry("actor_infer.router_replay.mode", mode, "The same for the engine that has the routes.")
        )
    entries += [
        Entry(f"actor_infer.generating_args.{one.key}", one.value, one.because)
        for one in sampling_entries(result, "temperature", "top_p", "top_k")
    ]
    contents = WITHOUT_MISMATCH if plan.method in _WITHOUT else ON_TOP
    return TARGET.write(result, plan, contents, entries, _notes(plan))


def _weight(result: Mapping[str, Any], plan: Plan) -> list[Entry]:
    enabled, kind, upper = f"{_WEIGHT}.enabled", f"{_WEIGHT}.weight_type", f"{_WEIGHT}.upper_bound"
    if plan.method in ("geo_rs", *_WITHOUT):
        return [Entry(enabled, False, "No weights on pi_old / mu.")]
    sequence = plan.method in ("seq_tis", "seq_mis")
    fitted: Fitted | None = sequence_cap(result) if sequence else token_cap(result)
    level = "sequence" if sequence else "token"
    why = (
        "The product over the response; ROLL clamps nothing before it."
        if sequence
        else "Each token's pi_old / mu."
    )
    entries = [Entry(enabled, True, "pi_old / mu is a weight on the loss."), Entry(kind, level, why)]
    if fitted is not None:
        entries.append(Entry(upper, fitted.value, f"Set by {fitted.because}."))
    return [*entries, Entry(f"{_WEIGHT}.detach", True, "No gradient through the weight.")]


def _filter(result: Mapping[str, Any], plan: Plan) -> Entry:
    found: tuple[str, Band | None] = {
        "icepop": ("token", token_band(result)),
        "seq_mis": ("sequence", sequence_band(result)),
        "geo_rs": ("geometric", mean_band(result)),
    }.get(plan.method, ("token", None))
    level, band = found
    if band is None:
        return Entry(_FILTERS, (), "No rejection of tokens or responses.")
    rule = {
        "enabled": True,
        "agg_type": level,
        "ratio_enabled": True,
        "ratio_low": band.low,
        "ratio_high": band.high,
        "diff_enabled": False,
    }
    return Entry(_FILTERS, (rule,), f"Drops what lies outside, by {level} ratio; set by {band.because}.")


def _notes(plan: Plan) -> list[str]:
    notes = []
    if plan.method == "icepop":
        notes.append(
            "ROLL drops a token from the mask, so that means over tokens leave it out of their denominator"
        )
    if plan.fp32_head:
        notes.append("ROLL has no switch for a float32 output head")
    notes.append("pg_clip and pg_variant answer to staleness and the task; this run did not measure them")
    return notes
