"""TRL 1.16: loss_type, the level of its ratio, and vllm_importance_sampling_*."""

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

_IS = "vllm_importance_sampling_"
_CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")


def methods(entries: Iterable[Entry]) -> Methods:
    """The objective, off-policy masking, and the weights of pi_old / mu.

    Raises:
        ConfigError: A combination that no method here has.
    """
    keys = keys_of(entries)
    made: list[WeightMethod] = [_objective(keys)]
    threshold = keys.get("off_policy_mask_threshold")
    if threshold is not None:
        made.append(mismatch_factor("trl", "opsm", delta=threshold))
    if keys.get("loss_type") != "vespo" and keys.get(f"{_IS}correction", True):
        made.append(_weights(keys, of_responses=made[0].level == "sequence"))
    return tuple(made)


def _objective(keys: Keys) -> WeightMethod:
    loss, level = keys.get("loss_type", "dapo"), keys.get("importance_sampling_level", "token")
    low = keys.get("epsilon", 0.2)
    high = keys.get("epsilon_high", low)
    if loss == "vespo":
        return _vespo(keys)
    if loss in ("cispo", "sapo") and level == "token":
        if loss == "cispo":
            return method_of("trl", "cispo", cap=high)
        tau = {
            "tau_pos": keys.get("sapo_temperature_pos", 1.0),
            "tau_neg": keys.get("sapo_temperature_neg", 1.05),
        }
        return method_of("trl", "sapo", **tau)
    clip = {"eps_low": low, "eps_high": high}
    if loss in _CLIPPED and level == "token":
        if keys.get("delta") is not None:
            return method_of("trl", "two_sided", **clip, delta=keys["delta"])
        return method_of("trl", "ppo_clip", **clip)
    if loss in _CLIPPED and keys.get("delta") is None:
        return method_of("trl", "luspo" if loss == "luspo" else "gspo", **clip)
    raise without_method("TRL", f"loss_type={loss} at {level} level")


def _vespo(keys: Keys) -> WeightMethod:
    names = ("k_pos", "lambda_pos", "k_neg", "lambda_neg")
    kernel = {name: keys[f"vespo_{name}"] for name in names if f"vespo_{name}" in keys}
    if not keys.get(f"{_IS}correction", True):
        return method_of("trl", "vespo", **kernel, is_mode="none", reads="train/old")
    bounds = {"is_min": keys.get(f"{_IS}clip_min"), "is_max": keys.get(f"{_IS}clip_max", 3.0)}
    return method_of("trl", "vespo", **kernel, **bounds, is_mode=keys.get(f"{_IS}mode"))


def _weights(keys: Keys, *, of_responses: bool) -> WeightMethod:
    mode = keys.get(f"{_IS}mode", "sequence_mask")
    low, high = keys.get(f"{_IS}clip_min"), keys.get(f"{_IS}clip_max", 3.0)
    if mode == "sequence_mask":
        return mismatch_factor("trl", "seq_mis", low=low or 0.0, high=high)
    if mode == "sequence_truncate" and low is None:
        return mismatch_factor("trl", "seq_tis", cap=high)
    if mode == "token_truncate" and of_responses and low is None:
        return mismatch_factor("trl", "seq_tis", scope="truncated_arithmetic", cap=high)
    if mode == "token_truncate" and not of_responses:
        return mismatch_factor("trl", "token_tis", floor=low or 0.0, cap=high)
    if mode == "token_mask" and not of_responses:
        return mismatch_factor("trl", "icepop", low=low or 0.0, high=high)
    raise without_method("TRL", f"{_IS}mode={mode} on ratios of {'responses' if of_responses else 'tokens'}")
