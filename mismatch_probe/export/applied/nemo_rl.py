"""NeMo-RL (7ea279a): loss_fn."""

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

_IS = "truncated_importance_sampling_"


def methods(entries: Iterable[Entry]) -> Methods:
    """The objective and the weights of pi_old / mu.

    Raises:
        ConfigError: A kind of weights that no method here has.
    """
    keys = keys_of(entries, "loss_fn.")
    objective = _objective(keys)
    if not keys.get("use_importance_sampling_correction"):
        return (objective,)
    return (objective, _weights(keys, of_responses=objective.name == "gspo"))


def _objective(keys: Keys) -> WeightMethod:
    clip = {"eps_low": keys.get("ratio_clip_min", 0.2), "eps_high": keys.get("ratio_clip_max", 0.2)}
    if keys.get("sequence_level_importance_ratios"):
        return method_of("nemo_rl", "gspo", **clip)
    if keys.get("use_cispo"):
        return method_of("nemo_rl", "cispo", **clip)
    if keys.get("ratio_clip_c") is not None:
        return method_of("nemo_rl", "dual_clip", **clip, c=keys["ratio_clip_c"])
    return method_of("nemo_rl", "ppo_clip", **clip)


def _weights(keys: Keys, *, of_responses: bool) -> WeightMethod:
    kind, low, high = keys.get(f"{_IS}type"), keys.get(f"{_IS}ratio_min"), keys.get(f"{_IS}ratio")
    if of_responses and kind == "tis" and not low:
        # With ratios of responses the weight is the product of pi_old / mu as well.
        return mismatch_factor(None, "seq_tis", cap=high)
    if kind == "tis" and not of_responses:
        return mismatch_factor("nemo_rl", "token_tis", floor=low or 0.0, cap=high)
    if kind in ("icepop", "seq-mask-tis") and not of_responses:
        band = {"low": low, "high": high} if high is not None else {}
        return mismatch_factor("nemo_rl", "icepop" if kind == "icepop" else "geo_rs", **band)
    raise without_method("NeMo-RL", f"{_IS}type={kind}")
