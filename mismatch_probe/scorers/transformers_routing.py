"""Capture and replay of routed experts in transformers' MoE models.

transformers 5 gives every MoE block a router module whose forward returns (router logits, gate weights, expert ids). Both
capture and replay wrap that forward on the instance, so experts, shared experts, dense layers and attention stay untouched.
Replay forces the *ids*: the gate weights are recomputed from this model's own router logits at those ids, by the family's
own rule, because that is what a trainer with routing replay (R3) differentiates. Forcing the weights too is a control.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from mismatch_probe.errors import CaptureError, ConfigError

if TYPE_CHECKING:
    import torch


class RouterRule(Protocol):
    """What a family of routers does with its logits."""

    def gates(self, router: Any, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Gate weights [rows, top_k] of given experts.

        Args:
            router: The router module.
            logits: [rows, experts], as the router computed them.
            ids: int64 [rows, top_k].
        """
        ...

    def choice(self, router: Any, logits: torch.Tensor) -> torch.Tensor:
        """float32 [rows, experts]; the scores of which the largest top_k are chosen, -inf where a choice is ruled out."""
        ...


class SoftmaxRule:
    """Qwen2/3-MoE and kin, OLMoE, Mixtral: softmax over all experts, optionally renormalised over the chosen."""

    def gates(self, router: Any, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """See `RouterRule.gates`."""
        import torch

        weights = torch.softmax(logits, dim=-1, dtype=torch.float32).gather(-1, ids)
        # Mixtral always renormalises and has no such field.
        return (
            weights / weights.sum(dim=-1, keepdim=True)
            if getattr(router, "norm_topk_prob", True)
            else weights
        )

    def choice(self, router: Any, logits: torch.Tensor) -> torch.Tensor:
        """The logits: a softmax keeps their order."""
        return logits.float()


class ChosenSoftmaxRule(SoftmaxRule):
    """gpt-oss: softmax over the chosen experts' logits only."""

    def gates(self, router: Any, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """See `RouterRule.gates`."""
        import torch

        return torch.softmax(logits.gather(-1, ids), dim=-1)


class SigmoidGroupRule:
    """DeepSeek-V3, GLM-4.5 and their kin: sigmoid scores; chosen with a bias among the best groups, weighted without it."""

    def gates(self, router: Any, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Scores at the chosen experts, renormalised, times the scaling factor."""
        weights = logits.sigmoid().gather(-1, ids)
        if router.norm_topk_prob:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        return weights * router.routed_scaling_factor

    def choice(self, router: Any, logits: torch.Tensor) -> torch.Tensor:
        """Score plus bias; -inf outside the groups whose two best experts add up to most."""
        import torch

        biased = logits.float().sigmoid() + router.e_score_correction_bias
        grouped = biased.unflatten(-1, (router.num_group, -1))
        best = grouped.topk(2, dim=-1).values.sum(dim=-1).topk(router.topk_group, dim=-1).indices
        allowed = torch.zeros_like(grouped[..., 0], dtype=torch.bool).scatter(-1, best, value=True)
        return grouped.masked_fill(~allowed.unsqueeze(-1), float("-inf")).flatten(-2)


_RULES: dict[str, RouterRule] = {
    "Qwen2MoeTopKRouter": SoftmaxRule(),
    "Qwen3MoeTopKRouter": SoftmaxRule(),
    "Qwen3NextTopKRouter": SoftmaxRule(),
    "OlmoeTopKRouter": SoftmaxRule(),
    "MixtralTopKRouter": SoftmaxRule(),
    "GptOssTopKRouter": ChosenSoftmaxRule(),
    "Qwen3OmniMoeThinkerTextTopKRouter": SoftmaxRule(),
    "DeepseekV3TopkRouter": SigmoidGroupRule(),
    "DeepseekV32TopkRouter": SigmoidGroupRule(),
    "Glm4MoeTopkRouter": SigmoidGroupRule(),
    "Glm4MoeLiteTopkRouter": SigmoidGroupRule(),
    "GlmMoeDsaTopkRouter": SigmoidGroupRule(),
    "Dots1TopkRouter": SigmoidGroupRule(),
    "KimiLinearTopkRouter": SigmoidGroupRule(),
    "MiMoV2FlashTopkRouter": SigmoidGroupRule(),
}


@dataclass(frozen=True, slots=True)
class CapturedRoutes:
    """What the routers of one forward did, on the CPU; rows are the flattened (batch, position).

    Attributes:
        ids: int16 [rows, layers, top_k]; experts used, own or forced.
        gates: float32 [rows, layers, top_k]; the weight each of them got.
        margins: float32 [rows, layers]; the router's own score of its last choice minus that of the first expert left
            out, in units of `RouterRule.choice`; infinite where nothing was left out.
    """

    ids: torch.Tensor
    gates: torch.Tensor
    margins: torch.Tensor


@dataclass
class RouterHooks:
    """The hooked routers of one model, first MoE layer first.

    Attributes:
        num_layers: How many.
        forced: int64 [rows, layers, top_k], -1 rows keep the model's own choice; None forces nothing. Rows are the
            flattened (batch, position) of the next forward.
        forced_gates: float32 [rows, layers, top_k], the weights to give to `forced`; where a row is not finite, and
            where this is None, they are recomputed from the model's own logits.
        captured: Per layer, ids, gates and margins on the layer's device; filled by a forward while `capture` is set. They
            come to the CPU once a forward: to wait for the device at every layer would cost more than the layer.
        capture: Whether to keep them.
    """

    num_layers: int
    forced: torch.Tensor | None = None
    forced_gates: torch.Tensor | None = None
    capture: bool = False
    captured: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] | None = None

    @contextmanager
    def forward(
        self, *, capture: bool, forced: torch.Tensor | None, forced_gates: torch.Tensor | None = None
    ) -> Iterator[None]:
        """Sets what the next forward does, and clears it afterwards."""
        self.capture, self.forced, self.forced_gates, self.captured = capture, forced, forced_gates, {}
        try:
            yield
            if capture and len(self.captured) != self.num_layers:
                raise CaptureError(f"only {len(self.captured)} of {self.num_layers} routers ran")
        finally:
            self.capture, self.forced, self.forced_gates = False, None, None

    def take(self) -> CapturedRoutes:
        """What the last forward captured.

        Raises:
            CaptureError: Nothing was.
        """
        import torch

        if not self.captured:
            raise CaptureError("no routes were captured")
        layers = [self.captured[layer] for layer in range(self.num_layers)]
        # A model may be spread over devices.
        columns = (
            [tensor.to(column[0].device, non_blocking=True) for tensor in column]
            for column in zip(*layers, strict=True)
        )
        return CapturedRoutes(*(torch.stack(column, dim=1).cpu() for column in columns))


def router_modules(model: torch.nn.Module) -> list[Any]:
    """The routers of a transformers model, in layer order."""
    return [module for module in model.modules() if type(module).__name__ in _RULES]


def widen_routers(model: torch.nn.Module) -> None:
    """Makes every router multiply, normalise and choose in float32, as Megatron's `moe_router_dtype=fp32` does.

    The gate weights are rounded to the dtype of the hidden states, which is what the experts multiply in. Call it before
    `hook_routers`, which then sees the float32 logits.

    Raises:
        ConfigError: The model has no router of a kind that is known here.
    """
    routers = router_modules(model)
    if not routers:
        raise ConfigError(
            f"{type(model).__name__} has no router of a known kind",
            hint="leave out train.options.float32_router",
        )
    for router in routers:
        router.float()
        router.forward = _wide_forward(router.forward)


def _wide_forward(original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        logits, weights, ids = original(hidden.float(), *args, **kwargs)
        return logits, weights.to(hidden.dtype), ids

    return forward


def hook_routers(model: torch.nn.Module, *, num_moe_layers: int) -> RouterHooks:
    """Wraps every router of `model`.

    Raises:
        ConfigError: The model's routers are of a kind that is not known here.
    """
    routers = router_modules(model)
    if len(routers) != num_moe_layers:
        raise ConfigError(
            f"{type(model).__name__}: {len(routers)} of {num_moe_layers} routers are of a known kind",
            hint=f"known: {', '.join(sorted(_RULES))}; audit without routing (--set routing=false)",
        )
    hooks = RouterHooks(num_layers=len(routers))
    for layer, router in enumerate(routers):
        router.forward = _wrapped_forward(hooks, layer, router, _RULES[type(router).__name__])
    return hooks


def _wrapped_forward(hooks: RouterHooks, layer: int, router: Any, rule: RouterRule) -> Callable[..., Any]:
    import torch

    original = router.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        logits, weights, ids = original(*args, **kwargs)
        if hooks.forced is not None:
            wanted = hooks.forced[:, layer]
            replayed = is_route(wanted, logits.shape[-1])
            wanted = torch.where(replayed, wanted, 0)
            # Descending own score, as the model's own top-k has it: where both sides chose the same set, the
            # arithmetic is then the same to the last bit and the step to `train/replay` is exactly 0.
            order = logits.float().gather(-1, wanted).argsort(dim=-1, descending=True, stable=True)
            wanted = wanted.gather(-1, order)
            given = rule.gates(router, logits, wanted).to(weights.dtype)
            if hooks.forced_gates is not None:
                taken = hooks.forced_gates[:, layer].gather(-1, order)
                given = torch.where(
                    taken.isfinite().all(dim=-1, keepdim=True), taken.to(weights.dtype), given
                )
            ids = torch.where(replayed, wanted, ids)
            weights = torch.where(replayed, given, weights)
        if hooks.capture and hooks.captured is not None:
            # Copies: what comes next may work in place.
            hooks.captured[layer] = (
                ids.detach().to(dtype=torch.int16, copy=True),
                weights.detach().to(dtype=torch.float32, copy=True),
                top_margin(rule.choice(router, logits.detach()), ids.shape[-1]),
            )
        return logits, weights, ids

    return forward


def is_route(ids: torch.Tensor, num_experts: int) -> torch.Tensor:
    """Whether each row [rows, top_k] names top_k different experts, bool [rows, 1]; others are left to the router."""
    ranked = ids.sort(dim=-1).values
    distinct = (ranked[:, 1:] != ranked[:, :-1]).all(dim=-1, keepdim=True)
    return distinct & (ranked[:, :1] >= 0) & (ranked[:, -1:] < num_experts)


def top_margin(choice: torch.Tensor, top_k: int) -> torch.Tensor:
    """Score top_k minus score top_k + 1 of each row, float32 [rows]; infinite where there are no more experts."""
    import torch

    if choice.shape[-1] == top_k:
        return torch.full(choice.shape[:-1], float("inf"))
    best = choice.topk(top_k + 1, dim=-1).values
    return best[..., top_k - 1] - best[..., top_k]
