"""slime and miles: arguments of their launch scripts. Keys as of August 2026 (slime 624b824, miles 31f1ca9)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mismatch_probe.export.annotated import Entry
from mismatch_probe.export.applied.slime import methods as applied_methods
from mismatch_probe.export.exporter import ExportedConfig, Plan, register_exporter
from mismatch_probe.export.provenance import (
    bound_entries,
    cap_entries,
    parameter_entries,
    replay_reason,
    sampling_entries,
    top_k_of,
)
from mismatch_probe.export.target import ON_TOP, WITHOUT_MISMATCH, Target
from mismatch_probe.export.thresholds import mean_band, token_band, token_cap

_FRAGMENT = 'arguments of the launch script, as "${MISMATCH_ARGS[@]}"'
SLIME = Target(
    name="slime",
    title="slime (August 2026, 624b824)",
    fragment=_FRAGMENT,
    layout="arguments",
    package="slime",
    versions=("624b824",),
    history=None,
    loaded=False,
    applied=applied_methods,
)
MILES = Target(
    name="miles",
    title="miles (August 2026, 31f1ca9)",
    fragment=_FRAGMENT,
    layout="arguments",
    package=None,
    versions=("31f1ca9",),
    history=None,
    loaded=False,
    applied=applied_methods,
)
_ICEPOP = {
    "slime": "slime.backends.megatron_utils.loss.icepop_function",
    "miles": "miles.backends.training_utils.loss_hub.corrections.icepop_function",
}
_WITHOUT = ("ppo_clip", "dapo", "dual_clip")
_CLIP = {"eps_low": "eps-clip", "eps_high": "eps-clip-high"}
_PARAMETERS = {"dapo": _CLIP, "dual_clip": {**_CLIP, "c": "eps-clip-c"}, "gspo": _CLIP, "cispo": _CLIP}


@register_exporter("slime", summary="arguments of slime (bash array)")
def export_slime(result: Mapping[str, Any], plan: Plan) -> ExportedConfig:
    """Writes slime arguments; see `mismatch_probe.export.exporter.Exporter`."""
    return _export(SLIME, result, plan, (*_WITHOUT, "token_tis", "icepop", "opsm", "gspo", "cispo"))


@register_exporter("miles", summary="arguments of miles (bash array)")
def export_miles(result: Mapping[str, Any], plan: Plan) -> ExportedConfig:
    """Writes miles arguments; see `mismatch_probe.export.exporter.Exporter`."""
    return _export(MILES, result, plan, (*_WITHOUT, "token_tis", "icepop", "opsm", "gspo"))


def _export(
    target: Target, result: Mapping[str, Any], plan: Plan, expressible: tuple[str, ...]
) -> ExportedConfig:
    elsewhere = f"that takes mis.yaml: --to {target.name}-mis"
    reasons = dict.fromkeys(("seq_tis", "seq_mis", "geo_rs"), elsewhere)
    target.refuse_unless(plan, expressible, reasons)
    entries = [*_correction(target, result, plan), *_objective(plan)]
    because = replay_reason(result, plan)
    if plan.routing_replay and because is not None:
        entries.append(
            Entry("use-rollout-routing-replay", True, f"{because} The routes of the rollout engine.")
        )
    entries += [
        Entry(f"rollout-{one.key.replace('_', '-')}", one.value, one.because)
        for one in sampling_entries(result, "temperature", "top_p")
    ]
    top_k = top_k_of(result)
    if top_k is not None:
        entries.append(Entry("rollout-top-k", top_k, "provenance.sampling.top_k."))
    contents = WITHOUT_MISMATCH if plan.method in _WITHOUT else ON_TOP
    return target.write(result, plan, contents, entries, _notes(target, plan))


def _correction(target: Target, result: Mapping[str, Any], plan: Plan) -> list[Entry]:
    if plan.method in _WITHOUT:
        return []
    on = Entry("use-tis", True, "pi_old / mu is a weight on the loss.")
    if plan.method == "icepop":
        why = "IcePop: the ratio inside the band, nothing outside. It reads the two bounds of TIS."
        function = Entry("custom-tis-function-path", _ICEPOP[target.name], why)
        return [
            on,
            function,
            *bound_entries("tis-clip", "tis-clip-low", token_band(result), "tokens outside are dropped"),
        ]
    entries = [
        on,
        *cap_entries("tis-clip", token_cap(result)),
        Entry("tis-clip-low", 0.0, "Nothing is raised from below."),
    ]
    band = mean_band(result)
    if plan.method == "opsm":
        entries.append(
            Entry("use-opsm", True, "Negative responses go where the policy has moved away from them.")
        )
        if band is not None:
            why = f"Above what healthy responses show: {band.because}."
            entries.append(Entry("opsm-delta", band.widest_drop(), why))
    return entries


def _objective(plan: Plan) -> list[Entry]:
    entries = []
    if plan.method in ("gspo", "cispo"):
        entries.append(Entry("advantage-estimator", plan.method, f"The objective of {plan.method}."))
    return entries + parameter_entries(plan, _PARAMETERS.get(plan.method, {}))


def _notes(target: Target, plan: Plan) -> list[str]:
    notes = []
    if plan.method == "opsm":
        notes.append(
            "OPSM reads pi_old here, so it sees staleness; mismatch too only with --use-rollout-logprobs"
        )
    if plan.method == "cispo":
        notes.append(
            "the caps are distances from 1 and --eps-clip 1.0 takes the lower one away, which slime recommends"
        )
    if plan.fp32_head:
        notes.append(f"{target.name} has no switch for a float32 output head")
    notes.append("--use-rollout-logprobs must stay off: with it --use-tis is refused")
    return notes
