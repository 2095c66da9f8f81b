"""OpenRLHF 0.11.2: is_correction_* and the clip of PolicyLoss."""

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

_IS = "algo.advantage.is_correction_"


def methods(entries: Iterable[Entry]) -> Methods:
    """The clip or GSPO, and what pi_old / mu does to it.

    Raises:
        ConfigError: A divergence for the gate, or a correction on GSPO.
    """
    keys = keys_of(entries)
    low, high = keys.get("actor.eps_clip_low_high", (0.2, 0.2))
    clip = {"eps_low": low, "eps_high": high}
    level = keys.get(f"{_IS}level", "off")
    if keys.get("actor.policy_loss_type", "ppo") == "gspo":
        if level != "off":
            raise without_method("OpenRLHF", f"gspo and {_IS}level={level}")
        return (method_of("openrlhf", "gspo", **clip),)
    ceiling = keys.get("actor.dual_clip")
    # Its dual clip is the same code with one bound more.
    objective = (
        method_of("openrlhf", "ppo_clip", **clip)
        if ceiling is None
        else method_of("openrlhf", "dual_clip", **clip, c=ceiling)
    )
    return (objective,) if level == "off" else (objective, _factor(keys, level))


def _factor(keys: Keys, level: str) -> WeightMethod:
    mode, gate = keys.get(f"{_IS}mode", "mask"), keys.get(f"{_IS}gating", "ratio")
    threshold = keys.get(f"{_IS}threshold", (0.5, 5.0))
    low, high = threshold if isinstance(threshold, tuple) else (0.0, threshold)
    if gate != "ratio":
        raise without_method("OpenRLHF", f"{_IS}gating={gate}")
    if level == "seq":
        return mismatch_factor("openrlhf", "geo_rs", low=low, high=high)
    if mode == "clip":
        return mismatch_factor("openrlhf", "token_tis", floor=low, cap=high)
    return mismatch_factor("openrlhf", "icepop", low=low, high=high)
