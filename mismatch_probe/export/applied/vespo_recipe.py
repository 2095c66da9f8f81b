"""The recipe of VESPO's authors (aa1f304): policy_loss.vespo and rollout_correction."""

from __future__ import annotations

from collections.abc import Iterable

from mismatch_probe.export.annotated import Entry
from mismatch_probe.export.applied.keys import Methods, keys_of, method_of

_CORRECTION = "algorithm.rollout_correction."


def methods(entries: Iterable[Entry]) -> Methods:
    """VESPO with truncated weights inside W."""
    listed = list(entries)
    kernel = keys_of(listed, "+actor_rollout_ref.actor.policy_loss.vespo.")
    correction = keys_of(listed, _CORRECTION)
    if correction.get("rollout_is") is None:
        return (method_of("vespo", "vespo", **kernel, is_mode="none"),)
    cap = correction.get("rollout_is_threshold", 2.0)
    truncation = {"reads": "train/rollout", "is_mode": "token_truncate", "is_max": cap}
    return (method_of("vespo", "vespo", **kernel, **truncation),)
