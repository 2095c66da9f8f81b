"""One audit from plan to result.json; the same for a pair and for each cell of a matrix."""

from __future__ import annotations

from typing import Any

from mismatch_probe.stages.events import Watcher
from mismatch_probe.stages.executor import Execute
from mismatch_probe.stages.measure import measure_run
from mismatch_probe.stages.plan import RunPlan
from mismatch_probe.stages.record_score import begin_manifest, planned_stages, record, score
from mismatch_probe.stages.simulation import STAGE as SIMULATE
from mismatch_probe.stages.simulation import simulate_run
from mismatch_probe.stages.simulation_plan import SimulationPlan
from mismatch_probe.trace.run_directory import RunDirectory


def audit_run(
    run: RunDirectory,
    plan: RunPlan,
    watcher: Watcher,
    execute: Execute,
    *,
    command: str,
    resume: bool,
    simulate: bool = True,
) -> dict[str, Any]:
    """Records, scores, measures and simulates; does only what is not on disk yet. The caller holds the run directory.

    Args:
        run: Where to.
        plan: What.
        watcher: Told of progress.
        execute: Where the engines run.
        command: The command line, for the report.
        resume: Whether the run was begun before.
        simulate: Whether corrections are simulated.

    Returns:
        The content of result.json.

    Raises:
        MismatchProbeError: What a stage raised.
    """
    begin_manifest(run, plan, command, resume=resume)
    legs = (*plan.rollout_legs(), *plan.train_legs())
    watcher.stages_planned([*planned_stages(run, plan, legs), *([(SIMULATE, None)] if simulate else [])])
    record(run, plan, watcher, execute)
    score(run, plan, watcher, execute)
    watcher.message("measuring")
    result = measure_run(run, plan.config.bars)
    return simulate_run(run, SimulationPlan(), watcher) if simulate else result
