"""verl 0.9: policy_loss, rollout_correction and the clip ratios."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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

_CORRECTION = "algorithm.rollout_correction."
_ACTOR = "actor_rollout_ref.actor."
_WITHOUT_WEIGHT = {"weighting": "none", "cap": None}


def methods(entries: Iterable[Entry]) -> Methods:
    """The objective, the weights of pi_old / mu on it, and what rejection drops.

    In bypass mode mu is taken for pi_old, policy_loss.loss_mode is not read, and PPO's clip has no weights on it.

    Raises:
        ConfigError: A statistic, a loss or a combination that no method here has.
    """
    listed = list(entries)
    actor, correction = keys_of(listed, _ACTOR), keys_of(listed, _CORRECTION)
    bypass = bool(correction.get("bypass_mode"))
    if not bypass:
        objective = _objective(actor)
    elif correction.get("loss_type", "ppo_clip") == "reinforce":
        objective = method_of("verl", "reinforce")
    else:
        objective = _clip(actor, reads="train/rollout")
    reads = {"mismatch": "train/rollout" if bypass else "old/rollout"}
    weights = () if bypass and objective.name == "dual_clip" else _weights(correction, objective.name, reads)
    return (objective, *weights, *_rejection(correction, reads))


def _clip(actor: Keys, **reads: str) -> WeightMethod:
    low, high = actor.get("clip_ratio_low", 0.2), actor.get("clip_ratio_high", 0.2)
    return method_of(
        "verl", "dual_clip", eps_low=low, eps_high=high, c=actor.get("clip_ratio_c", 3.0), **reads
    )


def _objective(actor: Keys) -> WeightMethod:
    low, high = actor.get("clip_ratio_low", 0.2), actor.get("clip_ratio_high", 0.2)
    mode = actor.get("policy_loss.loss_mode", "vanilla")
    clip = {"eps_low": low, "eps_high": high}
    if mode == "vanilla":
        return _clip(actor)
    if mode in ("dppo_tv", "dppo_kl") and low == high:
        return method_of("verl", mode, delta=low, cap=actor.get("clip_ratio_c", 3.0))
    if mode == "sapo":
        tau = {"tau_pos": actor.get("tau_pos", 1.0), "tau_neg": actor.get("tau_neg", 1.05)}
        return method_of("verl", "sapo", **tau)
    if mode in ("cispo", "gspo", "geo_mean"):
        return method_of("verl", "gmpo" if mode == "geo_mean" else mode, **clip)
    if mode == "gpg":
        return method_of("verl", "reinforce")
    raise without_method("verl", f"policy_loss.loss_mode={mode}")


def _weights(correction: Keys, objective: str, reads: Mapping[str, str]) -> Methods:
    # The default of rollout_is is "sequence", but verl's configuration has null in its place.
    level = correction.get("rollout_is")
    if level is None:
        return ()
    low, high = _bounds(correction.get("rollout_is_threshold", 2.0))
    normalise = "mean" if correction.get("rollout_is_batch_normalize") else "none"
    shared = {**reads, "normalise": normalise}
    if objective == "gmpo":
        if level == "token" and low is None and normalise == "none":
            # The loss is one number a response, so verl takes the geometric mean of its weights.
            return (mismatch_factor("verl", "seq_tis", scope="truncated_geometric", cap=high),)
        raise without_method("verl", f"geo_mean and rollout_is={level}")
    if level == "token":
        if low is None:
            return (mismatch_factor("verl", "token_tis", cap=high, **shared),)
        return (mismatch_factor("verl", "icepop", low=low, high=high, **shared),)
    if low is None:
        return (mismatch_factor("verl", "seq_tis", cap=high, **shared),)
    if normalise == "mean":
        raise without_method("verl", "rollout_is_batch_normalize with two bounds of a response")
    return (mismatch_factor("verl", "seq_mis", variant="ratio", low=low, high=high, cap=None, **reads),)


def _rejection(correction: Keys, reads: Mapping[str, str]) -> Methods:
    options = correction.get("rollout_rs")
    if options is None:
        return ()
    thresholds = str(correction.get("rollout_rs_threshold")).split(",")
    names = str(options).split(",")
    return tuple(_drops(name, threshold, reads) for name, threshold in zip(names, thresholds, strict=True))


def _drops(option: str, threshold: str, reads: Mapping[str, str]) -> WeightMethod:
    low, high = _bounds(threshold)
    if option == "seq_mean_k3":
        return mismatch_factor("verl", "k3_rs", bound=high, **reads)
    band = {"low": 1.0 / high if low is None else low, "high": high}
    if option == "token_k1":
        return mismatch_factor("verl", "icepop", variant="verl_token_k1", **band, **reads)
    if option == "seq_sum_k1":
        return mismatch_factor("verl", "seq_mis", **band, **_WITHOUT_WEIGHT, **reads)
    if option == "seq_mean_k1":
        return mismatch_factor("verl", "geo_rs", **band, **reads)
    raise without_method("verl", f"rollout_rs={option}")


def _bounds(threshold: float | str) -> tuple[float | None, float]:
    """One bound, 2.0, or two, "0.5_2.0", as verl spells them."""
    parts = [float(part) for part in str(threshold).split("_")]
    return (None, parts[0]) if len(parts) == 1 else (parts[0], parts[1])
