"""Capture and replay of routed experts in transformers' MoE models.

transformers 5 gives every MoE block a router module whose forward returns (router logits, gate weights, expert ids). Both
capture and replay wrap that forward on the instance, so experts, shared experts and attention stay untouched. Replay forces
only the *ids*: the gate weights are recomputed from this model's own router logits at those ids, by the family's own rule,
because that is what a trainer with routing replay (R3) differentiates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mismatch_probe.errors import CaptureError, ConfigError

if TYPE_CHECKING:
    import torch

GateRule = Callable[[Any, "torch.Tensor", "torch.Tensor"], "torch.Tensor"]
"""(router module, router logits [rows, experts], ids [rows, top_k]) -> gate weights [rows, top_k] in float32."""


def _softmax_gate(router: Any, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Qwen2/3-MoE, Qwen3-Next, OLMoE, Mixtral: softmax over all experts, optionally renormalised over the chosen."""
    import torch

    weights = torch.softmax(logits, dim=-1, dtype=torch.float32).gather(-1, ids)
    # Mixtral always renormalises and has no such field.
    return weights / weights.sum(dim=-1, keepdim=True) if getattr(router, "norm_topk_prob", True) else weights


def _chosen_softmax_gate(router: Any, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """gpt-oss: softmax over the chosen experts' logits only."""
    import torch

    return torch.softmax(logits.gather(-1, ids), dim=-1)


def _sigmoid_gate(router: Any, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """DeepSeek-V3: sigmoid scores at the chosen experts, renormalised, times the scaling factor."""
    weights = logits.sigmoid().gather(-1, ids)
    if router.norm_topk_prob:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    return weights * router.routed_scaling_factor


_GATE_RULES: dict[str, GateRule] = {
    "Qwen2MoeTopKRouter": _softmax_gate,
    "Qwen3MoeTopKRouter": _softmax_gate,
    "Qwen3NextTopKRouter": _softmax_gate,
    "OlmoeTopKRouter": _softmax_gate,
    "MixtralTopKRouter": _softmax_gate,
    "GptOssTopKRouter": _chosen_softmax_gate,
    "DeepseekV3TopkRouter": _sigmoid_gate,
}


@dataclass
class RouterHooks:
    """The hooked routers of one model, first MoE layer first.

    Attributes:
        forced: int64 [rows, layers, top_k], -1 rows keep the model's own choice; None forces nothing. Rows are the
            flattened (batch, position) of the next forward.
        captured: Per layer, int16 [rows, top_k] on the CPU; filled by a forward while `capture` is set.
        capture: Whether to keep ids.
    """

    num_layers: int
    forced: torch.Tensor | None = None
    capture: bool = False
    captured: dict[int, torch.Tensor] | None = None

    @contextmanager
    def forward(self, *, capture: bool, forced: torch.Tensor | None) -> Iterator[None]:
        """Sets what the next forward does, and clears it afterwards."""
        self.capture, self.forced, self.captured = capture, forced, {}
        try:
            yield
            if capture and len(self.captured) != self.num_layers:
                raise CaptureError(f"only {len(self.captured)} of {self.num_layers} routers ran")
        finally:
            self.capture, self.forced = False, None

    def take(self) -> torch.Tensor:
        """What the last forward captured, int16 [rows, layers, top_k]."""
        import torch

        if not self.captured:
            raise CaptureError("no routes were captured")
        return torch.stack([self.captured[layer] for layer in range(self.num_layers)], dim=1)


def router_modules(model: torch.nn.Module) -> list[Any]:
    """The routers of a transformers model, in layer order."""
    return [module for module in model.modules() if type(module).__name__ in _GATE_RULES]


def hook_routers(model: torch.nn.Module, *, num_moe_layers: int) -> RouterHooks:
    """Wraps every router of `model`.

    Raises:
        ConfigError: The model's routers are of a kind that is not known here.
    """
    routers = router_modules(model)
    if len(routers) != num_moe_layers:
        raise ConfigError(
            f"{type(model).__name__}: {len(routers)} of {num_moe_layers} routers are of a known kind",
            hint=f"known: {', '.join(sorted(_GATE_RULES))}; audit without routing (--set routing=false)",
        )
    hooks = RouterHooks(num_layers=len(routers))
    for layer, router in enumerate(routers):
        router.forward = _wrapped_forward(hooks, layer, router, _GATE_RULES[type(router).__name__])
    return hooks


def _wrapped_forward(hooks: RouterHooks, layer: int, router: Any, rule: GateRule) -> Callable[..., Any]:
    import torch

    original = router.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        logits, weights, ids = original(*args, **kwargs)
        if hooks.forced is not None:
            wanted = hooks.forced[:, layer]
            replayed = (wanted >= 0).all(dim=-1, keepdim=True)
            wanted = wanted.clamp(min=0)
            # Descending own score, as the model's own top-k has it: where both sides chose the same set, the
            # arithmetic is then the same to the last bit and the step to `train/replay` is exactly 0.
            order = logits.float().gather(-1, wanted).argsort(dim=-1, descending=True, stable=True)
            wanted = wanted.gather(-1, order)
            ids = torch.where(replayed, wanted, ids)
            weights = torch.where(replayed, rule(router, logits, wanted).to(weights.dtype), weights)
        if hooks.capture and hooks.captured is not None:
            hooks.captured[layer] = ids.detach().to(device="cpu", dtype=torch.int16)
        return logits, weights, ids

    return forward
