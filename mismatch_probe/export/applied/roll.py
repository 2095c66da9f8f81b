"""ROLL (8eb27cc): train_infer_correction under its PPO loss."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mismatch_probe.export.annotated import Entry
from mismatch_probe.export.applied.keys import (
    Methods,
    keys_of,
    method_of,
    mismatch_factor,
    without_method,
)

_WEIGHTS = {
    "token": ("token_tis", {}),
    "sequence": ("seq_tis", {"scope": "sequence"}),
    "geometric": ("seq_tis", {"scope": "mean"}),
}
_FILTERS = {"token": "icepop", "sequence": "seq_mis", "geometric": "geo_rs"}


def methods(entries: Iterable[Entry]) -> Methods:
    """The clip, the weights of pi_old / mu, and each filter.

    Raises:
        ConfigError: A filter by differences, or by segments.
    """
    keys = keys_of(entries, "train_infer_correction.")
    made = [method_of("roll", "ppo_clip")]
    if keys.get("is_weight.enabled"):
        kind = keys.get("is_weight.weight_type", "token")
        if kind not in _WEIGHTS:
            raise without_method("ROLL", f"weight_type={kind}")
        name, changes = _WEIGHTS[kind]
        made.append(mismatch_factor("roll", name, **changes, cap=keys.get("is_weight.upper_bound", 1.2)))
    for rule in keys.get("filters", ()):
        if rule.get("enabled", True):
            made.append(_filter(rule))
    return tuple(made)


def _filter(rule: dict[str, Any]) -> Any:
    kind = rule.get("agg_type", "token")
    if kind not in _FILTERS or rule.get("diff_enabled") or not rule.get("ratio_enabled", True):
        raise without_method("ROLL", f"a filter by {kind}")
    band = {"low": rule.get("ratio_low", 0.8), "high": rule.get("ratio_high", 1.2)}
    return mismatch_factor("roll", _FILTERS[kind], **band)
