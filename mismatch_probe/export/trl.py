"""TRL: keyword arguments of GRPOConfig as YAML. Keys as of TRL 1.16."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mismatch_probe.export.annotated import Entry
from mismatch_probe.export.applied.trl import methods as applied_methods
from mismatch_probe.export.exporter import ExportedConfig, Plan, register_exporter
from mismatch_probe.export.provenance import (
    bound_entries,
    cap_entries,
    fp32_reason,
    parameter_entries,
    sampling_entries,
    top_k_of,
    value_of,
)
from mismatch_probe.export.target import ON_TOP, WITHOUT_MISMATCH, Target
from mismatch_probe.export.thresholds import (
    mean_band,
    sequence_band,
    sequence_cap,
    token_band,
    token_cap,
)

TARGET = Target(
    name="trl",
    title="TRL 1.16",
    fragment="keyword arguments of trl.GRPOConfig",
    layout="yaml",
    package="trl",
    versions=("1.16",),
    history="Older releases have vllm_importance_sampling_cap in the place of clip_max; TRL 2 takes it away.",
    loaded=True,
    applied=applied_methods,
)
_MODE = "vllm_importance_sampling_mode"
_MAX = "vllm_importance_sampling_clip_max"
_MIN = "vllm_importance_sampling_clip_min"
_LEVEL = "importance_sampling_level"
# How TRL spells the objective that each correction goes with.
_LOSS = {
    "cispo": "cispo",
    "gspo": "grpo",
    "gspo_token": "grpo",
    "luspo": "luspo",
    "sapo": "sapo",
    "vespo": "vespo",
}
_WITHOUT_CORRECTION = ("reinforce", "ppo_clip", "dapo", "two_sided")
_EXPRESSIBLE = (*_LOSS, *_WITHOUT_CORRECTION, "token_tis", "seq_tis", "icepop", "seq_mis", "opsm")


@register_exporter("trl", summary="GRPOConfig keyword arguments of TRL (YAML)")
def export_trl(result: Mapping[str, Any], plan: Plan) -> ExportedConfig:
    """Writes GRPOConfig keyword arguments; see `mismatch_probe.export.exporter.Exporter`."""
    TARGET.refuse_unless(plan, (name for name in _EXPRESSIBLE if name != "reinforce"))
    entries = [
        Entry("use_vllm", True, "The rollout engine of this run is what the correction below is fitted to."),
        *_correction(result, plan),
        *_objective(plan),
        Entry("cast_lm_head_to_fp32", plan.fp32_head, fp32_reason(result, plan)),
        *sampling_entries(result, "temperature", "top_p"),
    ]
    top_k = top_k_of(result)
    if top_k is not None:
        entries.append(Entry("top_k", top_k, "provenance.sampling.top_k."))
    notes = []
    if plan.routing_replay:
        notes.append(
            "TRL has no routing replay: the measured share "
            f"(routing.replay.explained = {value_of(result, 'routing.replay.explained')}) "
            "stays in the weights"
        )
    notes.append(
        "epsilon, beta and batch sizes answer to staleness and the task; this run did not measure them"
    )
    if plan.method != "vespo" and plan.method not in _WITHOUT_CORRECTION:
        notes.append(
            "TRL multiplies the loss by pi_old / mu after clipping pi / pi_old; it has no joint bound on both"
        )
    return TARGET.write(result, plan, _contents(plan), entries, notes)


def _contents(plan: Plan) -> str:
    if plan.method == "vespo":
        return (
            "W is (pi / pi_old) * (pi_old / mu): TRL puts the vLLM ratio inside W, so "
            "mismatch and staleness both count."
        )
    return WITHOUT_MISMATCH if plan.method in _WITHOUT_CORRECTION else ON_TOP


def _correction(result: Mapping[str, Any], plan: Plan) -> list[Entry]:
    on = Entry("vllm_importance_sampling_correction", True, "pi_old / mu is corrected for.")
    if plan.method in _WITHOUT_CORRECTION:
        off = f"No correction of pi_old / mu was chosen: {plan.summary}"
        return [Entry("vllm_importance_sampling_correction", False, off)]
    if plan.method == "vespo":
        why = (
            "VESPO takes token_truncate or token_mask; TRL refuses its own default, "
            "sequence_mask. A masked token"
        )
        why += " would put log 1e-8 into log W and silence its whole sequence, so truncation."
        return [
            on,
            Entry(_MODE, "token_truncate", why),
            *bound_entries(
                _MAX,
                _MIN,
                token_band(result),
                "each token's pi_old / mu before it enters W, alike on both sides",
            ),
        ]
    if plan.method == "icepop":
        why = "IcePop: the ratio inside the band, nothing outside."
        return [
            on,
            Entry(_MODE, "token_mask", why),
            *bound_entries(_MAX, _MIN, token_band(result), "tokens outside are dropped"),
        ]
    if plan.method == "seq_tis":
        why = "W of the whole response, truncated above."
        return [on, Entry(_MODE, "sequence_truncate", why), *cap_entries(_MAX, sequence_cap(result))]
    if plan.method == "seq_mis":
        why = "W of the whole response, dropped outside the band."
        return [
            on,
            Entry(_MODE, "sequence_mask", why),
            *bound_entries(_MAX, _MIN, sequence_band(result), "responses outside are dropped"),
        ]
    why = "Each token's pi_old / mu, truncated above."
    return [
        on,
        Entry(_MODE, "token_truncate", why),
        *cap_entries(_MAX, token_cap(result)),
        *_opsm(result, plan),
    ]


def _opsm(result: Mapping[str, Any], plan: Plan) -> list[Entry]:
    band = mean_band(result)
    if plan.method != "opsm" or band is None:
        return []
    because = f"Above what healthy responses show: {band.because}."
    return [Entry("off_policy_mask_threshold", band.widest_drop(), because)]


def _objective(plan: Plan) -> list[Entry]:
    loss = _LOSS.get(plan.method, "dapo")
    entries = [Entry("loss_type", loss, f"The objective that {plan.method} goes with.")]
    sequence = plan.method in ("gspo", "gspo_token", "luspo")
    level = "sequence" if sequence else "token"
    why = (
        "VESPO sums over the response itself; TRL wants token here."
        if plan.method == "vespo"
        else "Level of pi / pi_old."
    )
    entries.append(Entry(_LEVEL, level, why))
    keys = {
        "vespo": {
            "k_pos": "vespo_k_pos",
            "lambda_pos": "vespo_lambda_pos",
            "k_neg": "vespo_k_neg",
            "lambda_neg": "vespo_lambda_neg",
        },
        "dapo": {"eps_low": "epsilon", "eps_high": "epsilon_high"},
        "sapo": {"tau_pos": "sapo_temperature_pos", "tau_neg": "sapo_temperature_neg"},
        "two_sided": {"eps_low": "epsilon", "eps_high": "epsilon_high", "delta": "delta"},
    }.get(plan.method, {})
    if sequence:
        keys = {"eps_low": "epsilon", "eps_high": "epsilon_high"}
    entries += parameter_entries(plan, keys)
    if plan.method == "cispo":
        why = "CISPO in TRL takes the cap itself, where verl takes its distance from 1."
        entries.append(Entry("epsilon_high", 1.28, f"{why} The paper's 1 + 0.28; not measured here."))
    return entries
