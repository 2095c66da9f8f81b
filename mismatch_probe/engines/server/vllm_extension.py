"""What the probe's worker extension needs to be reached over HTTP: answers in JSON."""

from __future__ import annotations

import base64
from typing import Any

from mismatch_probe.engines.vllm_extension import ProbeExtension


class ServedProbeExtension(ProbeExtension):
    """`ProbeExtension` for `/collective_rpc`, which passes dictionaries of JSON and turns all else into text."""

    def probe_served_routes(self, sequence_id: int) -> dict[str, Any]:
        """Hands over what was captured of one sequence.

        Returns:
            `ids`: base64 of raw int16, `shape`: [tokens, MoE layers, top_k], -1 where nothing was captured; empty
            where nothing is known of the sequence.
        """
        routes = self._routes.pop(sequence_id, None)
        if routes is None:
            return {}
        return {"ids": base64.b64encode(routes.tobytes()).decode("ascii"), "shape": list(routes.shape)}

    def probe_served_ordered(self) -> dict[str, Any]:
        """Whether all ids captured so far stand in descending order of gate weight."""
        return {"ordered": self.probe_routing_is_ordered()}
