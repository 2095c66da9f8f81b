"""Are the numbers log-probabilities at all? MP102, MP103, MP108."""

from __future__ import annotations

import numpy as np

from mismatch_probe.stats.layout import BoolArray, FloatArray
from mismatch_probe.stats.validity.check import Check, not_run

SENTINEL = -500.0
"""No sampled token has a probability below e^-500: -9999, -1e9 and the like stand for a missing number."""
ABOVE_ZERO = 1e-4


def usable_tokens(train_logprobs: FloatArray, rollout_logprobs: FloatArray) -> BoolArray:
    """Tokens that are finite and above the sentinels on both sides, bool [tokens]."""
    usable: BoolArray = _real(train_logprobs) & _real(rollout_logprobs)
    return usable


def _real(logprobs: FloatArray) -> BoolArray:
    real: BoolArray = np.isfinite(logprobs) & (logprobs > SENTINEL)
    return real


def check_finite(train_logprobs: FloatArray, rollout_logprobs: FloatArray) -> Check:
    """MP102: no NaN, no infinity, no sentinel such as -9999 (anything at or below -500) on either side."""
    bad_train, bad_rollout = (int(np.count_nonzero(~_real(a))) for a in (train_logprobs, rollout_logprobs))
    share = float(np.mean(~usable_tokens(train_logprobs, rollout_logprobs)))
    return Check(
        "MP102",
        "finite log-probabilities",
        "fail" if bad_train or bad_rollout else "pass",
        share,
        0.0,
        f"{bad_train} training and {bad_rollout} rollout values of {train_logprobs.size} are NaN, infinite or"
        f" at or below {SENTINEL:g}",
    )


def check_not_positive(train_logprobs: FloatArray, rollout_logprobs: FloatArray) -> Check:
    """MP103: no log-probability above 0 by more than rounding (1e-4)."""
    sides = [side[np.isfinite(side)] for side in (train_logprobs, rollout_logprobs)]
    if not any(side.size for side in sides):
        return not_run("MP103", "log-probabilities not above 0", "no finite values")
    largest = max(float(side.max()) for side in sides if side.size)
    above = [int(np.count_nonzero(side > ABOVE_ZERO)) for side in sides]
    return Check(
        "MP103",
        "log-probabilities not above 0",
        "fail" if any(above) else "pass",
        largest,
        ABOVE_ZERO,
        f"{above[0]} training and {above[1]} rollout values above 0; the largest is {largest:.3g}",
    )


def check_sides_differ(train_logprobs: FloatArray, rollout_logprobs: FloatArray) -> Check:
    """MP108: neither side is one constant, and how much of the two sides is the same bit for bit.

    A constant side (all zeros, say) was never measured and fails. Two sides that are the same on every token
    pass, since aligned engines do that, but the detail says so: it is also what a copied column looks like.
    """
    name = "two measured sides"
    if train_logprobs.size < 2:
        return not_run("MP108", name, "fewer than 2 tokens")
    same = float(np.mean(train_logprobs == rollout_logprobs))
    constant = [
        label
        for label, side in (("training", train_logprobs), ("rollout", rollout_logprobs))
        if np.all(side == side[0])
    ]
    if constant and not (len(constant) == 2 and same == 1.0 and float(train_logprobs[0]) < 0.0):
        detail = f"every {' and every '.join(constant)} log-probability is the same number"
        return Check("MP108", name, "fail", same, 1.0, detail)
    detail = (
        "every token is the same bit for bit: aligned engines, or one side copied from the other"
        if same == 1.0
        else f"{same:.2%} of the tokens are the same bit for bit"
    )
    return Check("MP108", name, "pass", same, 1.0, detail)
