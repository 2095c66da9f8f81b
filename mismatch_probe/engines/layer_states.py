"""Hidden states of a rollout engine: what an engine must offer so that a wrong layer can be located."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from mismatch_probe.engines.protocol import FixedSequence, RolloutEngine


@runtime_checkable
class LayerStateEngine(RolloutEngine, Protocol):
    """A rollout engine that hands over what goes into and comes out of its modules."""

    def write_layer_states(self, sequences: Sequence[FixedSequence], folder: Path) -> None:
        """Feeds each sequence in one prefill and writes `<sequence_id>.safetensors` into a folder.

        Each file holds, in the engine's dtype and as `layer_sites.key` names them: input and output of every site
        [prompt + response, width], of every layer (`layer`, the residual stream), `final_norm.in`, `final_norm.out`,
        `embedding.out`, and `routes` int16 [prompt + response, MoE layers, top_k] where the engine was started with routing.

        Args:
            sequences: What to feed.
            folder: Where to write; it exists.

        Raises:
            CaptureError: The model has no decoder layers of a known kind, or tokens are missing.
        """
        ...
