"""Weight sync of a running vLLM: its own update path, and its state against that of another engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mismatch_probe.engines.refit import StateDigest, WeightComparison, WeightDifference
from mismatch_probe.errors import CaptureError


class VllmRefit:
    """The part of vLLM's engine that loads weights while it runs, see `mismatch_probe.engines.refit.RefittableEngine`."""

    _llm: Any

    def load_weights(self, checkpoint: Path) -> None:
        """Loads a checkpoint through `reload_weights`, then drops the prefix cache: its keys are of the old weights.

        Args:
            checkpoint: Folder in the Hugging Face layout.

        Raises:
            CaptureError: vLLM refused; its own sentence is in the message.
        """
        try:
            self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(checkpoint)})
        except Exception as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CaptureError(
                f"vLLM refused to load {checkpoint.name} into the running engine: {type(error).__name__}: {first}",
                hint="the whole message is in the log",
            ) from error
        if not self._llm.reset_prefix_cache():
            raise CaptureError("vLLM did not reset its prefix cache after the weights were loaded")

    def save_state(self, folder: Path) -> None:
        """Writes every worker's weights as it holds them."""
        self._llm.collective_rpc("probe_save_weights", args=(str(folder),))

    def compare_state(self, folder: Path) -> WeightComparison:
        """Compares every worker's weights with what `save_state` wrote; with several workers names carry the rank."""
        workers = self._llm.collective_rpc("probe_compare_weights", args=(str(folder),))
        differences: list[WeightDifference] = []
        unread: list[str] = []
        for prefix, worker in _named(workers):
            rows = [
                WeightDifference(**{**row, "shape": tuple(row["shape"])}) for row in worker["differences"]
            ]
            differences += [dataclasses.replace(row, name=prefix + row.name) for row in rows]
            unread += [prefix + name for name in worker["unread"]]
        return WeightComparison(
            sum(worker["compared"] for worker in workers), tuple(unread), tuple(differences)
        )

    def digest_state(self) -> StateDigest:
        """Digests of every worker's weights; with several workers names carry the rank."""
        tensors: dict[str, tuple[tuple[int, ...], str]] = {}
        unread: list[str] = []
        for prefix, worker in _named(self._llm.collective_rpc("probe_digest_weights")):
            tensors |= {
                prefix + name: (tuple(shape), value) for name, (shape, value) in worker["tensors"].items()
            }
            unread += [prefix + name for name in worker["unread"]]
        return StateDigest(tensors, tuple(unread))


def _named(workers: list[Any]) -> Iterator[tuple[str, Any]]:
    for rank, worker in enumerate(workers):
        yield f"rank {rank}: " if len(workers) > 1 else "", worker
