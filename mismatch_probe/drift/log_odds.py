"""Log-probabilities as log-odds, in which drift can be added without leaving what a probability may be.

A log-ratio of a token with probability p cannot exceed -log p, so that noise added to log-probabilities has to be
clipped or reflected, which bends E[ratio]. The displacement d = logit(pi) - logit(mu) has no bound, and for small
drift it is log_ratio / (1 - p): the scale at which a near-certain and an open token drift alike.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import ConfigError
from mismatch_probe.stats.divergences import log_complement
from mismatch_probe.stats.layout import FloatArray, finite_array

CERTAIN = -1e-12
"""A probability that was rounded to 1 is read as this log-probability: its odds are then finite."""
ABOVE_ZERO = 1e-3


def checked_logprobs(values: npt.ArrayLike, what: str) -> FloatArray:
    """Reads log-probabilities.

    Args:
        values: [tokens] nats; up to 0.001 above 0 is rounding and read as 0.
        what: Whose, for the error.

    Returns:
        float64 [tokens], at most `CERTAIN`.

    Raises:
        ConfigError: One is above 0 by more than rounding, or more than one dimension.
        InconclusiveError: There are none, or one is not finite.
    """
    array = finite_array(values, what)
    above = int(np.count_nonzero(array > ABOVE_ZERO))
    if above:
        raise ConfigError(
            f"{what}: {above} of {array.size} log-probabilities are above 0",
            hint="they must be natural logarithms of probabilities (MP103)",
        )
    return np.minimum(array, CERTAIN)


def log_odds(logprobs: FloatArray) -> FloatArray:
    """Log p - log(1 - p) of log-probabilities below 0, float64 of the same shape."""
    return np.asarray(logprobs - log_complement(logprobs))


def logprobs_of(odds: FloatArray) -> FloatArray:
    """Log-probabilities of log-odds, -log(1 + exp(-odds)); never above 0."""
    return np.asarray(-np.logaddexp(0.0, -odds))
