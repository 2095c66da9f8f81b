"""How often routing flips, and drawing tokens that flip."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mismatch_probe.drift.clustering import MAX_DIRECTION, draw_latent
from mismatch_probe.drift.pair_moments import Components, fit_parts
from mismatch_probe.errors import ConfigError
from mismatch_probe.stats.estimate import Estimate
from mismatch_probe.stats.layout import BoolArray, FloatArray, SequenceLayout


@dataclass(frozen=True, slots=True)
class LayerFlips:
    """One MoE layer.

    Attributes:
        layer: Index in the model.
        rate: Share of fed tokens whose set of experts differs.
    """

    layer: int
    rate: Estimate


@dataclass(frozen=True, slots=True)
class FlipRates:
    """Routing flips.

    Attributes:
        layers: By layer, over all fed tokens.
        mean_flipped_layers: Over all fed tokens.
        max_logprobs: Upper ends of the cells of rollout log-probability, nats, rising; the last takes all above it.
        rates: Share of response tokens of each cell that a flip in any layer predicted.
        dependence: Correlation of the latent normal values behind flips of two tokens.
    """

    layers: tuple[LayerFlips, ...]
    mean_flipped_layers: Estimate
    max_logprobs: tuple[float, ...]
    rates: tuple[float, ...]
    dependence: Components

    def __post_init__(self) -> None:
        edges = np.array(self.max_logprobs)
        if not edges.size or edges.size != len(self.rates) or np.any(np.diff(edges) <= 0):
            raise ConfigError(
                "a drift profile's flip rates need cells of rising max_logprob, one rate for each"
            )
        if min(self.rates) < 0.0 or max(self.rates) > 1.0 or self.dependence.total > 1.0:
            raise ConfigError("a drift profile's flip rates and their dependence must lie in [0, 1]")

    def rate_at(self, rollout_logprobs: FloatArray) -> FloatArray:
        """Probability of a flip for each token, float64 [tokens]."""
        edges = np.array(self.max_logprobs[:-1])
        return np.array(self.rates)[np.searchsorted(edges, rollout_logprobs, side="left")]

    def draw(
        self, rollout_logprobs: FloatArray, layout: SequenceLayout, generator: np.random.Generator
    ) -> BoolArray:
        """Which tokens flip, bool [tokens]."""
        from scipy.special import ndtri

        latent = draw_latent(self.dependence, layout, generator)
        return np.asarray(latent < ndtri(self.rate_at(rollout_logprobs)))


def fit_flips(
    flipped: BoolArray,
    rollout_logprobs: FloatArray,
    max_logprobs: tuple[float, ...],
    layout: SequenceLayout,
    *,
    layers: tuple[LayerFlips, ...],
    mean_flipped_layers: Estimate,
) -> FlipRates:
    """Measures rates by probability and how flips cluster.

    The covariance of two flips about their rates is, to first order in the correlation of two latent normal values, the
    product of the normal densities at their thresholds times it.

    Args:
        flipped: bool [tokens].
        rollout_logprobs: float64 [tokens], nats.
        max_logprobs: Cells to use.
        layout: Sequences and prompts.
        layers: Rates by layer, as measured over all fed tokens.
        mean_flipped_layers: Mean number of flipped layers.
    """
    from scipy.special import ndtri

    place = np.searchsorted(np.array(max_logprobs[:-1]), rollout_logprobs, side="left")
    events = np.bincount(place, weights=flipped, minlength=len(max_logprobs))
    counts = np.maximum(np.bincount(place, minlength=len(max_logprobs)), 1)
    rates = events / counts
    bounded = np.clip(rates, 0.5 / counts, 1.0 - 0.5 / counts)
    density = np.exp(-0.5 * ndtri(bounded) ** 2) / np.sqrt(2.0 * np.pi)
    dependence = fit_parts((flipped - rates[place]) / density[place], layout, np.asarray)
    return FlipRates(
        layers, mean_flipped_layers, max_logprobs, tuple(rates.tolist()), dependence.within(MAX_DIRECTION)
    )
