"""Weight sync of a running vLLM: its own update path, and its state against that of another engine."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from mismatch_probe.engines.refit import WeightComparison, WeightDifference
from mismatch_probe.errors import CaptureError


def load_weights(llm: Any, checkpoint: Path) -> None:
    """Loads a checkpoint through `reload_weights`, then drops the prefix cache: its keys are of the old weights.

    Args:
        llm: A `vllm.LLM`.
        checkpoint: Folder in the Hugging Face layout.

    Raises:
        CaptureError: vLLM refused; its own sentence is in the message.
    """
    try:
        llm.collective_rpc("reload_weights", kwargs={"weights_path": str(checkpoint)})
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CaptureError(
            f"vLLM refused to load {checkpoint.name} into the running engine: {type(error).__name__}: {first}",
            hint="the whole message is in the log",
        ) from error
    if not llm.reset_prefix_cache():
        raise CaptureError("vLLM did not reset its prefix cache after the weights were loaded")


def save_state(llm: Any, folder: Path) -> None:
    """Writes every worker's weights as it holds them."""
    llm.collective_rpc("probe_save_weights", args=(str(folder),))


def compare_state(llm: Any, folder: Path) -> WeightComparison:
    """Compares every worker's weights with what `save_state` wrote; with several workers names carry the rank."""
    workers = llm.collective_rpc("probe_compare_weights", args=(str(folder),))
    differences: list[WeightDifference] = []
    unread: list[str] = []
    for rank, worker in enumerate(workers):
        prefix = f"rank {rank}: " if len(workers) > 1 else ""
        rows = [WeightDifference(**{**row, "shape": tuple(row["shape"])}) for row in worker["differences"]]
        differences += [dataclasses.replace(row, name=prefix + row.name) for row in rows]
        unread += [prefix + name for name in worker["unread"]]
    return WeightComparison(sum(worker["compared"] for worker in workers), tuple(unread), tuple(differences))
