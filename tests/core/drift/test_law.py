"""Each part of the law against a truth that is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtr

from mismatch_probe.drift.clustering import Dependence, fit_dependence
from mismatch_probe.drift.log_odds import log_odds, logprobs_of
from mismatch_probe.drift.marginals import fit_marginal
from mismatch_probe.drift.pair_moments import Components
from mismatch_probe.drift.tails import fit_tail
from mismatch_probe.errors import ConfigError
from mismatch_probe.stats.layout import SequenceLayout

NONE = Components(0.0, 0.0, 0.0, 0.0)


def layout_of(prompts: int, samples: int, length: int) -> SequenceLayout:
    offsets = np.arange(prompts * samples + 1) * length
    return SequenceLayout.from_arrays(offsets, np.repeat(np.arange(prompts), samples))


@pytest.mark.parametrize(
    "truth",
    [
        Dependence(NONE, NONE),
        Dependence(Components(0.0, 0.0, 0.4, 0.65), NONE),
        Dependence(Components(0.0, 0.1, 0.0, 0.0), Components(0.15, 0.1, 0.0, 0.0)),
    ],
)
def test_dependence_is_found_again(truth):
    layout = layout_of(150, 4, 60)
    probability = truth.draw(layout, np.random.default_rng(1))
    # Uniform by themselves: the mean square of deviations in 20 bins is that of counts.
    counts, _ = np.histogram(probability, 20, range=(0.0, 1.0))
    assert np.abs(counts / layout.num_tokens - 0.05).max() < 0.006
    found = fit_dependence(probability, layout)
    for side in ("direction", "scale"):
        for part in ("prompt", "sequence", "serial"):
            expected, value = getattr(getattr(truth, side), part), getattr(getattr(found, side), part)
            assert abs(value - expected) < 0.05, (side, part, value)


def test_sequences_start_afresh():
    """The last token of a sequence and the first of the next do not depend on each other, neighbours within do."""
    layout = layout_of(4000, 1, 3)
    dependence = Dependence(Components(0.0, 0.0, 0.9, 0.9), NONE)
    rows = dependence.draw(layout, np.random.default_rng(2)).reshape(-1, 3)
    assert np.corrcoef(rows[:, 0], rows[:, 1])[0, 1] > 0.7
    assert abs(np.corrcoef(rows[:-1, 2], rows[1:, 0])[0, 1]) < 0.05


def test_a_marginal_keeps_mean_square_and_quantiles():
    generator = np.random.default_rng(3)
    rollout = logprobs_of(generator.normal(1.0, 2.0, 6000))
    train = logprobs_of(log_odds(rollout) + 0.1 * generator.standard_t(5, 6000))
    marginal, log_ratio = fit_marginal(train, rollout), train - rollout
    draws = [
        logprobs_of(log_odds(rollout) + marginal.displacement(rollout, generator.random(6000))) - rollout
        for _ in range(60)
    ]
    noise = log_ratio.std() / np.sqrt(6000 * 60)
    assert abs(np.mean(draws) - log_ratio.mean()) < 4 * noise
    assert abs(np.mean(np.square(draws)) / np.mean(log_ratio**2) - 1.0) < 0.05
    for level in (0.01, 0.1, 0.9, 0.99):
        assert abs(np.quantile(draws, level) / np.quantile(log_ratio, level) - 1.0) < 0.05, level


def test_probabilities_of_displacements_are_uniform_even_with_ties():
    generator = np.random.default_rng(4)
    rollout = logprobs_of(generator.normal(0.0, 1.0, 4000))
    displacement = np.where(generator.random(4000) < 0.4, 0.0, generator.normal(0.0, 0.1, 4000))
    train = np.where(displacement == 0.0, rollout, logprobs_of(log_odds(rollout) + displacement))
    marginal = fit_marginal(train, rollout)
    drawn = marginal.displacement(rollout, generator.random(4000))
    assert abs(np.mean(drawn == 0.0) - np.mean(train == rollout)) < 0.03
    probability = marginal.probability(rollout, log_odds(train) - log_odds(rollout), generator)
    counts, _ = np.histogram(probability, 10, range=(0.0, 1.0))
    assert np.abs(counts / 4000 - 0.1).max() < 0.02


def test_exact_agreement_stays_exact():
    rollout = logprobs_of(np.random.default_rng(5).normal(0.0, 1.0, 500))
    marginal = fit_marginal(rollout.copy(), rollout)
    assert not marginal.displacement(rollout, np.random.default_rng(6).random(500)).any()


def test_a_tail_is_fitted_where_it_fits_and_refused_where_not():
    generator = np.random.default_rng(7)
    pareto = np.sort(generator.pareto(5.0, 20000))
    tail = fit_tail(pareto, upper=True)
    assert tail is not None
    assert abs(tail.shape - 0.2) < 0.15
    far = tail.edge + tail.excess(np.array([1e-3 / tail.mass]))[0]
    assert abs(far / np.quantile(pareto, 0.999) - 1.0) < 0.15
    # Two clusters of values are no Pareto tail; neither is one without a variance.
    lumps = np.sort(np.concatenate([generator.normal(0, 1, 19800), generator.normal(30, 0.1, 200)]))
    assert fit_tail(lumps, upper=True) is None
    assert fit_tail(np.sort(generator.pareto(0.8, 20000)), upper=True) is None
    assert fit_tail(np.sort(ndtr(generator.normal(size=100))), upper=True) is None


def test_dependence_that_sums_too_high_is_refused():
    with pytest.raises(ConfigError):
        Dependence(Components(0.5, 0.4, 0.3, 0.5), NONE)
    with pytest.raises(ConfigError):
        Components(0.1, -0.1, 0.0, 0.5)
