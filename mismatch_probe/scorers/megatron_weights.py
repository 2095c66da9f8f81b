"""From a transformers checkpoint to megatron-core: which models can be mapped, their configuration, their weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mismatch_probe.errors import ConfigError

if TYPE_CHECKING:
    import torch

MODEL_TYPES = ("llama", "qwen2", "qwen3", "qwen3_moe")
# The smoothing that megatron-core's RoPE scaling has built in.
_LLAMA3_SMOOTHING = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_HINT = f"the megatron scorer maps {', '.join(MODEL_TYPES)}; score others with --train transformers"


def require_mappable(model_path: Path) -> None:
    """Whether a checkpoint's architecture can be mapped; reads config.json alone.

    Raises:
        ConfigError: It cannot, or it has something that the mapping does not carry over.
    """
    config = json.loads((model_path / "config.json").read_text("utf-8"))
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        raise ConfigError(f"megatron-core weights cannot be made from a {kind} checkpoint", hint=_HINT)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaling = rope.get("rope_type") or rope.get("type") or "default"
    other_smoothing = scaling == "llama3" and any(
        rope.get(name) != value for name, value in _LLAMA3_SMOOTHING.items()
    )
    refused = {
        "a hidden_act other than silu": config.get("hidden_act", "silu") != "silu",
        "sliding-window attention": bool(config.get("use_sliding_window")),
        "biases in the attention's output": kind != "qwen2" and bool(config.get("attention_bias")),
        "biases in the feed-forward": bool(config.get("mlp_bias")),
        f"{scaling} RoPE scaling": scaling not in ("default", "llama3") or other_smoothing,
        "partial RoPE": rope.get("partial_rotary_factor", 1.0) != 1.0,
    }
    found = [what for what, there in refused.items() if there]
    if found:
        raise ConfigError(f"the checkpoint has {', '.join(found)}, which is not mapped", hint=_HINT)


def transformer_arguments(config: Any) -> dict[str, Any]:
    """Keywords of megatron-core's `TransformerConfig` for a transformers configuration.

    Args:
        config: Of a model that `require_mappable` accepts.
    """
    import torch

    arguments: dict[str, Any] = {
        "num_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "num_query_groups": config.num_key_value_heads,
        "kv_channels": _head_dim(config),
        "ffn_hidden_size": config.intermediate_size,
        "add_bias_linear": False,
        "add_qkv_bias": config.model_type == "qwen2",
        "qk_layernorm": config.model_type.startswith("qwen3"),
        "gated_linear_unit": True,
        "activation_func": torch.nn.functional.silu,
        "normalization": "RMSNorm",
        "layernorm_epsilon": config.rms_norm_eps,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
    }
    if config.model_type == "qwen3_moe":
        arguments |= {
            "num_moe_experts": config.num_experts,
            "moe_router_topk": config.num_experts_per_tok,
            "moe_ffn_hidden_size": config.moe_intermediate_size,
            # Softmax over the chosen logits is softmax over all of them, renormalised over the chosen.
            "moe_router_pre_softmax": not config.norm_topk_prob,
            "moe_layer_freq": [
                int(index not in config.mlp_only_layers and (index + 1) % config.decoder_sparse_step == 0)
                for index in range(config.num_hidden_layers)
            ],
        }
    return arguments


def rotary_arguments(config: Any) -> dict[str, Any]:
    """Keywords of megatron-core's `GPTModel` for the rotary embedding of a transformers configuration."""
    rope = config.rope_parameters
    arguments = {"position_embedding_type": "rope", "rotary_base": rope["rope_theta"]}
    if rope.get("rope_type") == "llama3":
        arguments |= {"rope_scaling": True, "rope_scaling_factor": rope["factor"]}
    return arguments


def megatron_weights(
    weights: Mapping[str, torch.Tensor], config: Any, wanted: set[str]
) -> dict[str, torch.Tensor]:
    """Renames and rearranges a transformers state dict for megatron-core's `GPTModel`.

    Query, key and value become one matrix, interleaved by key-value group. With Transformer Engine's layers a norm is
    part of the linear layer that follows it; `wanted` tells.

    Args:
        weights: The state dict of the transformers model.
        config: Its configuration.
        wanted: Names in the state dict of the megatron-core model.
    """
    mapped = {
        "embedding.word_embeddings.weight": weights["model.embed_tokens.weight"],
        "decoder.final_layernorm.weight": weights["model.norm.weight"],
    }
    if not config.tie_word_embeddings:
        mapped["output_layer.weight"] = weights["lm_head.weight"]
    for layer in range(config.num_hidden_layers):
        source, target = f"model.layers.{layer}.", f"decoder.layers.{layer}."
        for norm, plain, fused in (
            ("input_layernorm", "input_layernorm.weight", "self_attention.linear_qkv.layer_norm_weight"),
            ("post_attention_layernorm", "pre_mlp_layernorm.weight", "mlp.linear_fc1.layer_norm_weight"),
        ):
            name = fused if target + fused in wanted else plain
            mapped[target + name] = weights[f"{source}{norm}.weight"]
        for kind in ("weight", "bias"):
            if f"{source}self_attn.q_proj.{kind}" in weights:
                parts = [weights[f"{source}self_attn.{name}_proj.{kind}"] for name in "qkv"]
                mapped[f"{target}self_attention.linear_qkv.{kind}"] = _by_group(parts, config)
        mapped[target + "self_attention.linear_proj.weight"] = weights[source + "self_attn.o_proj.weight"]
        for name in "qk":
            if f"{source}self_attn.{name}_norm.weight" in weights:
                scale = weights[f"{source}self_attn.{name}_norm.weight"]
                mapped[f"{target}self_attention.{name}_layernorm.weight"] = scale
        mapped |= _feed_forward(weights, source + "mlp.", target + "mlp.")
    return mapped


def _feed_forward(weights: Mapping[str, torch.Tensor], source: str, target: str) -> dict[str, torch.Tensor]:
    import torch

    if source + "gate.weight" not in weights:
        gate, up = weights[source + "gate_proj.weight"], weights[source + "up_proj.weight"]
        return {
            target + "linear_fc1.weight": torch.cat([gate, up]),
            target + "linear_fc2.weight": weights[source + "down_proj.weight"],
        }
    mapped = {target + "router.weight": weights[source + "gate.weight"]}
    pairs = zip(weights[source + "experts.gate_up_proj"], weights[source + "experts.down_proj"], strict=True)
    for expert, (gate_up, down) in enumerate(pairs):
        mapped[f"{target}experts.local_experts.{expert}.linear_fc1.weight"] = gate_up
        mapped[f"{target}experts.local_experts.{expert}.linear_fc2.weight"] = down
    return mapped


def _by_group(parts: list[torch.Tensor], config: Any) -> torch.Tensor:
    """Query, key and value [heads * head_dim, ...] of one key-value group after those of the one before."""
    import torch

    groups = [part.unflatten(0, (config.num_key_value_heads, -1)) for part in parts]
    return torch.cat(groups, dim=1).flatten(0, 1)


def _head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
