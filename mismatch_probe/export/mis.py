"""mis.yaml of slime's and miles' train_infer_mismatch_helper. Keys as of August 2026 (slime 624b824, miles 31f1ca9)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mismatch_probe.export.annotated import Entry
from mismatch_probe.export.applied.slime import helper_methods
from mismatch_probe.export.exporter import ExportedConfig, Plan, register_exporter
from mismatch_probe.export.target import ON_TOP, Target
from mismatch_probe.export.thresholds import (
    Band,
    mean_band,
    sequence_band,
    sequence_cap,
    token_band,
    token_cap,
)

_SLIME = "examples.train_infer_mismatch_helper.mis"
_MILES = "examples.infra_features.train_infer_mismatch_helper.mis"
_EXPRESSIBLE = ("token_tis", "seq_tis", "icepop", "seq_mis", "geo_rs")


def _target(name: str, title: str, module: str, commit: str) -> Target:
    arguments = f"--custom-config-path FILE --custom-tis-function-path {module}.compute_mis_weights_with_cp"
    return Target(
        name=name,
        title=title,
        fragment=f"mis.yaml, for {arguments}",
        layout="yaml",
        package=None,
        versions=(commit,),
        history=None,
        loaded=False,
        applied=helper_methods,
    )


SLIME_MIS = _target("slime-mis", "slime (August 2026, 624b824)", _SLIME, "624b824")
MILES_MIS = _target("miles-mis", "miles (August 2026, 31f1ca9)", _MILES, "31f1ca9")


@register_exporter("slime-mis", summary="mis.yaml of slime's mismatch helper")
def export_slime_mis(result: Mapping[str, Any], plan: Plan) -> ExportedConfig:
    """Writes mis.yaml; see `mismatch_probe.export.exporter.Exporter`."""
    return _export(SLIME_MIS, result, plan)


@register_exporter("miles-mis", summary="mis.yaml of miles' mismatch helper")
def export_miles_mis(result: Mapping[str, Any], plan: Plan) -> ExportedConfig:
    """Writes mis.yaml; see `mismatch_probe.export.exporter.Exporter`."""
    return _export(MILES_MIS, result, plan)


def _export(target: Target, result: Mapping[str, Any], plan: Plan) -> ExportedConfig:
    target.refuse_unless(plan, _EXPRESSIBLE, {"ppo_clip": "it is a file of corrections; leave it away"})
    batch = "Off: a mean of 1 moves every threshold with the batch, and the helper raises an error with geometric."
    veto = "No veto: nothing in this run measures where a single token should silence its response."
    entries = [
        *_weights(result, plan),
        *_rejection(result, plan),
        Entry("rs_veto_threshold", None, veto),
        Entry("tis_batch_normalize", False, batch),
    ]
    notes = []
    if plan.method == "geo_rs":
        notes.append(
            "the helper rejects nothing while use_tis is false, so that truncated token weights come with the band"
        )
    if plan.routing_replay:
        notes.append("routing replay is an argument, --use-rollout-routing-replay")
    if plan.fp32_head:
        notes.append("there is no switch for a float32 output head")
    return target.write(result, plan, ON_TOP, entries, notes)


def _weights(result: Mapping[str, Any], plan: Plan) -> list[Entry]:
    on = Entry("use_tis", True, "Without it the helper only logs.")
    if plan.method in ("icepop", "seq_mis"):
        token = plan.method == "icepop"
        band = token_band(result) if token else sequence_band(result)
        why = "Each token by its own ratio." if token else "The product over the response."
        mode = Entry("tis_mode", "mask", "The ratio inside the band, nothing outside.")
        return [on, Entry("tis_level", "token" if token else "sequence", why), mode, *_bounds("tis", band)]
    sequence = plan.method == "seq_tis"
    cap = sequence_cap(result) if sequence else token_cap(result)
    why = "The product over the response." if sequence else "Each token by its own ratio."
    entries = [
        on,
        Entry("tis_level", "sequence" if sequence else "token", why),
        Entry("tis_mode", "truncate", "Truncated above; the lower bound is not read."),
        Entry("tis_lower_bound", None, "Not read in this mode."),
    ]
    return (
        entries if cap is None else [*entries, Entry("tis_upper_bound", cap.value, f"Set by {cap.because}.")]
    )


def _rejection(result: Mapping[str, Any], plan: Plan) -> list[Entry]:
    if plan.method != "geo_rs":
        off = "Read only with use_rs."
        return [
            Entry("use_rs", False, "No rejection besides."),
            Entry("rs_level", "token", off),
            Entry("rs_lower_bound", None, off),
            Entry("rs_upper_bound", None, off),
        ]
    level = Entry("rs_level", "geometric", "By the geometric mean of the response's ratios.")
    return [
        Entry("use_rs", True, "Drops responses outside the band."),
        level,
        *_bounds("rs", mean_band(result)),
    ]


def _bounds(prefix: str, band: Band | None) -> list[Entry]:
    if band is None:
        return []
    low = Entry(f"{prefix}_lower_bound", band.low, f"Set by {band.because}.")
    return [low, Entry(f"{prefix}_upper_bound", band.high, "The upper bound of the same measurement.")]
