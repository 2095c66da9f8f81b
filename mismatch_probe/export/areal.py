"""AReaL: actor.rejection_sampling and gconfig as YAML. Keys as of AReaL 1.0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mismatch_probe.errors import ConfigError
from mismatch_probe.export.annotated import Entry
from mismatch_probe.export.applied.areal import methods as applied_methods
from mismatch_probe.export.exporter import ExportedConfig, Plan, register_exporter
from mismatch_probe.export.provenance import (
    bound_entries,
    cap_entries,
    hyperparameter,
    parameter_entries,
    sampling_entries,
    top_k_of,
    value_of,
)
from mismatch_probe.export.target import ON_TOP, WITHOUT_MISMATCH, Target
from mismatch_probe.export.thresholds import Band, mean_band, sequence_band, token_band, token_cap

TARGET = Target(
    name="areal",
    title="AReaL 1.0.4",
    fragment="to merge into a GRPO config",
    layout="yaml",
    package="areal",
    versions=("1.0",),
    history="behave_imp_weight_cap and behave_imp_weight_mode are gone; AReaL 1.0 refuses them.",
    loaded=True,
    applied=applied_methods,
)
_REJECT = "actor.rejection_sampling"
_UPPER, _LOWER = f"{_REJECT}.upper", f"{_REJECT}.lower"
# Both compute pi / pi_old alone, so rejection_sampling would be ignored.
_WITHOUT = ("ppo_clip", "dapo", "dual_clip", "sapo")
_DECOUPLED = ("token_tis", "icepop", "geo_rs", "seq_mis", "k3_rs", "gspo", "m2po")
_CLIP = {"eps_low": "actor.eps_clip", "eps_high": "actor.eps_clip_higher"}
_PARAMETERS = {
    "dapo": _CLIP,
    "dual_clip": {"c": "actor.c_clip"},
    "gspo": _CLIP,
    "sapo": {"tau_pos": "actor.sapo_tau_pos", "tau_neg": "actor.sapo_tau_neg"},
    "m2po": {"tau": "actor.m2_threshold"},
}
_REASONS = {
    "kpop": "its examples say metric: binary_kl, which its own RejectionSamplingConfig refuses",
    "seq_tis": "a sequence weight is the geometric mean there, not the product",
}


@register_exporter("areal", summary="decoupled loss and rejection_sampling of AReaL (YAML)")
def export_areal(result: Mapping[str, Any], plan: Plan) -> ExportedConfig:
    """Writes AReaL keys; see `mismatch_probe.export.exporter.Exporter`."""
    TARGET.refuse_unless(plan, (*_WITHOUT, *_DECOUPLED), _REASONS)
    entries = [
        *_correction(result, plan),
        *_objective(plan),
        *(
            Entry(f"gconfig.{one.key}", one.value, one.because)
            for one in sampling_entries(result, "temperature", "top_p")
        ),
    ]
    top_k = top_k_of(result)
    if top_k is not None:
        entries.append(Entry("gconfig.top_k", top_k, "provenance.sampling.top_k."))
    contents = WITHOUT_MISMATCH if plan.method in _WITHOUT else ON_TOP
    return TARGET.write(result, plan, contents, entries, _notes(result, plan))


def _correction(result: Mapping[str, Any], plan: Plan) -> list[Entry]:
    if plan.method in _WITHOUT:
        return [
            Entry("actor.use_decoupled_loss", False, "No correction of pi_old / mu was chosen."),
            Entry(
                "actor.recompute_logprob",
                True,
                "pi_old is the trainer's, so that the ratio has no mismatch in it.",
            ),
        ]
    why = "pi_old is recomputed by the trainer; without this rejection_sampling is ignored."
    on = Entry("actor.use_decoupled_loss", True, why)
    if plan.method == "k3_rs":
        measured = f"The method's preset; the measured token K3 is {value_of(result, 'token.k3')} nats."
        return [
            on,
            *_gate(
                "sequence", "mask", "kl_k3", "mean", "Drops responses by their mean K3, here of mu / pi_old."
            ),
            Entry(_UPPER, float(hyperparameter(plan, "bound")), measured),
        ]
    if plan.method == "icepop":
        gate = _gate("token", "mask", "ratio", "mean", "IcePop: the ratio inside the band, nothing outside.")
        return [on, *gate, *_bounds(plan, token_band(result), "tokens outside are dropped")]
    if plan.method == "geo_rs":
        gate = _gate(
            "sequence", "mask", "ratio", "mean", "Drops responses by the geometric mean of pi_old / mu."
        )
        return [on, *gate, *_bounds(plan, mean_band(result), "responses outside are dropped")]
    if plan.method == "seq_mis":
        gate = _gate("sequence", "mask", "ratio", "sum", "Drops responses by the product of pi_old / mu.")
        return [on, *gate, *_bounds(plan, sequence_band(result), "responses outside are dropped")]
    gate = _gate("token", "clamp", "ratio", "mean", "Each token's pi_old / mu, truncated above.")
    return [on, *gate, *cap_entries(_UPPER, token_cap(result))]


def _gate(level: str, action: str, metric: str, aggregate: str, why: str) -> list[Entry]:
    return [
        Entry(f"{_REJECT}.level", level, why),
        Entry(f"{_REJECT}.action", action, "What happens outside the bounds."),
        Entry(f"{_REJECT}.metric", metric, "The statistic that the bounds are for."),
        Entry(f"{_REJECT}.agg", aggregate, "How tokens make a response; in logs for a ratio."),
    ]


def _bounds(plan: Plan, band: Band | None, effect: str) -> list[Entry]:
    if band is not None and band.high <= 1.0:
        raise ConfigError(
            f"{TARGET.title} cannot express {plan.method!r} on this run: the band ends at {band.high:g}, and AReaL wants "
            "an upper bound of a ratio above 1",
            hint="mend the drift that moves the whole band, or export token_tis",
        )
    return bound_entries(_UPPER, _LOWER, band, effect)


def _objective(plan: Plan) -> list[Entry]:
    entries = []
    if plan.method == "gspo":
        why = "GSPO: the geometric mean of pi / pi_old of a response."
        entries.append(Entry("actor.importance_sampling_level", "sequence", why))
    if plan.method == "sapo":
        entries.append(
            Entry("actor.use_sapo_loss", True, "SAPO; AReaL has it without the decoupled loss only.")
        )
    return entries + parameter_entries(plan, _PARAMETERS.get(plan.method, {}))


def _notes(result: Mapping[str, Any], plan: Plan) -> list[str]:
    notes = []
    if plan.method in ("geo_rs", "seq_mis"):
        notes.append(
            "the responses that stay are weighted by the geometric mean of their ratios, whatever agg says"
        )
    if plan.method == "k3_rs":
        notes.append(
            "AReaL's kl_k3 is that of mu / pi_old, verl's that of pi_old / mu; for small drift they agree"
        )
    if plan.routing_replay:
        explained = value_of(result, "routing.replay.explained")
        notes.append(
            f"AReaL's trainer has no routing replay (rollout.return_routed_experts only records, with SGLang): the measured "
            f"share ({explained}) stays in the weights"
        )
    if plan.fp32_head:
        notes.append("AReaL has no switch for a float32 output head")
    notes.append("eps_clip answers to staleness; this run measured mismatch at equal weights")
    return notes
