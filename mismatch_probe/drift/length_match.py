"""Brings a law's variance of log W to the measured one.

Pairs of tokens tell a correlation of directions only where it is larger than its error. One that is smaller, times the
thousands of pairs of a long response, still moves the variance of log W. So what is left between the law's variance and
the measured one is laid into the correlation of neighbours: positive where the run's log-weights spread farther than
its tokens say, alternating in sign where they spread less.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mismatch_probe.drift.clustering import MAX_DIRECTION, Dependence
from mismatch_probe.drift.injection import DriftLaw, inject_tokens
from mismatch_probe.drift.pair_moments import Components
from mismatch_probe.stats.layout import FloatArray, SequenceLayout

DRAWS = 40
DECAY = 0.6
MAX_CHANGE = 0.4
_FIRST = 0.08
_SEEDS = range(2_000_000, 2_000_000 + DRAWS)


def match_length_law(
    law: DriftLaw, log_ratio: FloatArray, rollout: FloatArray, layout: SequenceLayout
) -> DriftLaw:
    """Changes the serial part of the direction until the variance of log W per token is the measured one.

    Args:
        law: As fitted.
        log_ratio: float64 [tokens] as measured, nats.
        rollout: float64 [tokens] log mu, nats.
        layout: Sequences and prompts.

    Returns:
        The law; unchanged with fewer than two sequences, or where nothing varies.
    """
    target = variance_of(log_ratio, layout)
    if not (np.count_nonzero(layout.lengths) > 1 and target > 0.0):
        return law

    def excess(change: float) -> float:
        changed = _changed(law, change)
        draws = [inject_tokens(changed, rollout, layout, seed=seed).log_ratio for seed in _SEEDS]
        return float(np.mean([variance_of(draw, layout) for draw in draws])) / target - 1.0

    before, found = 0.0, excess(0.0)
    change = -_FIRST if found > 0.0 else _FIRST
    for _ in range(2):
        now = excess(change)
        if abs(now - found) < 1e-6:
            break
        step = now * (change - before) / (now - found)
        before, found, change = change, now, float(np.clip(change - step, -MAX_CHANGE, MAX_CHANGE))
    return _changed(law, change)


def variance_of(log_ratio: FloatArray, layout: SequenceLayout) -> float:
    """Variance of log W about -kappa T over the tokens, nats^2 per token, as `LengthLaw.variance_per_token`."""
    filled = layout.lengths > 0
    weights, lengths = layout.sequence_sums(log_ratio)[filled], layout.lengths[filled]
    residual = weights - weights.sum() / lengths.sum() * lengths
    n = weights.size
    return float(residual @ residual) / float(lengths.sum()) * n / max(n - 1, 1)


def _changed(law: DriftLaw, change: float) -> DriftLaw:
    """The law with neighbours that spread log W more (above 0) or less."""
    held = law.dependence.direction
    if held.serial:
        serial, decay = max(held.serial + (change if held.decay > 0 else -change), 0.0), held.decay
    else:
        serial, decay = abs(change), DECAY if change > 0 else -DECAY
    serial = min(serial, MAX_DIRECTION - held.prompt - held.sequence)
    direction = Components(held.prompt, held.sequence, max(serial, 0.0), decay)
    return replace(law, dependence=Dependence(direction, law.dependence.scale))
