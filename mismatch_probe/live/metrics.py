"""Drift of one batch as a flat dict of numbers, for a training loop's logger."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import ConfigError
from mismatch_probe.stats.effective_size import effective_sample_size
from mismatch_probe.stats.kl import chi2, token_k3
from mismatch_probe.stats.layout import FloatArray
from mismatch_probe.stats.pareto import pareto_k
from mismatch_probe.stats.tails import upper_quantile

FAR_RATIO = 2.0
"""Tokens whose ratio is beyond this, either way, are counted as far."""

_BLOCK = 65536


def drift_metrics(
    rollout_logprobs: Any, train_logprobs: Any, mask: Any, *, prefix: str = "mismatch/"
) -> dict[str, float]:
    """Statistics of log_ratio = train - rollout over one batch, without intervals: one step has too few prompts for them.

    Args:
        rollout_logprobs: [sequences, tokens] nats, of the policy that sampled (or of any reading to compare against);
            a torch tensor on any device, or an array.
        train_logprobs: [sequences, tokens] nats, the training side's.
        mask: [sequences, tokens], not 0 on response tokens that the policy sampled.
        prefix: Goes before every key.

    Returns:
        By key, finite numbers only; what cannot be had from this batch is left out. Tokens: `k1`, `k3` (nats, of
        KL(rollout || train)), `mean_abs`, `max_abs`, `p99_abs` (nats), `mean_ratio`, `far_fraction` (ratio beyond 2 either
        way), `tokens`. Sequences: `log_w_mean`, `log_w_std`, `log_w_min`, `log_w_max` (nats), `ess` (fraction), `renyi2`
        (log E[W^2], nats), `k_hat`, `sequences`. `missing_tokens` are masked in but not finite on one side; they are
        left out, and the sequences that hold them are left out of what is said of sequences.

    Raises:
        ConfigError: The shapes differ.
    """
    rollout, train, kept = _array(rollout_logprobs), _array(train_logprobs), _array(mask) != 0
    if not rollout.shape == train.shape == kept.shape or rollout.ndim != 2:
        raise ConfigError(
            f"log-probabilities and mask must be [sequences, tokens]: {rollout.shape}, {train.shape}, {kept.shape}"
        )
    lengths = np.count_nonzero(kept, axis=1)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    log_ratio = _log_ratio(rollout, train, kept, offsets)
    finite = np.isfinite(log_ratio)
    found = {"missing_tokens": float(log_ratio.size - np.count_nonzero(finite))}
    whole = lengths > 0
    if not finite.all():
        spoilt = np.searchsorted(offsets, np.flatnonzero(~finite), side="right") - 1
        whole[spoilt] = False
    found |= _token_metrics(log_ratio if finite.all() else log_ratio[finite])
    found |= _sequence_metrics(_sums(log_ratio, offsets)[whole])
    return {f"{prefix}{key}": value for key, value in found.items() if math.isfinite(value)}


def _log_ratio(
    rollout: npt.NDArray[Any],
    train: npt.NDArray[Any],
    kept: npt.NDArray[np.bool_],
    offsets: npt.NDArray[np.int64],
) -> FloatArray:
    """Of the tokens alone, since batches are mostly padding; a few rows at a time, which stay in the cache."""
    found = np.empty(offsets[-1])
    step = max(1, _BLOCK // max(1, kept.shape[1]))
    with np.errstate(invalid="ignore"):
        for begin in range(0, len(kept), step):
            rows = slice(begin, begin + step)
            inside = kept[rows]
            own = found[offsets[begin] : offsets[min(begin + step, len(kept))]]
            np.subtract(train[rows][inside], rollout[rows][inside], out=own, dtype=np.float64)
    return found


def _sums(values: FloatArray, offsets: npt.NDArray[np.int64]) -> FloatArray:
    """Sums between offsets, 0 where nothing lies between them."""
    filled = offsets[:-1] < offsets[1:]
    found = np.zeros(len(offsets) - 1)
    if values.size:
        with np.errstate(invalid="ignore"):
            found[filled] = np.add.reduceat(values, offsets[:-1][filled])
    return found


def merge_rows(rows: Sequence[tuple[FloatArray, FloatArray, npt.NDArray[np.bool_]]]) -> tuple[Any, Any, Any]:
    """Puts (rollout, train, mask) of several batches of different widths into one, padded on the right.

    Args:
        rows: Each [sequences, tokens].

    Raises:
        ConfigError: There are none.
    """
    if not rows:
        raise ConfigError("no batch was seen")
    width = max(rollout.shape[1] for rollout, _, _ in rows)
    padded = [[np.pad(array, ((0, 0), (0, width - array.shape[1]))) for array in batch] for batch in rows]
    rollout, train, mask = (np.concatenate([batch[i] for batch in padded]) for i in range(3))
    return rollout, train, mask


def _token_metrics(log_ratio: FloatArray) -> dict[str, float]:
    found = {"tokens": float(log_ratio.size)}
    if not log_ratio.size:
        return found
    size, mean = np.abs(log_ratio), float(log_ratio.mean())
    k3 = float(token_k3(log_ratio).mean())
    return found | {
        "k1": -mean,
        "k3": k3,
        "mean_abs": float(size.mean()),
        "max_abs": float(size.max()),
        "p99_abs": upper_quantile(size, 0.99),
        # The mean of exp(l), by the definition of K3.
        "mean_ratio": 1 + k3 + mean,
        "far_fraction": np.count_nonzero(size > math.log(FAR_RATIO)) / size.size,
    }


def _sequence_metrics(log_weight: FloatArray) -> dict[str, float]:
    found = {"sequences": float(log_weight.size)}
    if not log_weight.size:
        return found
    tail = pareto_k(log_weight)
    return found | {
        "log_w_mean": float(log_weight.mean()),
        "log_w_std": float(log_weight.std(ddof=1)) if log_weight.size > 1 else math.nan,
        "log_w_min": float(log_weight.min()),
        "log_w_max": float(log_weight.max()),
        "ess": effective_sample_size(log_weight).fraction,
        "renyi2": chi2(log_weight).renyi2,
        "k_hat": math.nan if tail.value is None else tail.value,
    }


def _array(values: Any) -> npt.NDArray[Any]:
    """An array of numbers or truth values on the CPU, whatever holds it."""
    if hasattr(values, "detach"):
        values = values.detach().to(device="cpu")
        # numpy knows no bfloat16.
        values = (values.float() if values.is_floating_point() else values).numpy()
    return np.asarray(values)
