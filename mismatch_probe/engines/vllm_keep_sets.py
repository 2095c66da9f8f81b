"""Which ids vLLM's truncated sampling could have drawn, recorded in its worker and fetched from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mismatch_probe.errors import CaptureError
from mismatch_probe.trace.keep_sets import KeepSet

if TYPE_CHECKING:
    import torch

_MAX_HELD_IDS = 1 << 28


class KeepSetProbe:
    """Mix-in of vLLM's worker: the support of every draw, by sequence and response position."""

    _keeping = False
    _kept: dict[int, dict[int, Any]]
    _num_kept = 0

    def probe_keep_sets(self, keep: bool) -> None:
        """Begins or ends recording."""
        self._keeping, self._kept, self._num_kept = keep, {}, 0

    def probe_take_keep_sets(self) -> dict[int, tuple[bytes, bytes]] | None:
        """Hands over what was recorded since the last call.

        Returns:
            By sequence id: raw int32 ids and raw int64 offsets; None where it was more than is held at once.
        """
        kept, overflow = self._kept, self._num_kept > _MAX_HELD_IDS
        self._kept, self._num_kept = {}, 0
        if overflow:
            return None
        taken = {}
        for sequence, by_position in kept.items():
            rows = [by_position[position] for position in sorted(by_position)]
            offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
            taken[sequence] = (np.concatenate(rows).astype(np.int32).tobytes(), offsets.tobytes())
        return taken

    def _keep_support(self, truncated: torch.Tensor, rows: list[tuple[int, int, int]]) -> None:
        """Records the ids above -inf.

        Args:
            truncated: [batch, vocabulary] logits after top-k and top-p.
            rows: (row, sequence id, response position) of the draws to keep.
        """
        for row, sequence, position in rows:
            if self._num_kept > _MAX_HELD_IDS:
                return
            ids = truncated[row].isfinite().nonzero()[:, 0].cpu().numpy().astype(np.int32)
            # A draw may be made twice (a prompt in pieces, a pre-empted request): the last one counts.
            self._kept.setdefault(sequence, {})[position] = ids
            self._num_kept += len(ids)


def fetch_keep_sets(llm: Any) -> dict[int, KeepSet]:
    """The keep-sets of what was sampled since the last call, by sequence id.

    Args:
        llm: `vllm.LLM` with `KeepSetProbe` in its worker.

    Raises:
        CaptureError: They are more than the worker holds.
    """
    taken = llm.collective_rpc("probe_take_keep_sets")[0]
    if taken is None:
        raise CaptureError(
            f"truncated sampling kept more than {_MAX_HELD_IDS:,} ids in one part",
            hint="lower part_sequences or top_p, or set sampling.keep_sets=false",
        )
    return {
        int(sequence): KeepSet(np.frombuffer(ids, np.int32), np.frombuffer(offsets, np.int64))
        for sequence, (ids, offsets) in taken.items()
    }
