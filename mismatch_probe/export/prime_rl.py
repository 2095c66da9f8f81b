"""prime-rl: trainer.loss, router replay and sampling as TOML. Keys as of August 2026 (559b447)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mismatch_probe.export.annotated import Entry
from mismatch_probe.export.applied.prime_rl import methods as applied_methods
from mismatch_probe.export.exporter import ExportedConfig, Plan, register_exporter
from mismatch_probe.export.provenance import (
    fp32_reason,
    hyperparameter,
    parameter_entries,
    replay_reason,
    sampling_entries,
    sampling_notes,
)
from mismatch_probe.export.target import IN_THE_RATIO, Target

TARGET = Target(
    name="prime-rl",
    title="prime-rl (August 2026, 559b447)",
    fragment="to merge into rl.toml",
    layout="toml",
    package="prime-rl",
    versions=("0.8",),
    history="Older commits have token, sequence and geometric masks and truncated weights, which are gone.",
    loaded=False,
    applied=applied_methods,
)
_LOSS = "trainer.loss"
_REASONS = dict.fromkeys(
    ("vespo", "token_tis", "icepop", "geo_rs", "seq_tis", "seq_mis"),
    "its built-in losses mask by the difference of probabilities; other corrections are a custom loss there",
)


@register_exporter("prime-rl", summary="trainer.loss and router replay of prime-rl (TOML)")
def export_prime_rl(result: Mapping[str, Any], plan: Plan) -> ExportedConfig:
    """Writes prime-rl keys; see `mismatch_probe.export.exporter.Exporter`."""
    TARGET.refuse_unless(plan, ("prime_dppo", "ipo", "dppo_tv"), _REASONS)
    entries = []
    because = replay_reason(result, plan)
    if because is not None:
        why = f"{because} Custom model implementation only; the engine is told by prime-rl itself."
        entries.append(Entry("trainer.enable_router_replay", plan.routing_replay, why))
    entries += _objective(plan)
    head = f"prime-rl's own default. {fp32_reason(result, plan)}"
    entries.append(Entry("inference.enable_fp32_lm_head", True, head))
    entries += [
        Entry(f"orchestrator.train.sampling.{one.key}", one.value, one.because)
        for one in sampling_entries(result, "temperature")
    ]
    return TARGET.write(result, plan, IN_THE_RATIO, entries, _notes(result, plan))


def _objective(plan: Plan) -> list[Entry]:
    if plan.method == "ipo":
        keys = {"threshold": f"{_LOSS}.ipo_threshold", "kl_tau": f"{_LOSS}.kl_tau"}
        return [Entry(f"{_LOSS}.type", "ipo", "Masks either way."), *parameter_entries(plan, keys)]
    kind = Entry(
        f"{_LOSS}.type", "default", "Masks where the probability has moved too far with the advantage."
    )
    if plan.method == "prime_dppo":
        keys = {
            "mask_low": f"{_LOSS}.dppo_mask_low",
            "mask_high": f"{_LOSS}.dppo_mask_high",
            "kl_tau": f"{_LOSS}.kl_tau",
        }
        return [kind, *parameter_entries(plan, keys)]
    delta = float(hyperparameter(plan, "delta"))
    return [
        kind,
        Entry(f"{_LOSS}.dppo_mask_low", delta, "dppo_tv delta, default of the method."),
        Entry(f"{_LOSS}.dppo_mask_high", delta, "The same for A > 0."),
        Entry(f"{_LOSS}.kl_tau", 0.0, "DPPO has no penalty on the log-ratio."),
    ]


def _notes(result: Mapping[str, Any], plan: Plan) -> list[str]:
    notes = [
        "the masks read pi - mu with the current pi, so the measured mismatch uses up a part of their room"
    ]
    notes += sampling_notes(result, "prime-rl", "top_p", "top_k")
    if plan.fp32_head:
        notes.append("enable_fp32_lm_head is the rollout side's head; the trainer's follows its own dtype")
    return notes
