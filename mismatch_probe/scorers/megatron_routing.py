"""Capture and replay of experts in megatron-core, through its own `RouterReplay`.

megatron-core keeps one `RouterReplay` a router: it records the ids that top-k chose, or gives given ids the place of top-k,
after which the router goes on as ever, so gate weights come from its own logits. Rows of a forward are (column, line) there,
(line, column) here. Rows that name no experts get the router's own, since `RouterReplay` replays all rows or none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mismatch_probe.scorers.transformers_routing import RouterHooks, is_route, top_margin

if TYPE_CHECKING:
    import torch


def hook_megatron_routers(model: Any) -> RouterHooks:
    """Ties the `RouterReplay` of every router of a `GPTModel` to one object.

    Args:
        model: Built with `moe_enable_routing_replay`.
    """
    routers = [layer.mlp.router for layer in model.decoder.layers if hasattr(layer.mlp, "router")]
    hooks = RouterHooks(len(routers))
    for layer, router in enumerate(routers):
        router.routing = _wrapped_routing(hooks, layer, router)
    return hooks


def _wrapped_routing(hooks: RouterHooks, layer: int, router: Any) -> Callable[..., Any]:
    import torch
    from megatron.core.transformer.moe.router_replay import RouterReplayAction

    original = router.routing

    def routing(logits: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        columns, lines, experts = logits.shape
        scores = logits.detach().reshape(-1, experts)

        def theirs(rows: torch.Tensor) -> torch.Tensor:
            return rows[:, layer].unflatten(0, (lines, columns)).transpose(0, 1).flatten(0, 1)

        def ours(rows: torch.Tensor) -> torch.Tensor:
            return rows.unflatten(0, (columns, lines)).transpose(0, 1).flatten(0, 1).cpu()

        replay = router.router_replay
        given = None
        if hooks.forced is None:
            replay.set_router_replay_action(RouterReplayAction.RECORD)
            probabilities, chosen = original(logits, *args, **kwargs)
            ids = replay.get_recorded_indices()
        else:
            wanted = theirs(hooks.forced)
            named = is_route(wanted, experts)
            wanted = torch.where(named, wanted, scores.topk(router.topk, dim=-1).indices)
            # In descending order of own score, as top-k has it, so that a replay of the own choice changes nothing.
            order = scores.gather(-1, wanted).argsort(dim=-1, descending=True, stable=True)
            ids = wanted.gather(-1, order)
            replay.set_target_indices(ids)
            replay.set_router_replay_action(RouterReplayAction.REPLAY_FORWARD)
            probabilities, chosen = original(logits, *args, **kwargs)
            if hooks.forced_gates is not None:
                given = theirs(hooks.forced_gates).gather(-1, order)
        replay.clear_indices()
        replay.clear_router_replay_action()
        gates = probabilities.gather(-1, ids)
        if given is not None:
            finite = given.isfinite().all(dim=-1, keepdim=True)
            gates = torch.where(finite, given.to(gates.dtype), gates)
            probabilities = probabilities.scatter(-1, ids, gates)
        if hooks.capture and hooks.captured is not None:
            margins = top_margin(scores.float(), router.topk)
            hooks.captured[layer] = (ours(ids).to(torch.int16), ours(gates).float(), ours(margins))
        return probabilities, chosen

    return routing
