"""How far optimiser steps move the policy: a law of growth fitted to checkpoints.

What is estimated is KL(pi_old || pi_k) per token, over the contexts of the run. The tokens were sampled by
mu, not by pi_old. With u = log pi_k - log pi_old, the plain mean of K3 = exp(u) - 1 - u is taken on them as
they are: where pi_old = mu (1 + d) on a token it misses the KL by E_mu[d K3], a share of the order of d. K3
weighted by pi_old / mu has no such bias given the contexts, and more variance; it is reported beside the
plain one, and a gap between the two says that mu is too far from pi_old for the plain one.

The law of growth is fitted to K2 = u^2 / 2, the KL to second order, not to K3. Updates have heavy tails: where
experts or near-ties flip, a token that mu had at probability 0.001 comes out at 0.1, and that one token then
decides the mean of exp(u) of tens of thousands. K2 is what spreads log W, which is what the law is for: a
Gaussian of variance 2 K2 gives log W the standard deviation that was measured (docs/staleness.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import InconclusiveError
from mismatch_probe.simulate.extrapolate import StalenessModel
from mismatch_probe.simulate.stale_updates import MeasuredUpdates
from mismatch_probe.stats.estimate import Estimate
from mismatch_probe.stats.intervals import MIN_CLUSTERS, Statistic, interval_from_table
from mismatch_probe.stats.kl import token_k2, token_k3
from mismatch_probe.stats.layout import SequenceLayout
from mismatch_probe.stats.means import EXP_LIMIT, OVERFLOW, k3_mean, standard_deviation, token_mean

FloatArray = npt.NDArray[np.float64]

OVER_ROUNDING = 3.0
"""Without a float32 reading, a checkpoint is fitted from this many times the K2 of the mismatch on."""


@dataclass(frozen=True, slots=True)
class StalenessPoint:
    """One checkpoint against pi_old, on the tokens that mu sampled.

    Attributes:
        steps: Optimiser steps behind it.
        kl: KL(pi_old || pi_k) per token, nats: mean of K3, plain.
        kl_weighted: The same with every token weighted by pi_old / mu, self-normalised.
        kl_movement: As `kl`, read in float32: without the rounding that training's dtype adds.
        half_square: Mean of K2 = u^2 / 2 per token, nats^2, in float32 where that was read: what is fitted.
        std_log_weight: Standard deviation over responses of log(pi_k / pi_old), nats.
        std_total: Standard deviation over responses of log W = log(pi_k / mu), staleness times mismatch.
        gaussian_std: `std_log_weight` of independent N(-kl, 2 kl) for each token, at the same lengths.
        independent_std: `std_log_weight` of tokens drawn independently from the measured ones.
        mean_abs: Mean |log pi_k - log pi_old| per token, nats.
        fitted: Whether the law of growth rests on it.
        reason: Why not, or None.
    """

    steps: float
    kl: Estimate
    kl_weighted: Estimate
    kl_movement: Estimate | None
    half_square: Estimate
    std_log_weight: Estimate
    std_total: Estimate
    gaussian_std: float | None
    independent_std: float
    mean_abs: Estimate
    fitted: bool
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class StalenessFit:
    """KL(k) = kl_per_step k^growth through the checkpoints, to second order: half the update's variance.

    The intervals resample prompts. They say how well these checkpoints are known, not how another training run
    would have gone.

    Attributes:
        model: The law, for `extrapolate`.
        kl_per_step: Its factor, nats per token, with interval.
        growth: Its power, with interval: 1 where updates wander, 2 where they push the same way.
        misfit: Largest factor between a fitted checkpoint's K2 and the law; 1 with one or two checkpoints.
        points: All checkpoints, by steps.
        notes: What a reader has to know, in sentences.
        updates: The measured log-ratios, for drawing measured updates; None where they are not at hand.
    """

    model: StalenessModel
    kl_per_step: Estimate
    growth: Estimate
    misfit: float
    points: tuple[StalenessPoint, ...]
    notes: tuple[str, ...] = ()
    updates: MeasuredUpdates | None = field(default=None, compare=False, repr=False)


def fit_staleness(updates: MeasuredUpdates, *, notes: Sequence[str] = ()) -> StalenessFit:
    """Fits KL = kl_per_step k^growth, by weighted least squares of log K2 on log k.

    K2 is that of the movement in float32 where it was read, and of `log_ratio` otherwise. Weights are the
    inverse variances of log K2 between prompts; the intervals refit every bootstrap resample. Left out are
    checkpoints that did not move, that one prompt carries, and, without a float32 reading, those whose K2 is
    within `OVER_ROUNDING` times the mismatch's: BF16 rounds log-probabilities anew when weights change by any
    amount, so that a K2 of the mismatch's size appears after the first step and does not grow.
    With one checkpoint, or where the interval of growth holds 0 and 1, growth is taken as 1.

    Args:
        updates: Checkpoints and mismatch.
        notes: Sentences to carry along.

    Raises:
        InconclusiveError: No checkpoint can be fitted, or KL does not grow with steps.
    """
    points = [measure_point(updates, index) for index in range(len(updates.steps))]
    fitted = [i for i, point in enumerate(points) if point.fitted]
    if not fitted:
        reasons = "; ".join(f"{point.steps:g} steps: {point.reason}" for point in points)
        raise InconclusiveError(
            f"no checkpoint says how far an update moves the policy ({reasons})",
            hint="give later checkpoints, more prompts, or a run with the leg train/reference",
        )
    steps = np.array([points[i].steps for i in fitted])
    read = _read(updates)
    sums = updates.layout.token_table(*(token_k2(read[i]) for i in fitted))
    tokens = int(updates.mismatch.size)
    growth, law = _growth(_Law(np.log(steps), _precision(sums)), sums, tokens)
    per_step = interval_from_table(sums, Statistic(law.kl_per_step, "log"), n=tokens)
    if per_step.value is None or growth.value is None:
        raise InconclusiveError(
            "the law of the checkpoints is not a number", hint="check their log-probabilities"
        )
    said = [*notes, *_notes(updates, points)]
    if law.proportional and growth.reason is not None:
        said.append(growth.reason)
    measured = np.exp(law.log_kl(sums.sum(axis=0)))
    model = StalenessModel(
        per_step.value,
        growth.value,
        f"measured on {len(fitted)} checkpoint{'s' if len(fitted) > 1 else ''}, {steps[0]:g} to {steps[-1]:g} steps",
    )
    return StalenessFit(
        model=model,
        kl_per_step=per_step,
        growth=growth,
        misfit=float(np.exp(np.abs(np.log(measured / model.kl(steps))).max())),
        points=tuple(points),
        notes=tuple(said),
        updates=updates,
    )


def measure_point(updates: MeasuredUpdates, index: int) -> StalenessPoint:
    """What checkpoint `index` says by itself; `fitted` false and a reason where it cannot be fitted."""
    layout, update = updates.layout, updates.log_ratio[index]
    kl = k3_mean(update, layout)
    movement = None if updates.movement is None else k3_mean(updates.movement[index], layout)
    kept = np.flatnonzero(layout.lengths > 0)
    lengths = layout.lengths[kept].astype(np.float64)
    filled = SequenceLayout.from_arrays(np.concatenate([[0], np.cumsum(lengths)]), layout.clusters[kept])
    half_square = token_mean(token_k2(_read(updates)[index]), layout, positive=True)
    reason = _unfit(updates, index, half_square)
    return StalenessPoint(
        steps=updates.steps[index],
        kl=kl,
        kl_weighted=_weighted_k3(update, updates.mismatch, layout),
        kl_movement=movement,
        half_square=half_square,
        std_log_weight=standard_deviation(layout.sequence_sums(update)[kept], filled),
        std_total=standard_deviation(layout.sequence_sums(update + updates.mismatch)[kept], filled),
        gaussian_std=None if kl.value is None else _independent_std(lengths, -kl.value, 2.0 * kl.value),
        independent_std=_independent_std(lengths, float(update.mean()), float(update.var())),
        mean_abs=token_mean(np.abs(update), layout, positive=True),
        fitted=reason is None,
        reason=reason,
    )


def _growth(law: _Law, sums: FloatArray, tokens: int) -> tuple[Estimate, _Law]:
    """The power, and the law to use: with growth held at 1 where the checkpoints cannot tell it from 0."""
    proportional = _Law(law.log_steps, law.weight, proportional=True)
    if len(law.log_steps) == 1:
        return Estimate(1.0, None, None, tokens, "one checkpoint: growth is taken as 1"), proportional
    found = interval_from_table(sums, Statistic(law.growth), n=tokens)
    low, high = found.ci_low, found.ci_high
    if low is not None and high is not None and low <= 0.0 and high >= 1.0:
        reason = f"the checkpoints leave growth between {low:.2g} and {high:.2g}: it is taken as 1"
        return Estimate(1.0, None, None, tokens, reason), proportional
    if found.value is None or not 0.0 < found.value <= 4.0:
        shown = "unknown" if found.value is None else f"{found.value:.2g}"
        between = "" if low is None or high is None else f", 95 % interval {low:.2g} to {high:.2g}"
        raise InconclusiveError(
            f"what the checkpoints moved does not grow with their steps: power {shown}{between}",
            hint="check that each checkpoint has the steps since the run's own weights",
        )
    return found, law


def _read(updates: MeasuredUpdates) -> FloatArray:
    """The log-ratios that the law is fitted to: without rounding where that can be had."""
    return updates.log_ratio if updates.movement is None else updates.movement


def _unfit(updates: MeasuredUpdates, index: int, half_square: Estimate) -> str | None:
    if not updates.moved[index]:
        return "every log-probability is that of the run's own checkpoint"
    if half_square.value is None:
        return half_square.reason
    if half_square.ci_low is None and updates.layout.num_clusters >= MIN_CLUSTERS:
        return half_square.reason
    rounding = float(token_k2(updates.mismatch).mean())
    if updates.movement is None and half_square.value <= OVER_ROUNDING * rounding:
        return f"its K2 is within {OVER_ROUNDING:g} times the mismatch's, where it may be rounding and not training"
    return None


def _weighted_k3(update: FloatArray, mismatch: FloatArray, layout: SequenceLayout) -> Estimate:
    """Mean of K3 with weights pi_old / mu: sum w K3 / sum w, both sums by prompt."""
    if float(update.max()) > EXP_LIMIT / 2.0 or float(mismatch.max()) > EXP_LIMIT / 2.0:
        return Estimate(None, None, None, int(update.size), OVERFLOW)
    weight = np.exp(mismatch)
    statistic = Statistic(lambda sums: np.asarray(sums[..., 0] / sums[..., 1]), "log", 0)
    return interval_from_table(
        layout.token_table(weight * token_k3(update), weight), statistic, n=int(update.size)
    )


def _independent_std(lengths: FloatArray, mean: float, variance: float) -> float:
    """Standard deviation of sums of T independent tokens over responses of these lengths T."""
    return float(np.sqrt(variance * lengths.mean() + mean**2 * lengths.var()))


def _precision(sums: FloatArray) -> FloatArray:
    """1 / variance of log(mean) between prompts, scaled to sum 1; all alike with too few prompts."""
    groups, checkpoints = sums.shape[0], sums.shape[1] - 1
    if groups < MIN_CLUSTERS:
        return np.full(checkpoints, 1.0 / checkpoints)
    share = sums / sums.sum(axis=0)
    influence = share[:, :-1] - share[:, -1:]
    variance = np.square(influence).sum(axis=0) * groups / (groups - 1)
    precision = 1.0 / np.maximum(variance, 1e-12)
    return np.asarray(precision / precision.sum())


@dataclass(frozen=True, slots=True, eq=False)
class _Law:
    """The weighted line through (log k, log KL), as functions of the sums of prompts."""

    log_steps: FloatArray
    weight: FloatArray
    proportional: bool = False
    """Growth held at 1."""

    @staticmethod
    def log_kl(sums: FloatArray) -> FloatArray:
        return np.asarray(np.log(sums[..., :-1] / sums[..., -1:]))

    def growth(self, sums: FloatArray) -> FloatArray:
        if self.proportional:
            return np.ones(sums.shape[:-1])
        centred = self.log_steps - self.weight @ self.log_steps
        spread = float(self.weight @ np.square(centred))
        return np.asarray(self.log_kl(sums) @ (self.weight * centred / spread))

    def kl_per_step(self, sums: FloatArray) -> FloatArray:
        level = self.log_kl(sums) @ self.weight
        return np.asarray(np.exp(level - self.growth(sums) * (self.weight @ self.log_steps)))


def _notes(updates: MeasuredUpdates, points: Sequence[StalenessPoint]) -> list[str]:
    notes = [f"{point.steps:g} steps not fitted: {point.reason}" for point in points if not point.fitted]
    if updates.movement is None:
        notes.append("read in training's dtype alone: what rounding adds to the KL is in the law")
    return notes
