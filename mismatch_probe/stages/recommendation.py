"""Recommend: the section `recommendation` of a measured run, for a goal."""

from __future__ import annotations

from typing import Any

from mismatch_probe.recommendation import DEFAULT_GOAL, recommend
from mismatch_probe.result import read_result, to_json
from mismatch_probe.stages.weights_section import read_responses
from mismatch_probe.trace.parts import write_json
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.trace import Trace


def recommend_run(run: RunDirectory, *, goal: str | None = None) -> dict[str, Any]:
    """Works the recommendation of a measured run out and writes it into result.json.

    All other sections are taken as they are, an ablation that was made since included. The caller holds the run directory.

    Args:
        run: A measured run.
        goal: One of `mismatch_probe.recommendation.GOALS`; None keeps the run's own.

    Returns:
        The content of result.json.

    Raises:
        RunDirectoryError: The run was not measured, or a part is missing or damaged.
        ConfigError: An unknown goal.
    """
    result = read_result(run.result_path)
    own = (result.get("recommendation") or {}).get("goal")
    responses = None
    if result["data_quality"]["unusable"] is None:
        num_parts = int(run.read_manifest()["num_parts"])
        responses = read_responses(run, Trace(run, num_parts), num_parts)
    result["recommendation"] = to_json(recommend(result, responses, goal=goal or own or DEFAULT_GOAL))
    write_json(run.result_path, result)
    return result
