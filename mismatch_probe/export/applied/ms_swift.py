"""ms-swift 4.6: loss_type, rollout_importance_sampling_* and off_policy_sequence_mask_delta."""

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

_IS = "rollout_importance_sampling_"


def methods(entries: Iterable[Entry]) -> Methods:
    """The objective, the weights of pi_old / mu, and off-policy masking.

    Raises:
        ConfigError: A combination that no method here has.
    """
    keys = keys_of(entries)
    made = [_objective(keys)]
    if keys.get(f"{_IS}mode") is not None:
        made.append(_weights(keys, of_responses=made[0].level == "sequence"))
    if keys.get("off_policy_sequence_mask_delta") is not None:
        made.append(mismatch_factor("ms_swift", "opsm", delta=keys["off_policy_sequence_mask_delta"]))
    return tuple(made)


def _objective(keys: Keys) -> WeightMethod:
    loss, level = keys.get("loss_type", "grpo"), keys.get("importance_sampling_level", "token")
    low = keys.get("epsilon", 0.2)
    clip = {"eps_low": low, "eps_high": keys.get("epsilon_high", low)}
    if loss == "cispo":
        return method_of("ms_swift", "cispo", cap=clip["eps_high"])
    if loss == "sapo":
        tau = {"tau_pos": keys.get("tau_pos", 1.0), "tau_neg": keys.get("tau_neg", 1.05)}
        return method_of("ms_swift", "sapo", **tau)
    if level == "sequence":
        return method_of("ms_swift", "gspo", **clip)
    if keys.get("delta") is not None:
        return method_of("ms_swift", "two_sided", **clip, delta=keys["delta"])
    return method_of("ms_swift", "ppo_clip", **clip)


def _weights(keys: Keys, *, of_responses: bool) -> WeightMethod:
    mode, bound = keys[f"{_IS}mode"], keys.get(f"{_IS}threshold", 2.0)
    if mode == "token_truncate" and of_responses:
        return mismatch_factor("ms_swift", "seq_tis", scope="truncated_arithmetic", cap=bound)
    if mode == "token_truncate":
        return mismatch_factor("ms_swift", "token_tis", cap=bound)
    if mode == "token_mask" and not of_responses:
        return mismatch_factor("ms_swift", "icepop", low=0.0, high=bound)
    if mode == "sequence_mask" and not of_responses:
        return mismatch_factor("ms_swift", "geo_rs", low=0.0, high=bound)
    raise without_method("ms-swift", f"{_IS}mode={mode}")
