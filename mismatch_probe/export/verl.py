"""verl: YAML of the keys that a correction needs, and the same as Hydra overrides. Keys as of verl 0.9."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mismatch_probe.export.annotated import Entry, comment
from mismatch_probe.export.applied.verl import methods as applied_methods
from mismatch_probe.export.exporter import ExportedConfig, Plan, register_exporter
from mismatch_probe.export.provenance import (
    hyperparameter,
    parameter_entries,
    replay_reason,
    sampling_entries,
    value_of,
)
from mismatch_probe.export.target import WITHOUT_MISMATCH, Target
from mismatch_probe.export.thresholds import mean_band, sequence_band, sequence_cap, token_band, token_cap

TARGET = Target(
    name="verl",
    title="verl 0.9",
    fragment="to merge into ppo_trainer.yaml",
    layout="overrides",
    package="verl",
    versions=("0.9",),
    history=None,
    loaded=True,
    applied=applied_methods,
)
_CORRECTION = "algorithm.rollout_correction"
_ACTOR = "actor_rollout_ref.actor"
_ROLLOUT = "actor_rollout_ref.rollout"
_INVERSE = (
    "verl's K1 statistic is -log(pi_old / mu), so its bounds act on the inverse "
    "ratio and are written inverted."
)
_LOSS_MODE = {
    "cispo": "cispo",
    "dppo_kl": "dppo_kl",
    "dppo_tv": "dppo_tv",
    "gmpo": "geo_mean",
    "gspo": "gspo",
    "gspo_token": "gspo",
    "reinforce": "gpg",
    "sapo": "sapo",
}
_CLIP = {"eps_low": f"{_ACTOR}.clip_ratio_low", "eps_high": f"{_ACTOR}.clip_ratio_high"}
_PARAMETERS = {
    "cispo": _CLIP,
    "dapo": _CLIP,
    "dppo_kl": {"delta": f"{_ACTOR}.clip_ratio_low"},
    "dppo_tv": {"delta": f"{_ACTOR}.clip_ratio_low"},
    "dual_clip": {**_CLIP, "c": f"{_ACTOR}.clip_ratio_c"},
    "gmpo": _CLIP,
    "gspo": _CLIP,
    "gspo_token": _CLIP,
    "sapo": {"tau_pos": f"{_ACTOR}.tau_pos", "tau_neg": f"{_ACTOR}.tau_neg"},
}
_WITHOUT_CORRECTION = ("reinforce", "ppo_clip", "dapo", "dual_clip")
_EXPRESSIBLE = (
    *_WITHOUT_CORRECTION,
    *_LOSS_MODE,
    "token_tis",
    "seq_tis",
    "icepop",
    "seq_mis",
    "geo_rs",
    "k3_rs",
    "vespo",
)


@register_exporter("verl", summary="rollout_correction and actor keys of verl (YAML and Hydra overrides)")
def export_verl(result: Mapping[str, Any], plan: Plan) -> ExportedConfig:
    """Writes verl keys; see `mismatch_probe.export.exporter.Exporter`."""
    TARGET.refuse_unless(plan, _EXPRESSIBLE)
    entries = [
        *_correction(result, plan),
        *_objective(plan),
        *_replay(result, plan),
        Entry(
            f"{_ROLLOUT}.calculate_log_probs", True, "Without log mu there is nothing to correct or to watch."
        ),
        Entry(
            f"{_ROLLOUT}.logprobs_mode",
            "processed_logprobs",
            "log mu after temperature: what the tokens were drawn from.",
        ),
        *(
            Entry(f"{_ROLLOUT}.{entry.key}", entry.value, entry.because)
            for entry in sampling_entries(result, "temperature", "top_p", "top_k")
        ),
    ]
    below = _fork(plan) if plan.method == "vespo" else []
    return TARGET.write(result, plan, _contents(plan), entries, _notes(result, plan), below=below)


def _contents(plan: Plan) -> str:
    if plan.method == "reinforce":
        return "Nothing: there is no ratio, and neither mismatch nor staleness is seen."
    if plan.method in _WITHOUT_CORRECTION:
        return WITHOUT_MISMATCH
    return (
        "Decoupled mode: the clipped ratio is pi / pi_old; the weights and masks here "
        "read pi_old / mu, the mismatch."
    )


def _correction(result: Mapping[str, Any], plan: Plan) -> list[Entry]:
    why = "pi_old is recomputed by the trainer, so that the clip sees staleness alone and not the mismatch."
    return [
        *_weights(result, plan),
        *_rejection(result, plan),
        Entry(f"{_CORRECTION}.bypass_mode", False, why),
    ]


def _weights(result: Mapping[str, Any], plan: Plan) -> list[Entry]:
    level_key, threshold_key = f"{_CORRECTION}.rollout_is", f"{_CORRECTION}.rollout_is_threshold"
    if plan.method in _WITHOUT_CORRECTION:
        return [Entry(level_key, None, "No weights on pi_old / mu.")]
    if plan.method == "icepop":
        band = token_band(result)
        entries = [Entry(level_key, "token", "IcePop: with two bounds, tokens outside get nothing.")]
        if band is not None:
            text = f"{band.low:g}_{band.high:g}"
            entries.append(
                Entry(threshold_key, text, f"Set by {band.because}. Bounds of pi_old / mu, not inverted.")
            )
        return entries
    if plan.method in ("seq_tis", "seq_mis"):
        entries, cap = (
            [Entry(level_key, "sequence", "W of the whole response, truncated above.")],
            sequence_cap(result),
        )
    elif plan.method in ("token_tis", "vespo", *_LOSS_MODE) and not plan.method.startswith("dppo"):
        entries, cap = (
            [Entry(level_key, "token", "Each token's pi_old / mu, truncated above.")],
            token_cap(result),
        )
    else:
        return [Entry(level_key, None, "No weights on pi_old / mu.")]
    return entries if cap is None else [*entries, Entry(threshold_key, cap.value, f"Set by {cap.because}.")]


def _rejection(result: Mapping[str, Any], plan: Plan) -> list[Entry]:
    option, key = f"{_CORRECTION}.rollout_rs", f"{_CORRECTION}.rollout_rs_threshold"
    drops = "Drops responses whose statistic lies outside."
    if plan.method == "k3_rs":
        measured = f"verl's preset; the measured token K3 is {value_of(result, 'token.k3')} nats."
        return [
            Entry(option, "seq_mean_k3", drops),
            Entry(key, float(hyperparameter(plan, "bound")), measured),
        ]
    band, statistic = None, ""
    if plan.method in ("geo_rs", "vespo"):
        band, statistic = mean_band(result), "seq_mean_k1"
    elif plan.method == "seq_mis":
        band, statistic = sequence_band(result), "seq_sum_k1"
    if band is None:
        return [Entry(option, None, "No rejection of tokens or responses.")]
    inverse = band.inverse()
    return [
        Entry(option, statistic, drops),
        Entry(key, f"{inverse.low:g}_{inverse.high:g}", f"Set by {band.because}. {_INVERSE}"),
    ]


def _objective(plan: Plan) -> list[Entry]:
    entries = []
    if plan.method in _LOSS_MODE:
        mode = _LOSS_MODE[plan.method]
        entries.append(Entry(f"{_ACTOR}.policy_loss.loss_mode", mode, f"The objective of {plan.method}."))
    entries += parameter_entries(plan, _PARAMETERS.get(plan.method, {}))
    if plan.method.startswith("dppo"):
        delta = float(hyperparameter(plan, "delta"))
        entries.append(Entry(f"{_ACTOR}.clip_ratio_high", delta, "The same threshold for A > 0."))
        why = "Cap of the ratio; verl's default of 3 would act as a silent truncation."
        entries.append(Entry(f"{_ACTOR}.clip_ratio_c", 10000.0, why))
    if plan.method in ("gspo", "gspo_token", "gmpo"):
        why = "A mean over responses of means over tokens, as in the paper."
        entries.append(Entry(f"{_ACTOR}.loss_agg_mode", "seq-mean-token-mean", why))
    return entries


def _replay(result: Mapping[str, Any], plan: Plan) -> list[Entry]:
    because = replay_reason(result, plan)
    if because is None:
        return []
    if not plan.routing_replay:
        return [Entry(f"{_ROLLOUT}.enable_rollout_routing_replay", False, because)]
    return [
        Entry(
            f"{_ACTOR}.megatron.router_replay.mode",
            "R3",
            f"{because} Megatron trainer; with VeOmni the key is "
            "actor_rollout_ref.actor.veomni.router_replay.mode.",
        ),
        Entry(
            f"{_ROLLOUT}.enable_rollout_routing_replay", True, "R3 takes the routes from the rollout engine."
        ),
    ]


def _notes(result: Mapping[str, Any], plan: Plan) -> list[str]:
    notes = []
    if plan.method == "vespo":
        notes.append(
            "verl has no vespo loss (0.9.1); in its place stand token-truncated weights and "
            "a rejection band of "
            "the mean log ratio, both fitted to this run. The commented keys at the end are "
            "those of the fork "
            "by VESPO's authors"
        )
    if plan.method.startswith("dppo"):
        notes.append(
            "DPPO is anchored on the rollout's mu; verl's loss reads pi_old, which is mu "
            "only where the trainer takes the "
            "rollout's log-probabilities for it (fully-async recipe: "
            "async_training.use_rollout_log_probs=True)"
        )
    if plan.fp32_head:
        notes.append("verl has no switch for a float32 output head; patch the model or the engine for it")
    if plan.routing_replay:
        notes.append(
            "routing replay needs the Megatron or VeOmni trainer and vLLM 0.22 or later; "
            "FSDP has none in verl"
        )
    notes.append("PPO's clip_ratio answers to staleness; this run measured mismatch at equal weights")
    return notes


def _fork(plan: Plan) -> list[str]:
    prefix = f"+{_ACTOR}.policy_loss.vespo"
    names = ("k_pos", "lambda_pos", "k_neg", "lambda_neg")
    return [
        *comment(
            "VESPO itself, in the fork FloyedShen/VESPO. rollout_is must be token there: "
            "the fork sums the weights over "
            "tokens, so that a sequence weight would count T times. With pi_old recomputed, "
            "W holds the mismatch only "
            "through these weights."
        ),
        f"#   {_ACTOR}.policy_loss.loss_mode=vespo",
        *(f"#   {prefix}.{name}={float(hyperparameter(plan, name)):g}" for name in names),
    ]
