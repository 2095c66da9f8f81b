"""Measured policy updates of whole responses, to draw from instead of noise.

A response read by four policies: the rollout's mu, the trainer's pi_old at the same weights, and pi_k after k
optimiser steps. Its importance weight is W = (pi_k / pi_old) (pi_old / mu), staleness times mismatch. Both
factors are kept token by token and drawn together, since they are not independent: the rounding in log pi_old
is in both, with opposite signs, and leaves their product; and an update moves some responses more than others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.stats.layout import SequenceLayout, finite_array

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

MAX_SCALE = 2.0
"""A measured update is scaled up by this much at most, which is four times its KL."""


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredUpdates:
    """The update's log-ratios at several checkpoints, over the same tokens as the mismatch.

    Attributes:
        steps: Optimiser steps behind each checkpoint, ascending and distinct, above 0.
        moved: Whether a checkpoint differs from the run's own on any token.
        log_ratio: log pi_k - log pi_old, float64 [checkpoints, tokens], nats; both read as training does.
        movement: The same read in float32, where rounding does not show; None where that was not done.
        mismatch: log pi_old - log mu, float64 [tokens], nats.
        layout: Responses and their prompts.
    """

    steps: tuple[float, ...]
    moved: tuple[bool, ...]
    log_ratio: FloatArray
    movement: FloatArray | None
    mismatch: FloatArray
    layout: SequenceLayout

    @classmethod
    def of(
        cls,
        steps: Sequence[float],
        log_ratio: Sequence[npt.ArrayLike],
        mismatch: npt.ArrayLike,
        offsets: npt.ArrayLike,
        clusters: npt.ArrayLike,
        *,
        movement: Sequence[npt.ArrayLike] | None = None,
    ) -> MeasuredUpdates:
        """Checks the arrays and puts the checkpoints in the order of their steps.

        Args:
            steps: One for each checkpoint.
            log_ratio: One array [tokens] for each checkpoint.
            mismatch: [tokens].
            offsets: [responses + 1].
            clusters: [responses] prompt of each.
            movement: One array [tokens] for each checkpoint, or None.

        Raises:
            ConfigError: No checkpoint, steps that are not distinct positive numbers, or shapes that differ.
            InconclusiveError: No tokens, or a log-ratio that is not finite.
        """
        order = sorted(range(len(steps)), key=lambda i: steps[i])
        sorted_steps = tuple(float(steps[i]) for i in order)
        if not sorted_steps or not all(math.isfinite(k) and k > 0 for k in sorted_steps):
            raise ConfigError(f"staleness needs checkpoints of more than 0 steps, not {list(steps)}")
        if len(set(sorted_steps)) < len(sorted_steps):
            raise ConfigError(f"two checkpoints have the same number of steps: {list(sorted_steps)}")
        between = finite_array(mismatch, "mismatch")

        def rows(arrays: Sequence[npt.ArrayLike], what: str) -> FloatArray:
            if len(arrays) != len(order):
                raise ConfigError(f"{len(arrays)} rows of {what} for {len(order)} checkpoints")
            read = [finite_array(arrays[i], f"{what} after {steps[i]:g} steps") for i in order]
            if any(row.shape != between.shape for row in read):
                raise ConfigError(f"{what} and mismatch must cover the same tokens")
            return np.stack(read)

        read = rows(log_ratio, "update log-ratio")
        exact = None if movement is None else rows(movement, "movement")
        return cls(
            steps=sorted_steps,
            moved=tuple(bool(np.any(row)) for row in (read if exact is None else exact)),
            log_ratio=read,
            movement=exact,
            mismatch=between,
            layout=SequenceLayout.from_arrays(offsets, clusters, num_tokens=between.size),
        )


@dataclass(frozen=True, slots=True, eq=False)
class StaleResponses:
    """Made-up responses of one length: both factors of W, drawn together.

    Attributes:
        update: log pi_k - log pi_old, float64 [responses, length], nats.
        mismatch: log pi_old - log mu, float64 [responses, length], nats.
        tokens: Which measured token each one is, int64 [responses, length].
    """

    update: FloatArray
    mismatch: FloatArray
    tokens: IntArray


def stale_log_ratio(
    updates: MeasuredUpdates,
    steps: npt.ArrayLike,
    growth: float,
    generator: np.random.Generator,
    *,
    length: int,
) -> StaleResponses:
    """Draws responses with a measured update and the mismatch of the same tokens.

    Whole measured responses, drawn in proportion to their length, put end to end and cut; where one response
    is long enough, a random stretch of it. The update is `update_at` of the steps.

    Args:
        updates: What was measured.
        steps: Updates behind each response, [responses]; 0 is the policy that synced.
        growth: Power with which the KL of updates grows with steps.
        generator: Of the draws.
        length: Tokens of every response.

    Raises:
        ConfigError: A length below 1 or a negative number of steps.
        InconclusiveError: More steps than the checkpoints can speak for; see `update_at`.
    """
    if length < 1:
        raise ConfigError(f"responses need at least 1 token, not {length}")
    behind = np.atleast_1d(np.asarray(steps, dtype=np.float64))
    tokens = np.stack([draw_tokens(updates.layout, length, generator) for _ in range(behind.size)])
    update = np.empty(tokens.shape)
    for value in np.unique(behind):
        rows = behind == value
        update[rows] = update_at(updates, float(value), growth, tokens[rows])
    return StaleResponses(update, updates.mismatch[tokens], tokens)


def update_at(
    updates: MeasuredUpdates, steps: float, growth: float, tokens: IntArray | None = None
) -> FloatArray:
    """The update's log-ratios after any number of steps, scaled from the nearest measured checkpoint.

    With k0 steps at that checkpoint (nearest in log k), u its log-ratios and m the movement in them,
    u(k) = u + (f - 1) m - c |m| with f = (k / k0)^(growth / 2): KL is of second order in m, so that it grows as
    k^growth. Rounding, u - m, is not scaled. c = f (f - 1) mean(m^2) / (2 mean|m|) keeps the mean of pi_k / pi_old
    at 1 to second order: f m alone has the mean -f KL, a policy at f^2 KL has -f^2 KL. Squares and no
    exponentials, since a single token of ratio 100 would decide those. A token that the update did not move
    stays where it is. At a measured number of steps the result is u.

    Args:
        updates: What was measured; without `movement` all of u counts as movement.
        steps: k; 0 gives zeros.
        growth: Power with which the KL of updates grows with steps.
        tokens: Indices of tokens, any shape; None takes all.

    Returns:
        nats, float64, in the shape of `tokens`.

    Raises:
        ConfigError: A negative number of steps.
        InconclusiveError: f would be above `MAX_SCALE`, or no checkpoint moved.
    """
    if not (math.isfinite(steps) and steps >= 0):
        raise ConfigError(f"the number of steps must be 0 or more, not {steps}")
    chosen = np.arange(updates.mismatch.size) if tokens is None else tokens
    if steps == 0:
        return np.zeros(chosen.shape)
    known = [index for index, moved in enumerate(updates.moved) if moved]
    if not known:
        raise InconclusiveError("no checkpoint differs from the run's own weights")
    nearest = min(known, key=lambda index: abs(math.log(steps / updates.steps[index])))
    scale = (steps / updates.steps[nearest]) ** (growth / 2.0)
    if scale > MAX_SCALE:
        raise InconclusiveError(
            f"{steps:g} steps lie too far beyond the last checkpoint ({updates.steps[nearest]:g} steps)",
            hint="measure a later checkpoint",
        )
    measured = updates.log_ratio[nearest]
    movement = measured if updates.movement is None else updates.movement[nearest]
    if scale == 1.0:
        return np.asarray(measured[chosen])
    size = np.abs(movement)
    shift = scale * (scale - 1.0) * float(np.square(movement).mean()) / (2.0 * float(size.mean()))
    moved = movement[chosen]
    return np.asarray(measured[chosen] + (scale - 1.0) * moved - shift * np.abs(moved))


def draw_tokens(layout: SequenceLayout, length: int, generator: np.random.Generator) -> IntArray:
    """Tokens of one made-up response, int64 [length]: a stretch of a measured one, or several end to end."""
    pieces: list[IntArray] = []
    missing = length
    while missing:
        # A response is drawn as often as it has tokens: by one of its tokens.
        row = int(np.searchsorted(layout.offsets, generator.integers(layout.num_tokens), side="right")) - 1
        begin, end = int(layout.offsets[row]), int(layout.offsets[row + 1])
        if end - begin > missing:
            begin += int(generator.integers(0, end - begin - missing + 1))
            end = begin + missing
        pieces.append(np.arange(begin, end))
        missing -= end - begin
    return np.concatenate(pieces)
