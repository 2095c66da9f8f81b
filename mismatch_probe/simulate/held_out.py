"""A tuned number judged on prompts that did not tune it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mismatch_probe.stats.estimate import Estimate

IntArray = npt.NDArray[np.int64]

# Two prompts a side; intervals need more.
MIN_SPLIT = 4


@dataclass(frozen=True, slots=True)
class Check:
    """A quantity where it was fitted and where it was not.

    Both intervals are at the hyperparameters of the fit, each over its own prompts. What the fit owes to
    chance is the error of `fitted`: hyperparameters that bring a sample to its target miss it in the
    population by just that. So the gap, and whether the target is met, take both errors into account.

    Attributes:
        hyperparameters: What the half that was fitted gave.
        target: What was asked for: the budget, the share to keep, the effective size.
        fitted: On the half of the prompts that a second fit used.
        held_out: The same hyperparameters on the other half.
        gap: held_out - fitted; its interval combines the distances of both to their ends (MOVER; Zou and
            Donner, Statistics in Medicine 27, 2008).
        meets: Whether held-out prompts agree with the target within that interval: not above it for a budget,
            not away from it otherwise. None without an interval.
    """

    hyperparameters: dict[str, float]
    target: float
    fitted: Estimate
    held_out: Estimate
    gap: Estimate
    meets: bool | None


def check(
    hyperparameters: dict[str, float],
    target: float,
    fitted: Estimate,
    held_out: Estimate,
    *,
    at_most: bool,
) -> Check:
    """Compares both halves.

    Args:
        hyperparameters: What the first half gave.
        target: What was asked for.
        fitted: The quantity on the half that was fitted.
        held_out: The quantity on the other half.
        at_most: Whether the target is a bound from above.
    """
    gap = _difference(held_out, fitted)
    meets = None
    if gap.ci_low is not None and gap.ci_high is not None and fitted.value is not None:
        # A fit in whole units may lie beyond its target; agreeing with either is agreeing.
        beyond = target - fitted.value
        meets = gap.ci_low <= max(beyond, 0.0) and (at_most or gap.ci_high >= min(beyond, 0.0))
    return Check(hyperparameters, target, fitted, held_out, gap, meets)


def halves(prompts: int, seed: int) -> tuple[IntArray, IntArray] | None:
    """Two random halves of the prompts, or None where there are fewer than four."""
    if prompts < MIN_SPLIT:
        return None
    order = np.random.default_rng(seed).permutation(prompts)
    return order[: prompts // 2], order[prompts // 2 :]


def _difference(first: Estimate, second: Estimate) -> Estimate:
    """Of two independent estimates."""
    n = first.n + second.n
    if first.value is None or second.value is None:
        return Estimate(None, None, None, n, first.reason or second.reason)
    value = first.value - second.value
    if first.ci_low is None or first.ci_high is None or second.ci_low is None or second.ci_high is None:
        return Estimate(value, None, None, n, first.reason or second.reason)
    below = math.hypot(first.value - first.ci_low, second.ci_high - second.value)
    above = math.hypot(first.ci_high - first.value, second.value - second.ci_low)
    return Estimate(value, value - below, value + above, n)
