"""Export: a training config of a measured run, with what it does to the run's own tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mismatch_probe.errors import MismatchProbeError
from mismatch_probe.export import ExportedConfig, export_config
from mismatch_probe.result import read_result
from mismatch_probe.simulate.responses import Responses
from mismatch_probe.stages.weights_section import read_responses
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.trace import Trace


def export_run(
    run: RunDirectory, to: str, *, method: str | None = None, goal: str | None = None, force: bool = False
) -> ExportedConfig:
    """A training config that fits a measured run; see `mismatch_probe.export.export_config`.

    Where only result.json is left of the run, or its tokens cannot be weighed, a note says that its effect is not known.

    Raises:
        RunDirectoryError: The run was not measured.
        ConfigError: As of `export_config`.
        InconclusiveError: The run's verdict is inconclusive.
    """
    result = read_result(run.result_path)
    responses, reason = None, None
    try:
        responses = _responses(run, result)
    except MismatchProbeError as error:
        reason = error.message
    exported = export_config(result, to, method=method, goal=goal, force=force, responses=responses)
    if reason is None:
        return exported
    note = f"what this config does to the run's tokens is not known: {reason}"
    return replace(exported, notes=(*exported.notes, note))


def _responses(run: RunDirectory, result: Mapping[str, Any]) -> Responses | None:
    """The run's tokens; None where they were found to be no log-probabilities, which result.json says already."""
    if (result.get("data_quality") or {}).get("unusable") is not None:
        return None
    num_parts = int(run.read_manifest()["num_parts"])
    return read_responses(run, Trace(run, num_parts), num_parts)
