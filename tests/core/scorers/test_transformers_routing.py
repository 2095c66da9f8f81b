"""Capture and replay on real transformers models of every family that is claimed."""

import pytest
import torch
import transformers

from mismatch_probe.errors import CaptureError, ConfigError
from mismatch_probe.scorers.transformers_routing import hook_routers, router_modules

SHAPE = {
    "vocab_size": 48, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "num_experts_per_tok": 2, "pad_token_id": 0,
}  # fmt: skip

FAMILIES = {
    "Qwen2Moe": {"num_experts": 8, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    "Qwen3Moe": {"num_experts": 8, "moe_intermediate_size": 16, "head_dim": 16, "norm_topk_prob": True},
    "Mixtral": {"num_local_experts": 8},
    "Olmoe": {"num_experts": 8},
    "GptOss": {"num_local_experts": 8, "head_dim": 16},
    "DeepseekV3": {
        "n_routed_experts": 8, "n_shared_experts": 1, "moe_intermediate_size": 16, "first_k_dense_replace": 1,
        "n_group": 2, "topk_group": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8, "v_head_dim": 16,
    },
}  # fmt: skip


def model_of(family, dtype=torch.float32):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**SHAPE, **FAMILIES[family]})
    return getattr(transformers, f"{family}ForCausalLM")(config).to(dtype).eval()


@pytest.fixture(params=FAMILIES)
def hooked(request):
    model = model_of(request.param)
    num_layers = 1 if request.param == "DeepseekV3" else 2
    return model, hook_routers(model, num_moe_layers=num_layers)


def forward(model, hooks, ids, *, capture=False, forced=None):
    with torch.inference_mode(), hooks.forward(capture=capture, forced=forced):
        return model(input_ids=ids, use_cache=False).logits


IDS = torch.arange(1, 41).view(2, 20)


def test_replaying_a_forwards_own_routes_changes_nothing(hooked):
    model, hooks = hooked
    free = forward(model, hooks, IDS, capture=True)
    routes = hooks.take().ids.long()
    assert routes.shape == (40, hooks.num_layers, 2)
    assert torch.equal(forward(model, hooks, IDS, forced=routes), free)
    # Nor does it matter in which order the engine listed them.
    assert torch.equal(forward(model, hooks, IDS, forced=routes.flip(-1)), free)


def test_other_routes_change_the_logits_and_only_where_they_are_forced(hooked):
    model, hooks = hooked
    free = forward(model, hooks, IDS, capture=True)
    routes = hooks.take().ids.long()
    other = (routes + 1) % 8
    mixed = torch.full_like(routes, -1)
    mixed[-1] = other[-1]
    changed = forward(model, hooks, IDS, forced=mixed)
    # Not to the bit: one row more or less in an expert's group is another GEMM shape for its neighbours.
    assert torch.allclose(changed[0], free[0], atol=1e-5)
    assert torch.allclose(changed[1, :-1], free[1, :-1], atol=1e-5)
    assert not torch.allclose(changed[1, -1], free[1, -1], atol=1e-4)


def test_forced_routes_are_what_is_captured(hooked):
    model, hooks = hooked
    forward(model, hooks, IDS, capture=True)
    other = (hooks.take().ids.long() + 3) % 8
    forward(model, hooks, IDS, capture=True, forced=other)
    assert torch.equal(hooks.take().ids.long().sort(-1).values, other.sort(-1).values)


def test_the_hook_adds_nothing_when_it_is_idle():
    plain, model = model_of("Qwen3Moe"), model_of("Qwen3Moe")
    hooks = hook_routers(model, num_moe_layers=2)
    with torch.inference_mode():
        assert torch.equal(plain(input_ids=IDS).logits, forward(model, hooks, IDS))


def test_bfloat16_replay_is_exact_too():
    model = model_of("Qwen3Moe", torch.bfloat16)
    hooks = hook_routers(model, num_moe_layers=2)
    free = forward(model, hooks, IDS, capture=True)
    assert torch.equal(forward(model, hooks, IDS, forced=hooks.take().ids.long()), free)


def test_a_router_of_an_unknown_kind_is_refused():
    model = model_of("Qwen3Moe")
    with pytest.raises(ConfigError, match="known kind"):
        hook_routers(model, num_moe_layers=3)
    assert len(router_modules(model)) == 2


def test_nothing_captured_is_an_error():
    hooks = hook_routers(model_of("Qwen3Moe"), num_moe_layers=2)
    with pytest.raises(CaptureError), hooks.forward(capture=True, forced=None):
        pass
    with pytest.raises(CaptureError):
        hooks.take()
