"""The manifest: what has to be known to repeat a run and to trust it."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from mismatch_probe import __version__
from mismatch_probe.preflight.environment import package_versions
from mismatch_probe.secrets import redact
from mismatch_probe.trace.schema import MATRIX, SCHEMA_VERSION

if TYPE_CHECKING:
    from mismatch_probe.config.model import ProbeConfig
    from mismatch_probe.stages.plan import RunPlan
    from mismatch_probe.trace.trace import Rollout


def new_manifest(plan: RunPlan, command: str) -> dict[str, Any]:
    """The manifest of a run that is about to start.

    Args:
        plan: What will be run.
        command: The command line, for the report.
    """
    facts = plan.facts
    config = plan.config.model_dump(mode="json")
    del config["matrix"]
    for side in ("rollout", "train"):
        config[side]["options"] = redact(config[side]["options"])
    return {
        "schema_version": SCHEMA_VERSION,
        "tool_version": __version__,
        "run_id": hashlib.sha256(
            f"{datetime.now(UTC).isoformat()}{plan.prompts.sha256}".encode()
        ).hexdigest()[:16],
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "config": config,
        "config_set": sorted(plan.config.model_fields_set - {"matrix"}),
        "legs": list(plan.legs),
        "routing": plan.routing,
        "keep_sets": plan.keep_sets,
        "num_parts": plan.num_parts,
        "num_sequences": plan.num_sequences,
        "versions": package_versions(),
        "model": {
            "name": plan.rollout_model.name,
            "path": str(plan.rollout_model.path),
            "note": plan.rollout_model.note,
            "is_random": plan.rollout_model.is_random,
            "architecture": facts.architecture,
            "num_parameters": facts.num_parameters,
            "num_layers": facts.num_layers,
            "moe_layers": list(facts.moe_layers),
            "num_moe_layers": facts.num_moe_layers,
            "num_experts": facts.num_experts,
            "top_k": facts.top_k,
            "vocab_size": facts.vocab_size,
            "weights_sha256": facts.weights_sha256,
            "weights_hash_kind": facts.weights_hash_kind,
        },
        "train_model": {"name": plan.train_model.name},
        "prompts": {
            "source": plan.prompts.source,
            "num_prompts": len(plan.prompts.prompts),
            "sha256": plan.prompts.sha256,
            "reward": plan.prompts.reward,
        },
        "seeds": {"sampling": plan.config.sampling.seed},
        "engines": {},
        "responses_sha256": None,
        "stages": {},
    }


def new_matrix_manifest(config: ProbeConfig, plan: RunPlan, command: str, cells: list[str]) -> dict[str, Any]:
    """The manifest of a matrix that is about to start; each cell has a manifest of its own.

    Args:
        config: What was asked for.
        plan: Of any cell: all have one model and the same prompts.
        command: The command line, for the report.
        cells: Folders of the cells.
    """
    cell = new_manifest(plan, command)
    asked = config.model_dump(mode="json")
    for section in (asked["rollout"], asked["train"], *asked["matrix"]["rollout"], *asked["matrix"]["train"]):
        section["options"] = redact(section["options"])
    kept = (
        "schema_version",
        "tool_version",
        "run_id",
        "created_at",
        "command",
        "num_sequences",
        "versions",
        "model",
        "prompts",
    )
    return {
        "kind": MATRIX,
        **{key: cell[key] for key in kept},
        "config": asked,
        "config_set": sorted(config.model_fields_set),
        "cells": cells,
    }


def responses_hash(rollout: Rollout) -> str:
    """Hash of all sampled ids and where each response ends."""
    digest = hashlib.sha256(np.ascontiguousarray(rollout.offsets, dtype="<i8").tobytes())
    digest.update(np.ascontiguousarray(rollout.response_tokens, dtype="<i4").tobytes())
    return digest.hexdigest()
