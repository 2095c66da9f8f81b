"""The result type of a number that is an estimate."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % interval, resampled by prompt.

    Attributes:
        value: The point estimate, or None when it cannot be had.
        ci_low: Lower end of the 95 % interval, or None when there is none (one prompt, or a bound only).
        ci_high: Upper end of the 95 % interval, or None.
        n: How many observations (tokens or sequences) the value rests on.
        reason: Why `value` or the interval is None; None when both are there.
    """

    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    reason: str | None = None
