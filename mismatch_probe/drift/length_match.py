"""Brings a law's variance of log W to the measured one.

Pairs of tokens tell a correlation of directions only where it is larger than its error. One that is smaller, times the
thousands of pairs of a long response, still moves the variance of log W. So what the tokens' own variances and the
correlations found leave of it is laid into the correlation of neighbours: positive where the run's log-weights spread
farther than its tokens say, alternating in sign where they spread less.

To first order in a correlation r of two latent values, the covariance of what they become is h h' r with
h = E[l epsilon] (the first term of Mehler's expansion), which needs no drawing.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mismatch_probe.drift.clustering import MAX_DIRECTION, Dependence, mixture_law
from mismatch_probe.drift.injection import DriftLaw
from mismatch_probe.drift.marginals import Marginal
from mismatch_probe.drift.pair_moments import Components
from mismatch_probe.stats.layout import FloatArray, SequenceLayout

DECAY = 0.6
MAX_CHANGE = 0.4
_SCALES = 9
_POINTS = 2000


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
        The law, its serial correlation changed by at most 0.4; unchanged with fewer than two sequences.
    """
    filled = layout.lengths > 0
    count = int(np.count_nonzero(filled))
    if count < 2:
        return law
    centred = log_ratio - log_ratio.mean()
    sums = layout.sequence_sums(centred)
    gain = _gain(law, rollout)
    held = law.dependence.direction
    missing = float(sums @ sums) * count / (count - 1) - float(centred @ centred)
    level = layout.sequence_sums(gain) ** 2 - layout.sequence_sums(gain * gain)
    missing -= (held.prompt + held.sequence) * float(level.sum())
    if held.serial:
        per_unit = _serial_sum(gain, layout, held.decay)
        serial, decay = missing / per_unit if per_unit else held.serial, held.decay
        serial = float(np.clip(serial, max(held.serial - MAX_CHANGE, 0.0), held.serial + MAX_CHANGE))
    else:
        decay = DECAY if missing > 0.0 else -DECAY
        per_unit = _serial_sum(gain, layout, decay)
        serial = float(np.clip(missing / per_unit, 0.0, MAX_CHANGE)) if per_unit else 0.0
    serial = max(min(serial, MAX_DIRECTION - held.prompt - held.sequence), 0.0)
    direction = Components(held.prompt, held.sequence, serial, decay)
    return replace(law, dependence=Dependence(direction, law.dependence.scale))


def _serial_sum(gain: FloatArray, layout: SequenceLayout, decay: float) -> float:
    """Sum over ordered pairs of tokens of a sequence of gain gain' decay^distance."""
    from scipy.signal import lfilter

    run = np.asarray(lfilter([1.0], [1.0, -decay], gain), dtype=np.float64)
    carried = np.concatenate([[0.0], run])[layout.offsets[:-1]]
    run = run - carried[layout.token_sequence] * np.power(decay, layout.token_position + 1)
    return 2.0 * float(gain @ (run - gain))


def _gain(law: DriftLaw, rollout: FloatArray) -> FloatArray:
    """Root mean square over scales of E[log_ratio epsilon] at a scale, for each token, nats.

    A log-ratio is (1 - p) times a small displacement.
    """
    from scipy.special import ndtri

    nodes, weights = np.polynomial.hermite_e.hermegauss(_SCALES)
    variance = law.dependence.scale.total
    epsilon = ndtri((np.arange(_POINTS) + 0.5) / _POINTS)
    grid, cdf = mixture_law(variance)
    probability = np.clip(
        np.interp(np.exp(np.sqrt(variance) * nodes[:, None]) * epsilon, grid, cdf), 1e-12, 1.0
    )

    def of_cells(marginal: Marginal) -> FloatArray:
        by_scale = np.array(
            [[float(np.mean(cell.quantile(row) * epsilon)) for row in probability] for cell in marginal.cells]
        )
        # Neighbours share their scale: the mean of its square counts, not the square of its mean.
        return np.asarray(np.sqrt(by_scale**2 @ (weights / weights.sum())))

    gain = of_cells(law.calm)[law.calm.place(rollout)]
    if law.flips is not None and law.flipped is not None:
        rate = law.flips.rate_at(rollout)
        gain = (1.0 - rate) * gain + rate * of_cells(law.flipped)[law.flipped.place(rollout)]
    return np.asarray(-np.expm1(rollout) * gain)
