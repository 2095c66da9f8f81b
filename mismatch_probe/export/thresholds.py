"""Thresholds of corrections, fitted to the drift that a run measured.

Each lies just outside what the two healthy sides do to each other, so that it acts on outliers and on real
staleness and leaves the ordinary mismatch alone. They are those of the run's recommendation
(`mismatch_probe.recommendation.fits`); a result without one gets them from its quantiles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mismatch_probe.export.measured import Measured, look_up, read, read_quantile

# Widths in standard deviations; 3 leaves out 0.3 % of a normal distribution.
_SIGMAS = 3.0
# No threshold closer to a ratio of 1 than this: below it BF16 steps of a single logit already act on it.
_MIN_TOKEN_WIDTH = math.log(1.05)
_MIN_MEAN_WIDTH = 1e-4
# Above this single responses rule a batch.
MAX_SEQUENCE_CAP = 10.0
_ENOUGH_TOKENS = 2000
_ENOUGH_SEQUENCES = 200


@dataclass(frozen=True, slots=True)
class Fitted:
    """A threshold and what set it.

    Attributes:
        value: The threshold, a ratio.
        because: What set it: path in result.json and value, in words for a comment.
        measured: The number that it mostly rests on.
    """

    value: float
    because: str
    measured: Measured


@dataclass(frozen=True, slots=True)
class Band:
    """Two thresholds around the measured centre, as ratios.

    Attributes:
        low: Lower threshold.
        high: Upper threshold.
        because: What set them.
        measured: The number that they mostly rest on.
    """

    low: float
    high: float
    because: str
    measured: Measured

    def inverse(self) -> Band:
        """The same band for the inverse ratio mu / pi, which verl's K1 bounds act on."""
        return Band(round_down(1.0 / self.high, 6), round_up(1.0 / self.low, 6), self.because, self.measured)

    def widest_drop(self) -> float:
        """-log of the lower bound, nats: the largest mean log(mu / pi) that the band lets through."""
        return round_up(-math.log(self.low), 3)


def round_up(value: float, digits: int = 3) -> float:
    """Rounded to significant digits, away from 0 for positive numbers."""
    return _rounded(value, digits, math.ceil)


def round_down(value: float, digits: int = 3) -> float:
    """Rounded to significant digits, towards 0 for positive numbers."""
    return _rounded(value, digits, math.floor)


def token_cap(result: Mapping[str, Any]) -> Fitted | None:
    """Cap of a token ratio: above its upper quantile and above three times the noise floor.

    The quantile is 0.999, or 0.99 below 2000 tokens. The floor's standard deviation is sqrt(2 K3).

    Args:
        result: result.json.

    Returns:
        None where the run has no quantiles.
    """
    fitted = _recommended(result, "token_tis", "cap")
    if fitted is not None:
        return Fitted(fitted.values[0], fitted.because, fitted.measured)
    quantile = _tail(result, upper=True)
    return None if quantile is None else cap_beyond(result, quantile)


def cap_beyond(result: Mapping[str, Any], quantile: Measured) -> Fitted:
    """Cap of a token ratio beyond a quantile of the log-ratio (nats) and the noise floor."""
    width, because = _beyond_noise(result, quantile)
    return Fitted(round_up(math.exp(width)), because, quantile)


def token_band(result: Mapping[str, Any]) -> Band | None:
    """Bounds of a token ratio: outside its 0.001 and 0.999 quantiles (0.01 and 0.99) and the noise floor.

    Returns:
        None where the run has no quantiles.
    """
    fitted = _recommended(result, "icepop", "low", "high")
    if fitted is not None:
        return Band(fitted.values[0], fitted.values[1], fitted.because, fitted.measured)
    low, high = _tail(result, upper=False), _tail(result, upper=True)
    return None if low is None or high is None else band_beyond(result, low, high)


def band_beyond(result: Mapping[str, Any], low: Measured, high: Measured) -> Band:
    """Bounds of a token ratio beyond two quantiles of the log-ratio (nats) and the noise floor."""
    below, because_low = _beyond_noise(result, low)
    above, because_high = _beyond_noise(result, high)
    because = f"{because_low}; {because_high}"
    return Band(round_down(math.exp(-below)), round_up(math.exp(above)), because, high)


def sequence_cap(result: Mapping[str, Any]) -> Fitted | None:
    """Cap of the sequence weight W: its 0.99 quantile (0.9 below 200 sequences), at most 10.

    Returns:
        None where the run has no quantiles.
    """
    fitted = _recommended(result, "seq_tis", "cap")
    if fitted is not None:
        return Fitted(fitted.values[0], fitted.because, fitted.measured)
    sequences = read(result, "sequence.num_sequences")
    level = 0.99 if sequences is not None and sequences.value >= _ENOUGH_SEQUENCES else 0.9
    quantile = read_quantile(result, "sequence.log_weight.quantiles", "values", level)
    if quantile is None:
        return None
    top = min(max(quantile.value, _MIN_TOKEN_WIDTH), math.log(MAX_SEQUENCE_CAP))
    because = f"{quantile} nats"
    if quantile.value > math.log(MAX_SEQUENCE_CAP):
        because += f", held at {MAX_SEQUENCE_CAP:g}, above which single sequences rule the batch"
    return Fitted(min(round_up(math.exp(top)), MAX_SEQUENCE_CAP), because, quantile)


