"""SkyRL: trainer.algorithm.off_policy_correction as YAML and as overrides. Keys as of SkyRL 0.3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mismatch_probe.export.annotated import Entry
from mismatch_probe.export.applied.skyrl import methods as applied_methods
from mismatch_probe.export.exporter import ExportedConfig, Plan, register_exporter
from mismatch_probe.export.provenance import (
    bound_entries,
    cap_entries,
    hyperparameter,
    parameter_entries,
    replay_reason,
    sampling_entries,
)
from mismatch_probe.export.target import IN_THE_RATIO, ON_TOP, WITHOUT_MISMATCH, Target
from mismatch_probe.export.thresholds import mean_band, sequence_band, sequence_cap, token_band, token_cap

TARGET = Target(
    name="skyrl",
    title="SkyRL 0.3",
    fragment="keys of SkyRLTrainConfig; SkyRL takes them on its command line as KEY=VALUE",
    layout="overrides",
    package="skyrl",
    versions=("0.3",),
    history="Older releases have trainer.algorithm.use_tis and tis_imp_ratio_cap, which 0.3 still maps onto token_tis.",
    loaded=True,
    applied=applied_methods,
)
_ALGORITHM = "trainer.algorithm"
_OFF = f"{_ALGORITHM}.off_policy_correction"
_INFERENCE = "generator.inference_engine"
_WITHOUT = ("ppo_clip", "dapo", "dual_clip")
_LOSS = {
    "dual_clip": "dual_clip",
    "gspo": "gspo",
    "sapo": "sapo",
    "cispo": "cispo",
    "dppo_tv": "dppo",
    "dppo_kl": "dppo",
}
_CLIP = {"eps_low": f"{_ALGORITHM}.eps_clip_low", "eps_high": f"{_ALGORITHM}.eps_clip_high"}
_PARAMETERS = {
    "dual_clip": {**_CLIP, "c": f"{_ALGORITHM}.clip_ratio_c"},
    "dapo": _CLIP,
    "gspo": _CLIP,
    "sapo": {"tau_pos": f"{_ALGORITHM}.sapo.tau_pos", "tau_neg": f"{_ALGORITHM}.sapo.tau_neg"},
    "cispo": {
        "eps_low": f"{_ALGORITHM}.cispo.cispo_eps_clip_low",
        "eps_high": f"{_ALGORITHM}.cispo.cispo_eps_clip_high",
    },
}


@register_exporter("skyrl", summary="off_policy_correction of SkyRL (YAML and overrides)")
def export_skyrl(result: Mapping[str, Any], plan: Plan) -> ExportedConfig:
    """Writes SkyRL keys; see `mismatch_probe.export.exporter.Exporter`."""
    TARGET.refuse_unless(plan, (*_WITHOUT, *_LOSS, "token_tis", "seq_tis", "icepop", "seq_mis", "geo_rs"))
    because = replay_reason(result, plan)
    entries = [*_correction(result, plan), *_objective(plan)]
    sampling = [
        *sampling_entries(result, "temperature", "top_p", "top_k"),
        Entry(
            "logprobs",
            1,
            "Without log mu there is nothing to correct; SkyRL refuses a correction without it.",
        ),
    ]
    if because is not None:
        trainer = "trainer.policy.megatron_config.moe_enable_routing_replay"
        entries.append(Entry(trainer, plan.routing_replay, f"{because} Megatron trainer only."))
        engine = "The engine has to return the routes that are replayed."
        entries.append(Entry(f"{_INFERENCE}.enable_return_routed_experts", plan.routing_replay, engine))
    entries += [Entry(f"generator.sampling_params.{one.key}", one.value, one.because) for one in sampling]
    contents = ON_TOP
    if plan.method.startswith("dppo"):
        contents = IN_THE_RATIO
    elif plan.method in _WITHOUT:
        contents = WITHOUT_MISMATCH
    return TARGET.write(result, plan, contents, entries, _notes(plan))


def _correction(result: Mapping[str, Any], plan: Plan) -> list[Entry]:
    kind, mask = f"{_OFF}.tis_ratio_type", f"{_OFF}.sequence_mask_metric"
    off = Entry(mask, None, "No rejection of responses.")
    cap_key = f"{_OFF}.token_tis_ratio_clip_high"
    if plan.method == "seq_tis":
        weights = Entry(kind, "sequence", "W of the whole response, truncated above.")
        return [weights, *cap_entries(f"{_OFF}.sequence_tis_ratio_clip_high", sequence_cap(result)), off]
    if plan.method == "seq_mis":
        keys = (f"{_OFF}.product_mask_high", f"{_OFF}.product_mask_low")
        return [
            Entry(kind, "sequence", "The responses that stay have W of the whole response as their weight."),
            *cap_entries(f"{_OFF}.sequence_tis_ratio_clip_high", sequence_cap(result)),
            Entry(mask, "product", "Drops responses by the product of their ratios."),
            *bound_entries(*keys, sequence_band(result), "responses outside are dropped"),
        ]
    if plan.method == "geo_rs":
        keys = (f"{_OFF}.geo_mask_high", f"{_OFF}.geo_mask_low")
        return [
            Entry(kind, None, "No weights on pi_old / mu."),
            Entry(mask, "geometric", "Drops responses by the geometric mean of their ratios."),
            *bound_entries(*keys, mean_band(result), "responses outside are dropped"),
        ]
    if plan.method in _WITHOUT or plan.method.startswith("dppo"):
        return [Entry(kind, None, "No weights on pi_old / mu."), off]
    if plan.method == "icepop":
        keys = (f"{_OFF}.token_mask_is_threshold_high", f"{_OFF}.token_mask_is_threshold_low")
        return [
            Entry(kind, "token", "IcePop: the ratio inside the band, nothing outside."),
            *cap_entries(cap_key, token_cap(result)),
            *bound_entries(*keys, token_band(result), "tokens outside are dropped"),
            off,
        ]
    weights = Entry(kind, "token", "Each token's pi_old / mu, truncated above.")
    return [weights, *cap_entries(cap_key, token_cap(result)), off]


def _objective(plan: Plan) -> list[Entry]:
    loss = _LOSS.get(plan.method, "regular")
    entries = [Entry(f"{_ALGORITHM}.policy_loss_type", loss, f"The objective that {plan.method} goes with.")]
    if plan.method == "gspo":
        why = "A mean over responses of means over tokens, as in the paper."
        entries.append(Entry(f"{_ALGORITHM}.loss_reduction", "sequence_mean", why))
    if plan.method.startswith("dppo"):
        delta = float(hyperparameter(plan, "delta"))
        kind = f"binary_{plan.method.removeprefix('dppo_')}"
        entries.append(Entry(f"{_ALGORITHM}.dppo.dppo_type", kind, "Divergence of the sampled token."))
        entries.append(
            Entry(f"{_ALGORITHM}.dppo.delta_low", delta, "Threshold for A < 0, default of the method.")
        )
        entries.append(Entry(f"{_ALGORITHM}.dppo.delta_high", delta, "The same for A > 0."))
    return entries + parameter_entries(plan, _PARAMETERS.get(plan.method, {}))


def _notes(plan: Plan) -> list[str]:
    notes = []
    if plan.routing_replay:
        notes.append(
            "SkyRL replays routes with the Megatron trainer only, and not with step-wise trajectories"
        )
    if plan.fp32_head:
        notes.append("SkyRL has no switch for a float32 output head (moe_router_dtype is fp32 already)")
    if plan.method == "icepop":
        notes.append("SkyRL truncates token weights as well as masking them; the cap is the band's upper end")
    if plan.method == "cispo":
        notes.append("SkyRL's CISPO bounds are distances from 1, where TRL takes the cap itself")
    notes.append("eps_clip answers to staleness; this run measured mismatch at equal weights")
    return notes
