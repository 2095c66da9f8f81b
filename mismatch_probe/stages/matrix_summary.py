"""What a matrix says: one row a sampler, one column a reader, and how the readers differ among themselves."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from mismatch_probe.errors import EXIT_DRIFT, InconclusiveError, MismatchProbeError
from mismatch_probe.result import RESULT_SCHEMA_VERSION, to_json
from mismatch_probe.stages.matrix_plan import Cell
from mismatch_probe.stats.step_summary import summarise_step
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.trace import Trace

_TOKEN = ("k1", "k3", "mean_abs_log_ratio", "max_abs_log_ratio")
CANNOT_SAMPLE = "a training-side forward samples nothing: its tokens cannot be read by others"


def summarise_matrix(
    manifest: Mapping[str, Any],
    cells: Sequence[Cell],
    outcomes: Mapping[str, Mapping[str, Any] | MismatchProbeError],
) -> dict[str, Any]:
    """Collects the results of the cells.

    Args:
        manifest: Of the matrix.
        cells: All cells, by source.
        outcomes: By folder, the cell's result.json or why it has none.

    Returns:
        The content of matrix.json: `cells` (by source and reader), `readers` (by source, every pair of readers on the
        source's tokens), `directions` (pairs of rollout engines measured both ways), `exit_code`.
    """
    yardsticks = _yardsticks(cells, outcomes)
    rows = [_cell(cell, outcomes[cell.folder], yardsticks.get(cell.source)) for cell in cells]
    sources = list(dict.fromkeys(cell.source for cell in cells))
    readers = list(dict.fromkeys(cell.reader for cell in cells))
    return {
        "schema_version": RESULT_SCHEMA_VERSION,
        "kind": "matrix",
        "created_at": manifest["created_at"],
        "command": manifest["command"],
        "run_id": manifest["run_id"],
        "tool_version": manifest["tool_version"],
        "model": manifest["model"],
        "sampling": manifest["config"]["sampling"],
        "num_sequences": manifest["num_sequences"],
        "sources": sources,
        "readers": readers,
        "no_row": {reader: CANNOT_SAMPLE for reader in readers if reader not in sources},
        "cells": rows,
        "between_readers": {
            source: _between([cell for cell in cells if cell.source == source], outcomes)
            for source in sources
        },
        "directions": _directions(rows, sources),
        "exit_code": _exit_code(rows),
    }


def _yardsticks(
    cells: Sequence[Cell], outcomes: Mapping[str, Mapping[str, Any] | MismatchProbeError]
) -> dict[str, float]:
    """By source, what rounding does to a trainer on its tokens: K3 of train/forward against float32, the smallest.

    Every reader is held against it. A reader's own float32 says nothing where the reader itself is what is wrong: a
    quantised cache is far from float32 and from everybody else.
    """
    found: dict[str, float] = {}
    for cell in cells:
        outcome = outcomes[cell.folder]
        if not cell.is_pair or isinstance(outcome, MismatchProbeError):
            continue
        rounding = (outcome["legs"]["floor"]["rounding_k3"] or {}).get("value")
        if rounding:
            found[cell.source] = min(rounding, found.get(cell.source, rounding))
    return found


def _cell(
    cell: Cell, outcome: Mapping[str, Any] | MismatchProbeError, yardstick: float | None
) -> dict[str, Any]:
    place = {"source": cell.source, "reader": cell.reader, "run": cell.folder}
    if isinstance(outcome, MismatchProbeError):
        return {**place, "status": "failed", "reason": outcome.message, "hint": outcome.hint}
    floor = outcome["legs"]["floor"]
    k3 = outcome["token"]["k3"]["value"]
    over = k3 / yardstick if k3 is not None and yardstick else None
    verdict, exit_code = outcome["verdict"], outcome["exit_code"]
    if verdict == "pass" and over is not None and over > outcome["bars"]["k3_over_rounding"]:
        verdict, exit_code = "drift", EXIT_DRIFT
    return {
        **place,
        "status": "done",
        "verdict": verdict,
        "exit_code": exit_code,
        "rounding_k3": yardstick,
        "over_rounding": over,
        "over_rounding_bar": outcome["bars"]["k3_over_rounding"],
        "sentence": outcome["verdict_sentence"],
        "findings": [finding["code"] for finding in outcome["findings"]],
        **{key: outcome["token"][key] for key in _TOKEN},
        "log_weight_std": outcome["sequence"]["log_weight"]["std"],
        "floor_k3": floor["k3"],
        "floor_exact": floor["exact"],
        "total_over_floor": floor["total_over_floor"],
        "num_tokens": outcome["provenance"]["num_tokens"],
        "rollout": outcome["provenance"]["rollout"],
        "train": outcome["provenance"]["train"],
    }


def _between(
    cells: Sequence[Cell], outcomes: Mapping[str, Mapping[str, Any] | MismatchProbeError]
) -> list[dict[str, Any]]:
    """Every pair of readers on the tokens of one source: second minus first."""
    done = [cell for cell in cells if not isinstance(outcomes[cell.folder], MismatchProbeError)]
    traces = {}
    for cell in done:
        run = RunDirectory(cell.config.out)
        traces[cell.reader] = Trace(run, int(run.read_manifest()["num_parts"]))
    rows = []
    for first, second in itertools.combinations(traces, 2):
        rollout = traces[first].rollout
        try:
            difference = traces[second].logprobs("train/forward") - traces[first].logprobs("train/forward")
            summary = to_json(summarise_step(difference, rollout.offsets, rollout.prompt_index))
        except InconclusiveError as error:
            rows.append({"from": first, "to": second, "reason": error.message})
            continue
        rows.append({"from": first, "to": second, **summary})
    return rows


def _directions(rows: Sequence[Mapping[str, Any]], sources: Sequence[str]) -> list[dict[str, Any]]:
    """Pairs of rollout engines in both directions: what one never samples shows only in the other's tokens."""
    k3 = {(row["source"], row["reader"]): row["k3"] for row in rows if row["status"] == "done"}
    return [
        {
            "first": first,
            "second": second,
            "first_sampled": k3[first, second],
            "second_sampled": k3[second, first],
        }
        for first, second in itertools.combinations(sources, 2)
        if (first, second) in k3 and (second, first) in k3
    ]


def _exit_code(rows: Sequence[Mapping[str, Any]]) -> int:
    """2 where a cell failed, else 1 where one drifts, else 3 where one is inconclusive, else 0."""
    if any(row["status"] == "failed" for row in rows):
        return 2
    codes = {int(row["exit_code"]) for row in rows}
    return next((code for code in (1, 3) if code in codes), 0)
