"""Where a simulation takes its staleness from: later checkpoints, those measured before, or recomputed pi_old."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mismatch_probe.simulate.extrapolate import StalenessModel, measured_staleness
from mismatch_probe.simulate.responses import Responses
from mismatch_probe.simulate.stale_updates import MeasuredUpdates
from mismatch_probe.simulate.staleness import StalenessFit
from mismatch_probe.stages.events import Watcher
from mismatch_probe.stages.simulation_plan import SimulationPlan
from mismatch_probe.stages.staleness import measure_staleness, read_staleness
from mismatch_probe.trace.run_directory import RunDirectory

NONE = (
    "how far updates move the policy was not measured: give later checkpoints with --staleness-from, or a run with "
    "recomputed old_logprobs"
)


@dataclass(frozen=True, slots=True, eq=False)
class Staleness:
    """How stale weights are simulated.

    Attributes:
        model: The law of growth, or None.
        updates: Measured updates over the tokens that count, or None: updates are drawn from the law.
        fit: What was fitted to checkpoints, or None.
    """

    model: StalenessModel | None
    updates: MeasuredUpdates | None
    fit: StalenessFit | None

    def section(self) -> dict[str, Any]:
        """The part of result.json that says where staleness comes from."""
        if self.model is None:
            return {"available": False, "reason": NONE}
        base = {
            "available": True,
            "source": self.model.source,
            "drawn": "Gaussian, from the law"
            if self.updates is None
            else "measured updates of the checkpoints",
        }
        if self.fit is None:
            law = {"kl_per_step": self.model.kl_per_step, "growth": self.model.growth, "misfit": None}
            return {**base, **law, "points": [], "notes": ["one update behind; growth is taken as 1"]}
        return {
            **base,
            "kl_per_step": self.fit.kl_per_step,
            "growth": self.fit.growth,
            "misfit": self.fit.misfit,
            "points": self.fit.points,
            "notes": self.fit.notes,
        }


def find_staleness(
    run: RunDirectory, responses: Responses, plan: SimulationPlan, watcher: Watcher
) -> Staleness:
    """The best there is: the plan's checkpoints, staleness.json of the run, its old_logprobs, nothing.

    Args:
        run: The run; checkpoints are scored into it.
        responses: Its responses.
        plan: What to simulate.
        watcher: Told of progress.

    Raises:
        ConfigError: A checkpoint that cannot be used.
        InconclusiveError: Checkpoints that carry no law of growth.
    """
    fit = measure_staleness(run, plan.checkpoints, watcher) if plan.checkpoints else read_staleness(run)
    if fit is not None:
        return Staleness(fit.model, _counted(fit.updates, responses), fit)
    return Staleness(measured_staleness(responses), None, None)


def _counted(updates: MeasuredUpdates | None, responses: Responses) -> MeasuredUpdates | None:
    """Updates of the tokens that count."""
    if updates is None:
        return None
    mask = responses.mask[: updates.mismatch.size]  # assumed signs are there twice
    if mask.all():
        return updates
    lengths = responses.lengths().astype(np.int64)[: updates.layout.num_sequences]
    return MeasuredUpdates.of(
        updates.steps,
        [row[mask] for row in updates.log_ratio],
        updates.mismatch[mask],
        np.concatenate([[0], np.cumsum(lengths)]),
        updates.layout.clusters,
        movement=None if updates.movement is None else [row[mask] for row in updates.movement],
    )
