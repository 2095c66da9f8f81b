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


def without_wide_interval(estimate: Estimate, widest: float = 1000.0) -> Estimate:
    """A positive estimate without its interval where that spans more than a factor: a few tokens carry it.

    Args:
        estimate: Of a number above 0.
        widest: The largest factor between the ends that still says something.
    """
    low, high = estimate.ci_low, estimate.ci_high
    if low is None or high is None or high <= widest * low:
        return estimate
    reason = "a few tokens carry the mean: more sequences are needed for an interval"
    return Estimate(estimate.value, None, None, estimate.n, reason)
