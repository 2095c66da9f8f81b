"""AReaL 1.0: use_decoupled_loss, rejection_sampling, M2PO and SAPO."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mismatch_probe.export.annotated import Entry
from mismatch_probe.export.applied.keys import (
    Keys,
    Methods,
    keys_of,
    method_of,
    mismatch_factor,
    without_method,
)

if TYPE_CHECKING:
    from mismatch_probe.weights import WeightMethod

_ACTOR = "actor."


def methods(entries: Iterable[Entry]) -> Methods:
    """The objective, M2PO's mask, and what rejection_sampling does with pi_old / mu.

    Raises:
        ConfigError: A statistic or a combination that no method here has.
    """
    keys = keys_of(entries, _ACTOR)
    made = [_objective(keys)]
    if keys.get("m2_threshold") is not None:
        made.append(mismatch_factor("areal", "m2po", tau=keys["m2_threshold"]))
    if keys.get("use_decoupled_loss") and "rejection_sampling.level" in keys:
        made.append(_rejection(keys, of_responses=made[0].level == "sequence"))
    return tuple(made)


def _objective(keys: Keys) -> WeightMethod:
    low = keys.get("eps_clip", 0.2)
    clip = {"eps_low": low, "eps_high": keys.get("eps_clip_higher", low)}
    if keys.get("use_sapo_loss"):
        tau = {"tau_pos": keys.get("sapo_tau_pos", 1.0), "tau_neg": keys.get("sapo_tau_neg", 1.05)}
        return method_of("areal", "sapo", **tau)
    if keys.get("importance_sampling_level", "token") == "sequence":
        return method_of("areal", "gspo", **clip)
    if keys.get("c_clip") is not None:
        return method_of("areal", "dual_clip", **clip, c=keys["c_clip"])
    return method_of("areal", "ppo_clip", **clip)


def _rejection(keys: Keys, *, of_responses: bool) -> WeightMethod:
    level, action, metric, aggregate, low, high = (
        keys.get(f"rejection_sampling.{name}", default)
        for name, default in (
            ("level", "token"),
            ("action", "mask"),
            ("metric", "ratio"),
            ("agg", "mean"),
            ("lower", None),
            ("upper", 5.0),
        )
    )
    asked = (level, action, metric)
    band = {"low": low or 0.0, "high": high}
    if asked == ("token", "clamp", "ratio"):
        if not of_responses:
            return mismatch_factor("areal", "token_tis", floor=low or 0.0, cap=high)
        if low is None:
            return mismatch_factor("areal", "seq_tis", scope="truncated_arithmetic", cap=high)
    elif asked == ("token", "mask", "ratio") and not of_responses:
        return mismatch_factor("areal", "icepop", **band)
    elif asked == ("sequence", "mask", "ratio") and aggregate == "mean":
        return mismatch_factor("areal", "geo_rs", **band)
    elif asked == ("sequence", "mask", "ratio") and aggregate == "sum":
        # The sum is what is tested; the weight of what stays is the geometric mean all the same.
        return mismatch_factor(None, "seq_mis", weighting="mean", **band)
    elif asked == ("sequence", "mask", "kl_k3") and aggregate == "mean" and not of_responses:
        return mismatch_factor("areal", "k3_rs", bound=high)
    raise without_method("AReaL", f"rejection_sampling of {level}, {action}, {metric}, {aggregate}")
