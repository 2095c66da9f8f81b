"""NeMo-RL: loss_fn and policy keys as YAML. Keys as of NeMo-RL's main branch of August 2026 (7ea279a)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mismatch_probe.export.annotated import Entry
from mismatch_probe.export.applied.nemo_rl import methods as applied_methods
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
from mismatch_probe.export.thresholds import mean_band, sequence_cap, token_band, token_cap

TARGET = Target(
    name="nemo-rl",
    title="NeMo-RL (main of August 2026, 7ea279a)",
    fragment="to merge into a GRPO config",
    layout="yaml",
    package=None,
    versions=("7ea279a",),
    history=None,
    loaded=False,
    applied=applied_methods,
)
_TYPE = "loss_fn.truncated_importance_sampling_type"
_MAX = "loss_fn.truncated_importance_sampling_ratio"
_MIN = "loss_fn.truncated_importance_sampling_ratio_min"
_WITHOUT = ("ppo_clip", "dapo", "dual_clip")
_CLIP = {"eps_low": "loss_fn.ratio_clip_min", "eps_high": "loss_fn.ratio_clip_max"}
_PARAMETERS = {
    "dapo": _CLIP,
    "dual_clip": {**_CLIP, "c": "loss_fn.ratio_clip_c"},
    "gspo": _CLIP,
    "cispo": _CLIP,
}
_REASONS = {
    "seq_tis": "truncation of the product comes only with GSPO's ratios",
    "seq_mis": "seq-mask-tis tests the geometric mean, not the product",
}


@register_exporter("nemo-rl", summary="loss_fn and policy keys of NeMo-RL (YAML)")
def export_nemo_rl(result: Mapping[str, Any], plan: Plan) -> ExportedConfig:
    """Writes NeMo-RL keys; see `mismatch_probe.export.exporter.Exporter`."""
    TARGET.refuse_unless(plan, (*_WITHOUT, "token_tis", "icepop", "geo_rs", "gspo", "cispo"), _REASONS)
    entries = [*_correction(result, plan), *_objective(plan)]
    because = replay_reason(result, plan)
    if because is not None:
        why = f"{because} Megatron trainer with vLLM; the engine is told by NeMo-RL itself."
        entries.append(Entry("policy.router_replay.enabled", plan.routing_replay, why))
    entries += [
        Entry(f"policy.generation.{one.key}", one.value, one.because)
        for one in sampling_entries(result, "temperature", "top_p")
    ]
    top_k = top_k_of(result)
    why = "provenance.sampling.top_k; NeMo-RL says null for all tokens."
    entries.append(Entry("policy.generation.top_k", top_k, why))
    contents = WITHOUT_MISMATCH if plan.method in _WITHOUT else ON_TOP
    return TARGET.write(result, plan, contents, entries, _notes(plan))


def _correction(result: Mapping[str, Any], plan: Plan) -> list[Entry]:
    switch = "loss_fn.use_importance_sampling_correction"
    if plan.method in _WITHOUT:
        off = Entry(_TYPE, None, "Nothing to truncate.")
        return [Entry(switch, False, "No correction of pi_old / mu was chosen."), off]
    on = Entry(switch, True, "pi_old / mu is corrected for; asynchronous GRPO insists on it.")
    if plan.method == "icepop":
        kind = Entry(_TYPE, "icepop", "The ratio inside the band, nothing outside.")
        return [on, kind, *bound_entries(_MAX, _MIN, token_band(result), "tokens outside are dropped")]
    if plan.method == "geo_rs":
        kind = Entry(_TYPE, "seq-mask-tis", "Drops responses by the geometric mean of their ratios.")
        return [on, kind, *bound_entries(_MAX, _MIN, mean_band(result), "responses outside are dropped")]
    kind = Entry(_TYPE, "tis", "The weight pi_old / mu, truncated above.")
    cap = sequence_cap(result) if plan.method == "gspo" else token_cap(result)
    return [on, kind, *cap_entries(_MAX, cap), Entry(_MIN, 0.0, "Nothing is raised from below.")]


def _objective(plan: Plan) -> list[Entry]:
    entries = []
    if plan.method == "gspo":
        why = "GSPO: the geometric mean of pi / pi_old. The weight on top is then the product of pi_old / mu."
        entries.append(Entry("loss_fn.sequence_level_importance_ratios", True, why))
        entries.append(Entry("loss_fn.token_level_loss", False, "A mean over responses, as in the paper."))
    if plan.method == "cispo":
        why = "CISPO; its caps are distances from 1, where TRL takes the cap itself."
        entries.append(Entry("loss_fn.use_cispo", True, why))
        entries.append(Entry("loss_fn.token_level_loss", True, "NeMo-RL refuses CISPO without it."))
    return entries + parameter_entries(plan, _PARAMETERS.get(plan.method, {}))


def _notes(plan: Plan) -> list[str]:
    notes = [
        "ClippedPGLossConfig keeps keys that it does not know without a word, so look at the logged config once"
    ]
    if plan.method == "geo_rs":
        notes.append("the responses that stay keep their tokens' pi_old / mu, which nothing caps")
    if plan.fp32_head:
        notes.append(
            "a float32 output head needs the DTensor trainer: lm_head_precision in its options for mixtures of experts; "
            "vLLM has none here"
        )
    notes.append("ratio_clip answers to staleness; this run measured mismatch at equal weights")
    return notes
