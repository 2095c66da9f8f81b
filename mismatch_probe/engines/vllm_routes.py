"""Routes that were captured in vLLM's worker, as arrays, and whether they are whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mismatch_probe.engines.protocol import EngineSpec
from mismatch_probe.errors import CaptureError


class VllmRoutes:
    """The part of vLLM's engine that fetches what the hooks on the routers captured."""

    _llm: Any
    _spec: EngineSpec
    _native_routing: bool

    def _take_hooked_routes(self) -> dict[int, npt.NDArray[np.int16]]:
        """Expert ids by sequence id, int16 [tokens, MoE layers, top_k]."""
        return self._take("probe_take_routing", np.int16)

    def _take_hooked_gates(self) -> dict[int, npt.NDArray[np.float16]]:
        """Their gate weights, float16 [tokens, MoE layers, top_k]; empty where the routers do not show them."""
        return self._take("probe_take_gates", np.float16)

    def _take(self, method: str, dtype: Any) -> dict[int, npt.NDArray[Any]]:
        if not self._spec.routing or self._native_routing:
            return {}
        taken = self._llm.collective_rpc(method)[0]
        return {
            int(sequence): np.frombuffer(raw, dtype=dtype).reshape(shape)
            for sequence, (raw, shape) in taken.items()
        }


def complete_gates(gates: npt.NDArray[np.floating] | None, num_fed: int) -> npt.NDArray[np.floating] | None:
    """Gate weights of every fed token, or None where one is missing: unlike routes they are not needed.

    Args:
        gates: As captured, [tokens, MoE layers, top_k], or None; rows after the last fed token are cut off.
        num_fed: Fed tokens.
    """
    if gates is None or len(gates) < num_fed or not np.isfinite(gates[:num_fed]).all():
        return None
    return gates[:num_fed]


def complete_routes(
    routes: npt.NDArray[Any] | None, shape: tuple[int, int, int], *, sequence_id: int
) -> npt.NDArray[np.int16]:
    """Every fed token, every layer, no sentinel; anything less is an error, never a silent agreement.

    Args:
        routes: Expert ids as captured, [tokens, MoE layers, top_k], or None; rows after the last fed token are cut off.
        shape: (fed tokens, MoE layers, top_k) that the sequence must have.
        sequence_id: For the message.

    Raises:
        CaptureError: Something is missing; the message says how much.
    """
    hint = (
        "audit without routing (--set routing=false), or turn off what skips tokens (prefix caching, graphs)"
    )
    num_fed = shape[0]
    if routes is None or routes.shape[0] < num_fed:
        got = 0 if routes is None else routes.shape[0]
        raise CaptureError(
            f"sequence {sequence_id}: routes of {got} of {num_fed} tokens were captured", hint=hint
        )
    routes = routes[:num_fed]
    if routes.shape != shape:
        raise CaptureError(
            f"sequence {sequence_id}: routes have {routes.shape[1:]} layers x experts, the model has {shape[1:]}",
            hint=hint,
        )
    missing = int((routes < 0).sum())
    if missing:
        raise CaptureError(
            f"sequence {sequence_id}: {missing} of {routes.size} expert ids are missing", hint=hint
        )
    return routes.astype(np.int16)
