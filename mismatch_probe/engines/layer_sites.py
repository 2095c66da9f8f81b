"""Where the two sides compute the same thing under other names: modules fused by one side and split by the other.

A *site* is a place in a decoder layer that both sides have. The rollout engine fuses what reads one input (`qkv_proj`,
`gate_up_proj`) and the addition of the residual with the norm after it; the training side has them apart.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Site:
    """One computation of a decoder layer.

    Attributes:
        name: How it is called here.
        rollout: Paths below the layer in a rollout engine, one of which a model has.
        train: Alternatives below the layer on the training side; a tuple of several is joined in this order.
        meaning: In words, for tables.
    """

    name: str
    rollout: tuple[str, ...]
    train: tuple[tuple[str, ...], ...]
    meaning: str


INPUT_NORM = Site("input_norm", ("input_layernorm",), (("input_layernorm",),), "norm before attention")
QKV = Site(
    "qkv_proj",
    ("self_attn.qkv_proj",),
    (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.qkv_proj",)),
    "query, key and value projections",
)
Q_NORM = Site("q_norm", ("self_attn.q_norm",), (("self_attn.q_norm",),), "norm of the queries")
K_NORM = Site("k_norm", ("self_attn.k_norm",), (("self_attn.k_norm",),), "norm of the keys")
O_PROJ = Site("o_proj", ("self_attn.o_proj",), (("self_attn.o_proj",),), "output projection of attention")
POST_NORM = Site(
    "post_attention_norm",
    ("post_attention_layernorm",),
    (("post_attention_layernorm",),),
    "norm after attention",
)
ROUTER = Site(
    "router",
    ("mlp.gate", "block_sparse_moe.gate", "feed_forward.router"),
    (("mlp.gate",), ("block_sparse_moe.gate",), ("mlp.router",)),
    "router logits",
)
EXPERTS = Site(
    "experts",
    ("mlp", "block_sparse_moe"),
    (("mlp",), ("block_sparse_moe",)),
    "mixture-of-experts block (experts.w13_weight, experts.w2_weight)",
)
GATE_UP = Site(
    "gate_up_proj",
    ("mlp.gate_up_proj",),
    (("mlp.gate_proj", "mlp.up_proj"), ("mlp.gate_up_proj",)),
    "gate and up projections",
)
DOWN_PROJ = Site("down_proj", ("mlp.down_proj",), (("mlp.down_proj",),), "down projection")

SITES = (INPUT_NORM, QKV, Q_NORM, K_NORM, O_PROJ, POST_NORM, ROUTER, EXPERTS, GATE_UP, DOWN_PROJ)
"""In the order of computation; what lies between two of them is read from one's output and the next one's input."""

ATTENTION = "attention"
ACTIVATION = "activation"
STREAM = "layer"
EMBEDDING = "embedding"
FINAL_NORM = "final_norm"
HEAD = "head"
ORDER = (
    INPUT_NORM.name, QKV.name, Q_NORM.name, K_NORM.name, ATTENTION, O_PROJ.name, POST_NORM.name, ROUTER.name,
    EXPERTS.name, GATE_UP.name,
    ACTIVATION, DOWN_PROJ.name, STREAM,
)  # fmt: skip
"""Units of a layer in the order of computation, the whole layer last."""

MEANINGS = {
    **{site.name: site.meaning for site in SITES},
    ATTENTION: "all between qkv_proj and o_proj: query and key norms, rotary embedding, attention itself",
    ACTIVATION: "activation between gate_up_proj and down_proj",
    STREAM: "the whole decoder layer",
    EMBEDDING: "token embedding",
    FINAL_NORM: "norm after the last layer",
    HEAD: "LM head, as log-probabilities of the response tokens",
}

FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "experts.w13_weight": ("experts.gate_up_proj",),
    "experts.w2_weight": ("experts.down_proj",),
    "residual added in input_layernorm": ("residual of the layer before", "input_layernorm"),
    "residual added in post_attention_layernorm": ("residual of attention", "post_attention_layernorm"),
}
"""What a rollout engine fuses and what the training side calls the parts."""


def key(layer: int, unit: str, end: str) -> str:
    """Name of a state: "3.qkv_proj.in"; `end` is "in" or "out"."""
    return f"{layer}.{unit}.{end}"