def sequence_band(result: Mapping[str, Any]) -> Band | None:
    """Bounds of the sequence weight W: its 0.01 and 0.99 quantiles (0.1 and 0.9), within 1/10 and 10.

    Returns:
        None where the run has no quantiles.
    """
    fitted = _recommended(result, "seq_mis", "low", "high")
    if fitted is not None:
        return Band(fitted.values[0], fitted.values[1], fitted.because, fitted.measured)
    cap = sequence_cap(result)
    if cap is None:
        return None
    level = 0.01 if "[0.99]" in cap.measured.path else 0.1
    quantile = read_quantile(result, "sequence.log_weight.quantiles", "values", level)
    if quantile is None:
        return None
    bottom = max(min(quantile.value, -_MIN_TOKEN_WIDTH), -math.log(MAX_SEQUENCE_CAP))
    low = max(round_down(math.exp(bottom)), 1.0 / MAX_SEQUENCE_CAP)
    return Band(low, cap.value, f"{quantile} and {cap.because}", cap.measured)


def mean_band(result: Mapping[str, Any]) -> Band | None:
    """Bounds of s = exp(mean log ratio of a response): exp(-kappa), three measured deviations either way.

    A band centred on 1, such as 0.999 to 1.001, rejects ordinary responses as soon as kappa passes its
    half-width.

    Args:
        result: result.json.

    Returns:
        None where the run has no kappa or no spread.
    """
    fitted = _recommended(result, "geo_rs", "low", "high")
    if fitted is not None:
        return Band(fitted.values[0], fitted.values[1], fitted.because, fitted.measured)
    kappa = read(result, "sequence.length_law.kappa")
    spread = _mean_spread(result)
    if kappa is None or spread is None:
        return None
    half = max(_SIGMAS * spread.value, _MIN_MEAN_WIDTH)
    because = f"centre -{kappa}, half-width {_SIGMAS:g} x {spread.path} = {half:.3g} nats"
    low, high = math.exp(-kappa.value - half), math.exp(-kappa.value + half)
    return Band(round_down(low, 6), round_up(high, 6), because, kappa)


@dataclass(frozen=True, slots=True)
class _Recommended:
    """Hyperparameters of a candidate of the recommendation."""

    values: tuple[float, ...]
    because: str
    measured: Measured


def _recommended(result: Mapping[str, Any], key: str, *names: str) -> _Recommended | None:
    """What the run's recommendation fitted; None where it has no such candidate."""
    candidate = look_up(result, f"recommendation.candidates.{key}")
    if not isinstance(candidate, Mapping) or not candidate.get("fit"):
        return None
    found = [read(candidate, f"parameters.{name}") for name in names]
    values = tuple(item.value for item in found if item is not None)
    if len(values) < len(names):
        return None
    path = f"recommendation.candidates.{key}.parameters.{names[-1]}"
    return _Recommended(values, str(candidate["fit"].get("because")), Measured(path, values[-1]))


def _mean_spread(result: Mapping[str, Any]) -> Measured | None:
    """Standard deviation over responses of the mean log ratio, nats."""
    lengths = look_up(result, "sequence.scatter.length") or []
    weights = look_up(result, "sequence.scatter.log_weight") or []
    means = [w / t for w, t in zip(weights, lengths, strict=False) if t and w is not None]
    if len(means) >= 2:
        centre = sum(means) / len(means)
        deviation = math.sqrt(sum((mean - centre) ** 2 for mean in means) / (len(means) - 1))
        return Measured(f"std over {len(means)} responses of sequence.scatter.log_weight / length", deviation)
    variance = read(result, "sequence.length_law.variance_per_token")
    length = read(result, "sequence.length_law.mean_length")
    if variance is None or length is None or length.value <= 0:
        return None
    path = "sqrt(sequence.length_law.variance_per_token / mean_length)"
    return Measured(path, math.sqrt(max(variance.value, 0.0) / length.value))


def _tail(result: Mapping[str, Any], *, upper: bool) -> Measured | None:
    tokens = read(result, "token.num_tokens")
    far = 0.999 if tokens is not None and tokens.value >= _ENOUGH_TOKENS else 0.99
    return read_quantile(result, "token.quantiles", "log_ratio", far if upper else round(1.0 - far, 3))


def _beyond_noise(result: Mapping[str, Any], quantile: Measured) -> tuple[float, str]:
    """Distance from log 1 that clears both a quantile and the noise floor, and what set it."""
    floor = read(result, "legs.floor.k3")
    noise = 0.0 if floor is None else _SIGMAS * math.sqrt(2.0 * max(floor.value, 0.0))
    outside = max(abs(quantile.value), noise, _MIN_TOKEN_WIDTH)
    if outside == abs(quantile.value):
        return outside, f"{quantile} nats"
    if outside == noise and floor is not None:
        return outside, f"{_SIGMAS:g} sqrt(2 K3) of the noise floor, {floor} nats ({quantile} lies inside)"
    return outside, f"{quantile} nats, widened to a ratio of 1.05"


def _rounded(value: float, digits: int, towards: Any) -> float:
    if value == 0.0:
        return 0.0
    scale = 10.0 ** (digits - 1 - math.floor(math.log10(abs(value))))
    # The small offset keeps a number that is already round from moving by a step.
    shift = -1e-9 if towards is math.ceil else 1e-9
    return float(f"{towards(value * scale + shift) / scale:.{digits}g}")
