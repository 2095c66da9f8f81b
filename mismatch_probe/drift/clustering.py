"""How tokens of one prompt, one sequence and one neighbourhood drift together: a Gaussian copula with moving scale.

The latent value of a token is xi = exp(v) epsilon. epsilon is standard normal and says which way the token moves; v is
normal with mean 0 and says how far tokens move here. Both are a sum of a prompt's part, a sequence's part, a part that
fades from token to token, and a token's own. What a token does is F(xi), F being the law of xi, put through the
quantile function of its probability: quantiles stay as measured, whatever the dependence.

A policy ratio has mean 1 given all earlier tokens, so that log-ratios along a response hardly correlate; their sizes do.
That is why the scale has a law of its own: with the correlation of signs alone tails of log W come out too thin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mismatch_probe.drift.pair_moments import Components, fit_parts, squared_covariances
from mismatch_probe.errors import ConfigError
from mismatch_probe.stats.layout import FloatArray, SequenceLayout

MAX_SCALE = 1.5
"""Largest variance of v; beyond it a few sequences would hold all drift."""
_NODES = 41
MAX_DIRECTION = 0.95
_SMALLEST = 0.02


@dataclass(frozen=True, slots=True)
class Dependence:
    """The copula.

    Attributes:
        direction: Of epsilon, correlations; together at most 1.
        scale: Of v, variances; together at most 1.5.
    """

    direction: Components
    scale: Components

    def __post_init__(self) -> None:
        if self.direction.total > 1.0 or self.scale.total > MAX_SCALE + 1e-9:
            raise ConfigError("a drift profile's dependence sums to more than it may")

    def draw(self, layout: SequenceLayout, generator: np.random.Generator) -> FloatArray:
        """Probabilities in (0, 1), each uniform by itself, that depend as measured; float64 [tokens]."""
        value = draw_latent(self.direction, layout, generator)
        value = value * np.exp(draw_components(self.scale, layout, generator))
        grid, cdf = mixture_law(self.scale.total)
        return np.asarray(np.clip(np.interp(value, grid, cdf), 1e-12, 1.0 - 1e-12))


def draw_latent(parts: Components, layout: SequenceLayout, generator: np.random.Generator) -> FloatArray:
    """Standard normal values that are correlated by the parts, which sum to at most 1; float64 [tokens]."""
    own = math.sqrt(max(1.0 - parts.total, 0.0)) * generator.standard_normal(layout.num_tokens)
    return draw_components(parts, layout, generator) + own


def draw_components(parts: Components, layout: SequenceLayout, generator: np.random.Generator) -> FloatArray:
    """The shared parts of a latent value, float64 [tokens], with variance `parts.total`."""
    total = np.zeros(layout.num_tokens)
    if parts.prompt:
        effect = generator.standard_normal(layout.num_clusters) * math.sqrt(parts.prompt)
        total += effect[layout.token_cluster]
    if parts.sequence:
        effect = generator.standard_normal(layout.num_sequences) * math.sqrt(parts.sequence)
        total += effect[layout.token_sequence]
    if parts.serial:
        total += math.sqrt(parts.serial) * _autoregression(parts.decay, layout, generator)
    return total


def _autoregression(decay: float, layout: SequenceLayout, generator: np.random.Generator) -> FloatArray:
    """A stationary first-order autoregression that starts afresh in every sequence, variance 1."""
    from scipy.signal import lfilter

    noise = generator.standard_normal(layout.num_tokens) * math.sqrt(1.0 - decay * decay)
    run = np.asarray(lfilter([1.0], [1.0, -decay], noise), dtype=np.float64)
    # What the filter carried over from the sequence before is replaced by a start of the sequence's own.
    before = np.concatenate([[0.0], run])[layout.offsets[:-1]]
    start = generator.standard_normal(layout.num_sequences)
    fading = decay ** (layout.token_position + 1.0) if decay > 0 else _signed_power(decay, layout)
    return np.asarray(run + (start - before)[layout.token_sequence] * fading)


def _signed_power(decay: float, layout: SequenceLayout) -> FloatArray:
    steps = layout.token_position + 1
    return np.asarray(np.where(steps % 2, -1.0, 1.0) * abs(decay) ** steps)


def mixture_law(variance: float) -> tuple[FloatArray, FloatArray]:
    """Distribution of exp(v) epsilon with v of that variance.

    Returns:
        Rising values, and the probability of lying below each.
    """
    from scipy.special import ndtr

    grid = np.sinh(np.linspace(-7.5, 7.5, 3001)) * 0.1
    if variance == 0.0:
        return grid, np.asarray(ndtr(grid))
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    scales = np.exp(-math.sqrt(variance) * nodes)
    cdf = ndtr(grid[:, None] * scales) @ (weights / weights.sum())
    return grid, np.asarray(cdf)


def fit_dependence(probability: FloatArray, layout: SequenceLayout) -> Dependence:
    """Measures the copula from probabilities that are uniform by themselves.

    Direction: two normal values with correlation r, however scaled, agree in sign with E[sign sign'] = 2/pi asin(r)
    (Sheppard 1899). Scale: cov(log|xi|, log|xi'|) is the covariance of v and, to second order, half the square of that of
    epsilon. Both from all pairs of tokens of a sequence, of
    a prompt, and at fixed distances. A part that its own standard error over prompts does not tell from 0 is 0.

    Args:
        probability: float64 [tokens] in (0, 1).
        layout: Their sequences and prompts.
    """
    signs = np.where(probability < 0.5, -1.0, 1.0)
    direction = fit_parts(
        signs - signs.mean(), layout, lambda found: np.sin(np.pi / 2 * np.clip(found, -1.0, 1.0))
    )
    direction = direction.within(MAX_DIRECTION)
    from_direction = 0.5 * squared_covariances(direction, layout)
    scale = Components(0.0, 0.0, 0.0, 0.0)
    for _ in range(4):
        grid, cdf = mixture_law(scale.total)
        size = np.log(np.maximum(np.abs(np.interp(probability, cdf, grid)), _SMALLEST))
        scale = fit_parts(size - size.mean(), layout, np.asarray, known=from_direction).within(MAX_SCALE)
    return Dependence(direction, scale)
