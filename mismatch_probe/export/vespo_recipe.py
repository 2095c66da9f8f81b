"""The recipe of VESPO's authors, a fork of verl: Hydra overrides. Keys as of its main branch (aa1f304, February 2026)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mismatch_probe.export.annotated import Entry
from mismatch_probe.export.applied.vespo_recipe import methods as applied_methods
from mismatch_probe.export.exporter import ExportedConfig, Plan, register_exporter
from mismatch_probe.export.provenance import cap_entries, parameter_entries, replay_reason, sampling_entries
from mismatch_probe.export.target import Target
from mismatch_probe.export.thresholds import token_cap

TARGET = Target(
    name="vespo",
    title="FloyedShen/VESPO (February 2026, aa1f304)",
    fragment='overrides of recipe.vespo.code.main_ppo, as "${MISMATCH_ARGS[@]}"',
    layout="hydra",
    package=None,
    versions=("aa1f304",),
    history=None,
    loaded=False,
    applied=applied_methods,
)
_ROLLOUT = "actor_rollout_ref.rollout"
_POLICY = "actor_rollout_ref.actor.policy_loss"
_NAMES = ("k_pos", "lambda_pos", "k_neg", "lambda_neg")


@register_exporter("vespo", summary="the recipe of VESPO's authors (Hydra overrides, bash array)")
def export_vespo(result: Mapping[str, Any], plan: Plan) -> ExportedConfig:
    """Writes overrides of the VESPO recipe; see `mismatch_probe.export.exporter.Exporter`."""
    reasons = dict.fromkeys(("token_tis", "geo_rs", "seq_mis"), "use --to verl, which it is a fork of")
    TARGET.refuse_unless(plan, ("vespo",), reasons)
    kept = "Token level: the loss adds up log-weights over tokens, so that a sequence weight would count T times."
    entries = [
        Entry(f"{_POLICY}.loss_mode", "vespo", "The objective."),
        *parameter_entries(plan, {name: f"+{_POLICY}.vespo.{name}" for name in _NAMES}),
        Entry("algorithm.rollout_correction.rollout_is", "token", kept),
        *cap_entries("algorithm.rollout_correction.rollout_is_threshold", token_cap(result)),
        Entry(f"{_ROLLOUT}.calculate_log_probs", True, "Without log mu W holds staleness alone."),
        *(
            Entry(f"{_ROLLOUT}.{one.key}", one.value, one.because)
            for one in sampling_entries(result, "temperature", "top_p", "top_k")
        ),
    ]
    because = replay_reason(result, plan)
    if because is not None:
        key = f"{_ROLLOUT}.enable_rollout_routing_replay"
        entries.append(Entry(key, plan.routing_replay, because))
        mode = "R3" if plan.routing_replay else "disabled"
        why = "The trainer's half; the recipe trains with Megatron."
        entries.append(Entry("actor_rollout_ref.actor.router_replay.mode", mode, why))
    notes = [
        "only weights above the cap are cut, so that drift below 1 adds up over a long response and the rest does not"
    ]
    if plan.fp32_head:
        notes.append("there is no switch for a float32 output head")
    contents = "W is (pi / pi_old) * (pi_old / mu): mismatch and staleness both count."
    return TARGET.write(result, plan, contents, entries, notes)
