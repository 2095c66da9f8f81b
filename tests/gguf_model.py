"""A Qwen3 or Qwen3-MoE checkpoint as a GGUF file, the way llama.cpp's own converter lays it out, without a tokenizer."""

import json
from pathlib import Path

import gguf
import gguf.quants
import torch
from safetensors.torch import load_file

LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def write_gguf(checkpoint: Path, path: Path, tensor_type: str = "F32", **changes: float) -> Path:
    """Writes float32 weights; `changes` replace numbers of the metadata (rope_theta, rms_norm_eps) to plant a fault.

    Of another `tensor_type` (Q8_0, Q4_0) are the matrices; norms and routers stay float32, as llama.cpp's own quantizer has it.
    """
    kind = gguf.GGMLQuantizationType[tensor_type]

    def add(name: str, tensor: torch.Tensor) -> None:
        values = tensor.numpy()
        if tensor_type == "F32" or values.ndim < 2 or "gate_inp" in name:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    config = {**json.loads((checkpoint / "config.json").read_text()), **changes}
    experts = config.get("num_experts") or config.get("num_local_experts") or 0
    writer = gguf.GGUFWriter(path, "qwen3moe" if experts else "qwen3")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config.get("rope_theta") or config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    tensors = {
        name: t.float()
        for file in sorted(checkpoint.glob("*.safetensors"))
        for name, t in load_file(file).items()
    }
    for name, new in TOP.items():
        if name in tensors:
            add(new, tensors[name])
    for layer in range(config["num_hidden_layers"]):
        own = f"model.layers.{layer}."
        for name, new in LAYER.items():
            if own + name in tensors:
                add(f"blk.{layer}.{new}", tensors[own + name])
        for part in ("gate", "up", "down") if experts else ():
            stack = torch.stack([tensors[f"{own}mlp.experts.{i}.{part}_proj.weight"] for i in range(experts)])
            add(f"blk.{layer}.ffn_{part}_exps.weight", stack)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
