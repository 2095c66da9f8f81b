"""The `causes` section of a result: evidence from the tokens and both checkpoints, and what it comes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mismatch_probe.causes.checkpoints import compare_checkpoints
from mismatch_probe.causes.diagnosis import diagnose
from mismatch_probe.causes.evidence import Readings, gather_evidence
from mismatch_probe.preflight.pair import config_differences
from mismatch_probe.result import to_json
from mismatch_probe.trace.parts import read_json
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.trace import Trace

_LEGS = ("rollout/prefill", "train/replay", "train/reference", "train/repeat")


def causes_section(
    run: RunDirectory,
    trace: Trace,
    legs: Sequence[str],
    manifest: Mapping[str, Any],
    result: Mapping[str, Any],
) -> dict[str, Any]:
    """Gathers evidence and diagnoses.

    Tensors and constants are compared where the two sides were given two checkpoints on this machine; with one checkpoint
    for both there is nothing to compare on disk.

    Args:
        run: The run; `ablation.json` is read where it is there.
        trace: Its legs.
        legs: Legs that were read.
        manifest: Of the run.
        result: The sections `data_quality`, `provenance` and `routing`.
    """
    rollout = trace.rollout
    readings = Readings(
        rollout=rollout.logprobs,
        train=trace.logprobs("train/forward"),
        offsets=rollout.offsets,
        clusters=rollout.prompt_index,
        response_tokens=rollout.response_tokens,
        prompts=np.split(rollout.prompt_tokens, rollout.prompt_offsets[1:-1]),
        legs={leg: trace.logprobs(leg) for leg in _LEGS if leg in legs},
    )
    evidence: dict[str, Any] = {**to_json(gather_evidence(readings)), "weights": None, "constants": None}
    folders = _two_checkpoints(manifest)
    if folders is not None:
        evidence["weights"] = to_json(compare_checkpoints(*folders))
        evidence["constants"] = to_json(config_differences(*folders))
    path = run.path / "ablation.json"
    ablation = read_json(path) if path.is_file() else None
    diagnosis = diagnose({**result, "causes": {"evidence": evidence}}, ablation)
    return {"evidence": evidence, "diagnosis": to_json(diagnosis)}


def _two_checkpoints(manifest: Mapping[str, Any]) -> tuple[Path, Path] | None:
    """Folders of both sides' checkpoints, where there are two and both are here with safetensors."""
    path, name = manifest["model"].get("path"), manifest["config"]["train"]["model"]
    if path is None or name is None:
        return None
    rollout, train = Path(path), Path(name)
    if rollout.resolve() == train.resolve():
        return None
    here = all(any(folder.glob("*.safetensors")) for folder in (rollout, train))
    return (rollout, train) if here else None
