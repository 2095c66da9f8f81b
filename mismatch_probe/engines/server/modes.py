"""Which distribution a server's log-probabilities describe, measured where the server does not say.

Servers return either the model's own log-probabilities (raw) or those of the distribution after temperature and truncation
(processed), and no answer says which. Only processed ones are the mu that an importance weight needs; at temperature 1 over
the whole vocabulary the two are one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mismatch_probe.config.model import SamplingConfig
from mismatch_probe.errors import CaptureError, ConfigError

PROCESSED = "processed_logprobs"
RAW = "raw_logprobs"
EITHER = "raw_logprobs and processed_logprobs are one here"

_LEAST_GAP = 0.5
_CERTAIN = -1e-3

Alternatives = Callable[[float], Mapping[str, float]]
"""Alternatives of the next token at a temperature, in nats, by any name."""


def is_plain(sampling: SamplingConfig) -> bool:
    """Whether sampling is from the model's own distribution."""
    return sampling.temperature == 1 and sampling.top_p == 1 and sampling.top_k < 1


def temperature_mode(
    at_one: Mapping[str, float], at_temperature: Mapping[str, float], temperature: float
) -> str | None:
    """Tells raw from processed by one gap: dividing logits by T divides every difference of log-probabilities by T.

    Args:
        at_one: Log-probabilities of the alternatives for the next token at temperature 1, nats.
        at_temperature: Those after the same prompt at `temperature`.
        temperature: Not 1.

    Returns:
        `PROCESSED`, `RAW`, or None where the gap fits neither or is below 0.5 nats.
    """
    shared = [name for name in at_one.keys() & at_temperature.keys() if at_one[name] > -100]
    if len(shared) < 2:
        return None
    top, bottom = max(shared, key=at_one.__getitem__), min(shared, key=at_one.__getitem__)
    gap = at_one[top] - at_one[bottom]
    if gap < _LEAST_GAP:
        return None
    ratio = (at_temperature[top] - at_temperature[bottom]) / gap
    tolerance = abs(1 - 1 / temperature) / 4
    if abs(ratio - 1 / temperature) <= tolerance:
        return PROCESSED
    return RAW if abs(ratio - 1) <= tolerance else None


def truncation_mode(alone: float | None, whole: float | None) -> str | None:
    """Tells raw from processed by a support of one token, whose processed log-probability is 0.

    Args:
        alone: Log-probability of a token that truncation left as the only one.
        whole: That of the likeliest token without truncation.

    Returns:
        `PROCESSED`, `RAW`, or None where the likeliest token is all but certain anyway.
    """
    if alone is None or whole is None or whole > 10 * _CERTAIN:
        return None
    if alone >= _CERTAIN:
        return PROCESSED
    return RAW if abs(alone - whole) < abs(whole) / 4 else None


def require_processed(found: str | None, parameter: str) -> None:
    """Raises unless the log-probabilities are known to be those of the sampled distribution.

    Args:
        found: What was measured.
        parameter: Of the sampling, for the message.

    Raises:
        ConfigError: They are raw: every importance weight would be wrong.
        CaptureError: The measurement fits neither.
    """
    if found == RAW:
        raise ConfigError(
            f"the server's log-probabilities do not follow sampling.{parameter}: they are the model's own, not those "
            "of the distribution that was sampled from",
            hint="start vLLM with --logprobs-mode processed_logprobs, or sample at temperature 1 without truncation",
        )
    if found is None:
        raise CaptureError(
            f"whether the server's log-probabilities follow sampling.{parameter} could not be measured",
            hint=f"if you know it, set rollout.options.logprobs_mode={PROCESSED}",
        )
