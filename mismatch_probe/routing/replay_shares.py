"""What share of a drift replayed routes explain: of all layers, of one alone, of one as the last to be replayed.

With D(S) the K3 to the rollout when the layers in S use the rollout's experts:

* joint share: 1 - D(all) / D(none);
* a layer alone: 1 - D({layer}) / D(none);
* a layer as the last: (D(all but it) - D(all)) / D(none), what is lost when it is left out.

Flips feed on each other: a flip changes what later layers see. So shares of layers need not add up to the joint share; the
additivity ratio says whether they do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mismatch_probe.routing.agreement import FloatArray
from mismatch_probe.stats.estimate import Estimate
from mismatch_probe.stats.intervals import Statistic, interval_from_table

# Shares are parts of 1: an interval longer than this says nothing.
_WIDEST = 1.0


@dataclass(frozen=True, slots=True)
class LayerShare:
    """What one layer explains.

    Attributes:
        rank: 1 for the layer that explains most alone; None where its share cannot be had.
        alone: Share of the drift that goes when only this layer is replayed.
        last: Share that comes back when only this layer is not.
    """

    rank: int | None
    alone: Estimate
    last: Estimate


@dataclass(frozen=True, slots=True)
class Additivity:
    """Whether shares of single layers add up.

    Attributes:
        ratio: Sum of the layers' shares over the joint share.
        additive: Whether 1 is within the interval; None without an interval.
        sentence: The same in words.
    """

    ratio: Estimate
    additive: bool | None
    sentence: str


def share_explained(without: FloatArray, with_replay: FloatArray, *, n: int) -> Estimate:
    """1 - sum(with_replay) / sum(without), with an interval over prompts.

    Args:
        without: float64 [prompts]; sums of K3 without replay.
        with_replay: float64 [prompts]; sums of K3 with it.
        n: Tokens.
    """

    def ratio(sums: FloatArray) -> FloatArray:
        return np.asarray(np.divide(sums[..., 1], sums[..., 0]))

    # What is left is a positive ratio, so its interval belongs on a logarithm, and a share never exceeds 1.
    statistic = Statistic(ratio, "log" if with_replay.any() else "identity", 0)
    left = interval_from_table(np.stack([without, with_replay], axis=1), statistic, n=n)
    ends = [None if end is None else 1.0 - end for end in (left.value, left.ci_high, left.ci_low)]
    return _withheld_if_wide(Estimate(ends[0], ends[1], ends[2], n, left.reason))


def layer_shares(
    own: FloatArray, joint: FloatArray, only: FloatArray, without: FloatArray, *, n: int
) -> list[LayerShare]:
    """Share of each layer, ranked.

    Args:
        own: float64 [prompts]; sums of K3 with the trainer's own experts.
        joint: float64 [prompts]; with the rollout's in every layer.
        only: float64 [prompts, layers]; with the rollout's in one layer.
        without: float64 [prompts, layers]; with the rollout's in all but one.
        n: Tokens.
    """
    alone = [share_explained(own, only[:, layer], n=n) for layer in range(only.shape[1])]
    last = [
        _estimate((own, joint, without[:, layer]), lambda s: np.divide(s[..., 2] - s[..., 1], s[..., 0]), n)
        for layer in range(without.shape[1])
    ]
    known = sorted(
        (layer for layer, share in enumerate(alone) if share.value is not None),
        key=lambda layer: -(alone[layer].value or 0.0),
    )
    rank = {layer: place for place, layer in enumerate(known, start=1)}
    return [LayerShare(rank.get(layer), alone[layer], last[layer]) for layer in range(len(alone))]


def lead_of_first(own: FloatArray, only: FloatArray, *, n: int) -> Estimate | None:
    """By how much the first layer's share exceeds the second's, paired by prompt; None with fewer than two layers.

    The order is taken from the same sample, so an interval above 0 is needed before the first may be called first.

    Args:
        own: float64 [prompts]; sums of K3 with the trainer's own experts.
        only: float64 [prompts, layers]; with the rollout's in one layer.
        n: Tokens.
    """
    if only.shape[1] < 2:
        return None
    first, second = np.argsort(only.sum(axis=0), kind="stable")[:2]
    return _estimate(
        (own, only[:, first], only[:, second]), lambda s: np.divide(s[..., 2] - s[..., 1], s[..., 0]), n
    )


def additivity(own: FloatArray, joint: FloatArray, only: FloatArray, *, n: int) -> Additivity:
    """Sum of the shares of single layers over the joint share.

    Args:
        own: float64 [prompts]; sums of K3 with the trainer's own experts.
        joint: float64 [prompts]; with the rollout's in every layer.
        only: float64 [prompts, layers]; with the rollout's in one layer.
        n: Tokens.
    """
    layers = only.shape[1]

    def ratio(sums: FloatArray) -> FloatArray:
        return np.asarray(np.divide(layers * sums[..., 0] - sums[..., 2], sums[..., 0] - sums[..., 1]))

    found = _estimate((own, joint, only.sum(axis=1)), ratio, n)
    if found.value is None:
        return Additivity(found, None, f"Whether layers add up cannot be said: {found.reason}.")
    if found.ci_low is None or found.ci_high is None:
        return Additivity(
            found,
            None,
            f"Shares of single layers add up to {found.value:.2f} of the joint share; whether that differs from 1 "
            f"cannot be said ({found.reason}).",
        )
    if found.ci_low <= 1.0 <= found.ci_high:
        return Additivity(
            found, True, f"Shares of single layers add up to {found.value:.2f} of the joint share."
        )
    relation = (
        "explain the same drift twice" if found.value > 1.0 else "explain more together than one by one"
    )
    return Additivity(
        found,
        False,
        f"Layers are not additive: their shares add up to {found.value:.2f} of the joint share, so they {relation}; "
        "read the ranking, not the sum.",
    )


def _estimate(
    columns: tuple[FloatArray, ...], function: Callable[[FloatArray], FloatArray], n: int
) -> Estimate:
    """A function of sums of K3 by prompt, of which the first column is the drift without replay."""
    statistic = Statistic(function, positive_column=0)
    return _withheld_if_wide(interval_from_table(np.stack(columns, axis=1), statistic, n=n))


def _withheld_if_wide(estimate: Estimate) -> Estimate:
    low, high = estimate.ci_low, estimate.ci_high
    if low is None or high is None or high - low <= _WIDEST:
        return estimate
    reason = "the interval is as wide as the whole drift: more sequences are needed"
    return Estimate(estimate.value, None, None, estimate.n, reason)
