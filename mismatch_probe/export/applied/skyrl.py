"""SkyRL 0.3: policy_loss_type and off_policy_correction."""

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

_ALGORITHM = "trainer.algorithm."


def methods(entries: Iterable[Entry]) -> Methods:
    """The objective, its truncated weights, and the masks of tokens and responses.

    Raises:
        ConfigError: A loss that no method here has, or two thresholds of DPPO.
    """
    keys = keys_of(entries, _ALGORITHM)
    off = {
        name.removeprefix("off_policy_correction."): value
        for name, value in keys.items()
        if name.startswith("off_policy_correction.")
    }
    return (_objective(keys), *_weights(off), *_masks(off))


def _objective(keys: Keys) -> WeightMethod:
    loss = keys.get("policy_loss_type", "regular")
    clip = {"eps_low": keys.get("eps_clip_low", 0.2), "eps_high": keys.get("eps_clip_high", 0.2)}
    if loss == "regular":
        return method_of("skyrl", "ppo_clip", **clip)
    if loss == "dual_clip":
        return method_of("skyrl", "dual_clip", **clip, c=keys.get("clip_ratio_c", 3.0))
    if loss == "gspo":
        return method_of("skyrl", "gspo", **clip)
    if loss == "sapo":
        tau = {"tau_pos": keys.get("sapo.tau_pos", 1.0), "tau_neg": keys.get("sapo.tau_neg", 1.05)}
        return method_of("skyrl", "sapo", **tau)
    if loss == "cispo":
        low, high = keys.get("cispo.cispo_eps_clip_low", 0.0), keys.get("cispo.cispo_eps_clip_high", 5.0)
        return method_of("skyrl", "cispo", eps_low=low, eps_high=high)
    low, high = keys.get("dppo.delta_low", 0.2), keys.get("dppo.delta_high", 0.2)
    if loss == "dppo" and low == high:
        kind = keys.get("dppo.dppo_type", "binary_tv")
        return method_of("skyrl", f"dppo_{kind.removeprefix('binary_')}", delta=low)
    raise without_method("SkyRL", f"policy_loss_type={loss}")


def _weights(off: Keys) -> Methods:
    kind = off.get("tis_ratio_type")
    if kind == "token":
        return (mismatch_factor("skyrl", "token_tis", cap=off.get("token_tis_ratio_clip_high", 2.0)),)
    if kind == "sequence":
        return (mismatch_factor("skyrl", "seq_tis", cap=off.get("sequence_tis_ratio_clip_high", 5.0)),)
    return ()


def _masks(off: Keys) -> Methods:
    found = []
    low, high = off.get("token_mask_is_threshold_low"), off.get("token_mask_is_threshold_high")
    if low is not None and high is not None:
        found.append(mismatch_factor("skyrl", "icepop", low=low, high=high))
    metric = off.get("sequence_mask_metric")
    if metric == "product":
        low, high = off.get("product_mask_low", 0.5), off.get("product_mask_high", 2.0)
        found.append(mismatch_factor("skyrl", "seq_mis", low=low, high=high))
    if metric == "geometric":
        low, high = off.get("geo_mask_low", 0.99), off.get("geo_mask_high", 1.01)
        found.append(mismatch_factor("skyrl", "geo_rs", low=low, high=high))
    return tuple(found)
