"""Runs a matrix: every cell is an ordinary run directory; the cells of one source share what it sampled."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from mismatch_probe.config.model import ProbeConfig
from mismatch_probe.errors import MismatchProbeError, RunDirectoryError
from mismatch_probe.result import read_result
from mismatch_probe.stages.events import Watcher
from mismatch_probe.stages.executor import open_executor
from mismatch_probe.stages.matrix_plan import Cell, plan_cells
from mismatch_probe.stages.matrix_summary import summarise_matrix
from mismatch_probe.stages.plan import RunPlan, make_plan
from mismatch_probe.stages.record_score import begin_manifest
from mismatch_probe.stages.whole_audit import audit_run
from mismatch_probe.trace.manifest import new_matrix_manifest
from mismatch_probe.trace.parts import write_json
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.schema import ROLLOUT_FOLDER, ROUTING_FOLDER, SCORES_FOLDER

Finish = Callable[[RunDirectory, dict[str, Any]], None]


def plan_matrix(config: ProbeConfig, watcher: Watcher) -> list[tuple[Cell, RunPlan]]:
    """Plans every cell, so that a pair that cannot do what is asked fails before any engine is started.

    Args:
        config: A configuration with `matrix`.
        watcher: Told of long work.

    Raises:
        MismatchProbeError: As `make_plan`; the message names the pair.
    """
    planned = []
    for cell in plan_cells(config):
        try:
            planned.append((cell, make_plan(cell.config, watcher)))
        except MismatchProbeError as error:
            raise type(error)(
                f"{cell.source} read by {cell.reader}: {error.message}", hint=error.hint
            ) from error
    return planned


def run_matrix(
    run: RunDirectory,
    config: ProbeConfig,
    planned: Sequence[tuple[Cell, RunPlan]],
    watcher: Watcher,
    *,
    command: str,
    resume: bool,
    finish: Finish,
) -> dict[str, Any]:
    """Audits every cell and writes matrix.json. The caller holds the run directory.

    A cell that fails is noted and the others go on; `resume` does what is not done.

    Args:
        run: The matrix's run directory.
        config: What was asked for.
        planned: Of `plan_matrix`.
        watcher: Told of progress.
        command: The command line, for the report.
        resume: Whether the matrix was begun before.
        finish: Called with each finished cell, to write its report.

    Returns:
        The content of matrix.json.

    Raises:
        RunDirectoryError: To resume, the run has to be a matrix of the same cells.
    """
    _begin(run, config, planned, command, resume=resume)
    outcomes: dict[str, dict[str, Any] | MismatchProbeError] = {}
    recorded: dict[str, RunDirectory] = {}
    for number, (cell, plan) in enumerate(planned, start=1):
        watcher.message(f"cell {number} of {len(planned)}: {cell.source} read by {cell.reader}")
        cell_run = RunDirectory(cell.config.out)
        try:
            outcomes[cell.folder] = _run_cell(
                cell, plan, cell_run, recorded.get(cell.source), watcher, command, finish
            )
        except MismatchProbeError as error:
            watcher.message(f"failed: {error.message}")
            outcomes[cell.folder] = error
            continue
        recorded.setdefault(cell.source, cell_run)
    matrix = summarise_matrix(run.read_manifest(), [cell for cell, _ in planned], outcomes)
    write_json(run.matrix_path, matrix)
    return matrix


def _begin(
    run: RunDirectory,
    config: ProbeConfig,
    planned: Sequence[tuple[Cell, RunPlan]],
    command: str,
    *,
    resume: bool,
) -> None:
    fresh = new_matrix_manifest(config, planned[0][1], command, [cell.folder for cell, _ in planned])
    if resume:
        held = run.read_manifest()
        if held.get("cells") != fresh["cells"]:
            raise RunDirectoryError(
                f"cannot resume {run.path}: it is not a matrix of these engines",
                hint="run again with --force",
            )
        return
    run.write_manifest(fresh)


def _run_cell(
    cell: Cell,
    plan: RunPlan,
    run: RunDirectory,
    recorded: RunDirectory | None,
    watcher: Watcher,
    command: str,
    finish: Finish,
) -> dict[str, Any]:
    begun = run.manifest_path.is_file()
    if begun and run.result_path.is_file() and run.read_manifest()["stages"].get("cell") == "done":
        return read_result(run.result_path)
    with run.claim(resume=begun):
        if not begun:
            begin_manifest(run, plan, command, resume=False)
        if recorded is not None:
            _borrow_rollout(recorded, run)
        ahead: tuple[Literal["record", "score"], ...] = (
            ("record", "score") if recorded is None else ("score",)
        )
        with open_executor(cell.config, () if begun else ahead) as execute:
            result = audit_run(
                run, plan, watcher, execute, command=command, resume=True, simulate=cell.is_pair
            )
        finish(run, result)
        manifest = run.read_manifest()
        manifest["stages"]["cell"] = "done"
        run.write_manifest(manifest)
    return result


def _borrow_rollout(held: RunDirectory, run: RunDirectory) -> None:
    """Gives a cell what another cell's engine sampled: the same tokens, to the bit."""
    for folder in (SCORES_FOLDER, ROUTING_FOLDER):
        _link_tree(held.path / folder / "rollout", run.path / folder / "rollout")
    # The rollout's parts come last: they are what says that a part is done.
    _link_tree(held.path / ROLLOUT_FOLDER, run.path / ROLLOUT_FOLDER)
    manifest = run.read_manifest()
    manifest["engines"]["rollout"] = held.read_manifest()["engines"]["rollout"]
    run.write_manifest(manifest)


def _link_tree(source: Path, target: Path) -> None:
    for file in sorted(source.rglob("part-*")) if source.is_dir() else ():
        place = target / file.relative_to(source)
        if place.exists():
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, place)
        except OSError:
            shutil.copyfile(file, place)
