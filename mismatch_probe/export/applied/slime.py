"""slime (624b824) and miles (31f1ca9): launch arguments, and the mis.yaml of their mismatch helper."""

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


def methods(entries: Iterable[Entry]) -> Methods:
    """Of the arguments: the objective, the weights of pi_old / mu, and OPSM."""
    keys = keys_of(entries)
    objective = _objective(keys)
    made = [objective]
    if keys.get("use-tis"):
        low, high = keys.get("tis-clip-low", 0.0), keys.get("tis-clip", 2.0)
        if "custom-tis-function-path" in keys:
            made.append(mismatch_factor("slime", "icepop", low=low, high=high))
        elif objective.level == "sequence":
            made.append(mismatch_factor(None, "seq_tis", scope="truncated_arithmetic", cap=high))
        else:
            made.append(mismatch_factor("slime", "token_tis", floor=low, cap=high))
    if keys.get("use-opsm"):
        made.append(mismatch_factor("slime", "opsm", delta=keys.get("opsm-delta", 1e-4)))
    return tuple(made)


def helper_methods(entries: Iterable[Entry]) -> Methods:
    """Of mis.yaml: PPO's clip of the arguments, left at its defaults, and what the helper does to it.

    Raises:
        ConfigError: A level or a mode that no method here has.
    """
    keys = keys_of(entries)
    made = [method_of("slime", "ppo_clip"), _helper_weights(keys)]
    if keys.get("use_rs"):
        if keys.get("rs_level") != "geometric":
            raise without_method("the mismatch helper", f"rs_level={keys.get('rs_level')}")
        band = {"low": keys.get("rs_lower_bound", 0.5), "high": keys.get("rs_upper_bound", 2.0)}
        made.append(mismatch_factor(None, "geo_rs", **band))
    return tuple(made)


def _objective(keys: Keys) -> WeightMethod:
    clip = {"eps_low": keys.get("eps-clip", 0.2), "eps_high": keys.get("eps-clip-high", 0.2)}
    estimator = keys.get("advantage-estimator", "grpo")
    if estimator in ("gspo", "cispo"):
        return method_of("slime", estimator, **clip)
    if keys.get("eps-clip-c") is not None:
        return method_of("slime", "dual_clip", **clip, c=keys["eps-clip-c"])
    return method_of("slime", "ppo_clip", **clip)


def _helper_weights(keys: Keys) -> WeightMethod:
    asked = (keys.get("tis_level", "token"), keys.get("tis_mode", "truncate"))
    low, high = keys.get("tis_lower_bound", 0.5), keys.get("tis_upper_bound", 2.0)
    if asked == ("token", "truncate"):
        return mismatch_factor("slime", "token_tis", cap=high)
    if asked == ("token", "mask"):
        return mismatch_factor("slime", "icepop", low=low, high=high)
    if asked == ("sequence", "truncate"):
        return mismatch_factor(None, "seq_tis", cap=high)
    if asked == ("sequence", "mask"):
        return mismatch_factor(None, "seq_mis", low=low, high=high)
    raise without_method("the mismatch helper", f"tis_level, tis_mode = {', '.join(asked)}")
