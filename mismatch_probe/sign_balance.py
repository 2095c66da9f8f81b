"""Whether a run carries the claim that a correction weighs the signs of the advantage differently."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def shifted_for_sure(method: Mapping[str, Any]) -> bool:
    """Whether Z- / Z+ is away from 1 by more than chance.

    By the interval of the ratio; where a sign is left so little that the ratio has no interval, by the shares of
    tokens kept, whose intervals hold where nothing is kept at all.

    Args:
        method: A method's part of `weights` in result.json.
    """
    low, high = _ends(method.get("mass_ratio"))
    if low is not None and high is not None:
        return not low <= 1.0 <= high
    signs = method.get("by_sign")
    if not isinstance(signs, Mapping):
        return False
    kept = [_ends((signs.get(word) or {}).get("kept_fraction")) for word in ("positive", "negative")]
    (low, high), (other_low, other_high) = kept
    if low is None or high is None or other_low is None or other_high is None:
        return False
    return high < other_low or other_high < low


def _ends(estimate: Any) -> tuple[float | None, float | None]:
    if not isinstance(estimate, Mapping):
        return None, None
    return estimate.get("ci_low"), estimate.get("ci_high")
