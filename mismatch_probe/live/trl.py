"""Drift of TRL's GRPO steps, into whatever logger the trainer reports to.

    trainer = GRPOTrainer(...)
    watch(trainer)
    trainer.train()

TRL hands no tensors to callbacks, so the two methods that make them are wrapped on this one trainer: what
`_compute_loss` is given, and what `_get_per_token_logps_and_entropies` returns to it. Nothing is computed a second
time on the device; log-probabilities of each micro-batch are copied to the host.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mismatch_probe.errors import ConfigError
from mismatch_probe.live.metrics import drift_metrics, merge_rows

PAIRS = {
    "rollout/train": ("sampling_per_token_logps", "train"),
    "rollout/old": ("sampling_per_token_logps", "old_per_token_logps"),
    "old/train": ("old_per_token_logps", "train"),
}
"""By name: the sampling policy's tensor and the training side's. `rollout/old` is the engines' mismatch alone, `old/train`
the update's, `rollout/train` both."""

_WRAPPED = ("_compute_loss", "_get_per_token_logps_and_entropies")


def watch(trainer: Any, *, prefix: str = "mismatch/", every: int = 1) -> Any:
    """Adds a callback to a TRL GRPO trainer that logs drift of every step beside TRL's own metrics.

    Which pairs there are depends on what TRL holds: `sampling_per_token_logps` with vLLM or a `rollout_func` that returns
    log-probabilities; `old_per_token_logps` with vLLM's correction, or where several optimiser steps use one generation.

    Args:
        trainer: A `GRPOTrainer`; its subclasses that keep the wrapped methods work too.
        prefix: Goes before every key; keys are `{prefix}{pair}/{statistic}`, see `PAIRS` and `drift_metrics`.
        every: Optimiser steps between two readings; copies are made only for steps that are read.

    Returns:
        The callback (a `transformers.TrainerCallback`).

    Raises:
        ConfigError: `every` is below 1, or the trainer lacks a method that has to be wrapped.
    """
    if every < 1:
        raise ConfigError("every must be at least 1")
    missing = [name for name in _WRAPPED if not callable(getattr(trainer, name, None))]
    if missing:
        raise ConfigError(
            f"{type(trainer).__name__} has no {missing[0]}",
            hint="watch() was written against the GRPOTrainer of TRL 1.16",
        )
    from transformers import TrainerCallback

    recorder = _Recorder(trainer, every)

    class MismatchCallback(TrainerCallback):  # type: ignore[misc]
        """Turns what was recorded into TRL's metrics at the end of every optimiser step."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Appends to the trainer's metrics, which TRL averages over `logging_steps`."""
            for key, value in recorder.take(prefix).items():
                trainer._metrics["train"][key].append(value)  # noqa: SLF001 - where TRL's own metrics go

    callback = MismatchCallback()
    trainer.add_callback(callback)
    return callback


class _Recorder:
    """Keeps the log-probabilities of one optimiser step on the host."""

    def __init__(self, trainer: Any, every: int) -> None:
        self._trainer = trainer
        self._every = every
        self._rows: dict[str, list[Any]] = {name: [] for name in PAIRS}
        self._inside = False
        self._train: Any = None
        compute_loss, logps = (getattr(trainer, name) for name in _WRAPPED)

        def recorded_loss(model: Any, inputs: Any) -> Any:
            if not model.training or trainer.state.global_step % self._every:
                return compute_loss(model, inputs)
            self._inside, self._train = True, None
            try:
                loss = compute_loss(model, inputs)
            finally:
                self._inside = False
            self._keep(inputs)
            return loss

        def recorded_logps(*args: Any, **kwargs: Any) -> Any:
            result = logps(*args, **kwargs)
            # The first call inside the loss is the current policy's; later ones may be a reference model's.
            if self._inside and self._train is None:
                self._train = result[0].detach()
            return result

        trainer._compute_loss = recorded_loss  # noqa: SLF001 - TRL hands no tensors to callbacks
        trainer._get_per_token_logps_and_entropies = recorded_logps  # noqa: SLF001

    def take(self, prefix: str) -> dict[str, float]:
        """Metrics over all processes of what was kept since the last call."""
        found: dict[str, float] = {}
        for name, rows in self._rows.items():
            gathered = self._gather(rows)
            if gathered:
                found |= drift_metrics(*merge_rows(gathered), prefix=f"{prefix}{name}/")
            rows.clear()
        return found

    def _keep(self, inputs: Any) -> None:
        mask = inputs["completion_mask"]
        if "tool_mask" in inputs:
            mask = mask * inputs["tool_mask"]
        held = {"train": self._train, **inputs}
        kept = mask.cpu().numpy() != 0
        for name, (sampling, training) in PAIRS.items():
            sides = [held[key] for key in (sampling, training) if held.get(key) is not None]
            if len(sides) == 2:
                rollout, train = (side.detach().float().cpu().numpy().astype(np.float64) for side in sides)
                self._rows[name].append((rollout, train, kept))

    def _gather(self, rows: list[Any]) -> list[Any]:
        if self._trainer.accelerator.num_processes == 1:
            return rows
        from accelerate.utils import gather_object

        gathered: list[Any] = gather_object(rows)
        return gathered
