"""Drift of a verl training step, for its metrics dict.

In a trainer's `fit`, after the old log-probabilities are there:

    metrics.update(mismatch_probe.live.verl.mismatch_metrics(batch))
"""

from __future__ import annotations

from typing import Any

from mismatch_probe.errors import ConfigError
from mismatch_probe.live.metrics import drift_metrics

ROLLOUT, OLD, MASK = "rollout_log_probs", "old_log_probs", "response_mask"


def mismatch_metrics(batch: Any, *, prefix: str = "mismatch/") -> dict[str, float]:
    """The metrics of `drift_metrics` for a verl batch: the old policy as the training side has it, against the rollout.

    Args:
        batch: verl's `DataProto` (its `.batch` is read), or anything that maps names to tensors. Needs `rollout_log_probs`,
            `old_log_probs` and `response_mask`, each [sequences, response tokens].
        prefix: Goes before every key.

    Raises:
        ConfigError: A tensor is missing; the hint says how to have verl keep it.
    """
    tensors = getattr(batch, "batch", batch)
    names = set(tensors.keys())
    for name in (ROLLOUT, OLD, MASK):
        if name not in names:
            raise ConfigError(
                f"the batch holds no {name}",
                hint="set actor_rollout_ref.rollout.calculate_log_probs=true"
                if name == ROLLOUT
                else "call this after the trainer has computed old_log_probs",
            )
    return drift_metrics(tensors[ROLLOUT], tensors[OLD], tensors[MASK], prefix=prefix)
