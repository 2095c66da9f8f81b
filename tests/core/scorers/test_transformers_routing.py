"""Capture and replay on real transformers models of every family that is claimed."""

import importlib
import inspect

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
    "Glm4Moe": {
        "n_routed_experts": 8, "n_shared_experts": 1, "moe_intermediate_size": 16, "first_k_dense_replace": 1,
        "n_group": 2, "topk_group": 1, "head_dim": 16, "routed_scaling_factor": 2.5,
    },
}  # fmt: skip


def model_of(family, dtype=torch.float32, **changes):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**SHAPE, **FAMILIES[family], **changes})
    return getattr(transformers, f"{family}ForCausalLM")(config).to(dtype).eval()


@pytest.fixture(params=FAMILIES)
def hooked(request):
    model = model_of(request.param)
    num_layers = 2 - FAMILIES[request.param].get("first_k_dense_replace", 0)
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


@pytest.mark.parametrize(
    ("kin", "tested"),
    [
        ("qwen3_next.Qwen3NextTopKRouter", "qwen3_moe.Qwen3MoeTopKRouter"),
        ("qwen3_omni_moe.Qwen3OmniMoeThinkerTextTopKRouter", "qwen3_moe.Qwen3MoeTopKRouter"),
        ("deepseek_v32.DeepseekV32TopkRouter", "deepseek_v3.DeepseekV3TopkRouter"),
        ("glm4_moe_lite.Glm4MoeLiteTopkRouter", "deepseek_v3.DeepseekV3TopkRouter"),
        ("glm_moe_dsa.GlmMoeDsaTopkRouter", "deepseek_v3.DeepseekV3TopkRouter"),
        ("dots1.Dots1TopkRouter", "deepseek_v3.DeepseekV3TopkRouter"),
        ("kimi_linear.KimiLinearTopkRouter", "deepseek_v3.DeepseekV3TopkRouter"),
        ("mimo_v2_flash.MiMoV2FlashTopkRouter", "deepseek_v3.DeepseekV3TopkRouter"),
    ],
)
def test_kin_of_a_tested_router_computes_as_it_does(kin, tested):
    """Families that are claimed without a model of their own here: their routers' code is the tested one's."""
    kin, tested = (
        getattr(importlib.import_module(f"transformers.models.{module}.modeling_{module}"), name).forward
        for module, name in (kin.split("."), tested.split("."))
    )
    assert inspect.getsource(kin) == inspect.getsource(tested)


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


def test_margin_is_how_close_the_first_expert_left_out_came(hooked):
    """Raising the score of the best expert left out by the margin, and no less, makes it a choice."""
    model, hooks = hooked
    forward(model, hooks, IDS, capture=True)
    taken = hooks.take()
    assert taken.margins.shape == (40, hooks.num_layers) and (taken.margins > 0).all()
    router = router_modules(model)[0]
    seen = []
    plain = router.forward
    router.forward = lambda *args, **kwargs: seen.append(plain(*args, **kwargs)) or seen[-1]
    forward(model, hooks, IDS)
    logits, _, ids = seen[0]
    if hasattr(router, "e_score_correction_bias"):
        scores = logits.sigmoid().view(40, 2, 4)
        groups = scores.topk(2).values.sum(-1).argmax(-1)
        scores = scores[torch.arange(40), groups]
    else:
        scores = logits
    ranked = scores.sort(descending=True).values
    assert torch.allclose(taken.margins[:, 0], ranked[:, 1] - ranked[:, 2], atol=1e-6)
    assert torch.equal(ids.sort().values, taken.ids[:, 0].long().sort().values)


def test_a_model_that_leaves_no_expert_out_has_no_margin():
    model = model_of("Mixtral", num_experts_per_tok=8)
    hooks = hook_routers(model, num_moe_layers=2)
    forward(model, hooks, IDS, capture=True)
    assert torch.isinf(hooks.take().margins).all()


def test_forced_gates_are_used_and_not_a_number_leaves_the_own(hooked):
    model, hooks = hooked
    free = forward(model, hooks, IDS, capture=True)
    taken = hooks.take()
    own = taken.ids.long(), taken.gates.clone()
    with torch.inference_mode(), hooks.forward(capture=False, forced=own[0], forced_gates=own[1]):
        assert torch.equal(model(input_ids=IDS, use_cache=False).logits, free)
    # Other weights for the last token only; the order in which the experts are listed carries them along.
    other = torch.full_like(own[1], float("nan"))
    other[-1] = own[1][-1].flip(-1) * 0.5
    with torch.inference_mode(), hooks.forward(capture=True, forced=own[0].flip(-1), forced_gates=other):
        changed = model(input_ids=IDS, use_cache=False).logits
    assert torch.equal(changed[:, :-1], free[:, :-1])
    assert not torch.allclose(changed[1, -1], free[1, -1], atol=1e-5)
    again = hooks.take()
    listed = own[0].flip(-1)[-1].gather(-1, own[0].flip(-1)[-1].argsort(-1))
    assert torch.equal(again.ids[-1].long().sort(-1).values, listed)
    by_expert = dict(zip(own[0].flip(-1)[-1, 0].tolist(), other[-1, 0].tolist(), strict=True))
    got = dict(zip(again.ids[-1, 0].tolist(), again.gates[-1, 0].tolist(), strict=True))
    assert got == pytest.approx(by_expert)


@pytest.mark.parametrize("broken", [[-1, 3], [255, 3], [3, 3], [8, 0]])
def test_what_is_no_route_leaves_the_choice_to_the_router(hooked, broken):
    model, hooks = hooked
    free = forward(model, hooks, IDS)
    forced = torch.tensor(broken).expand(40, hooks.num_layers, 2)
    assert torch.equal(forward(model, hooks, IDS, forced=forced), free)


def test_replaying_one_layer_leaves_the_others_their_choice():
    model = model_of("Qwen3Moe")
    hooks = hook_routers(model, num_moe_layers=2)
    forward(model, hooks, IDS, capture=True)
    own = hooks.take().ids.long()
    single = torch.full_like(own, -1)
    single[:, 1] = (own[:, 1] + 1) % 8
    forward(model, hooks, IDS, capture=True, forced=single)
    got = hooks.take().ids.long()
    assert torch.equal(got[:, 0], own[:, 0])
    assert torch.equal(got[:, 1].sort(-1).values, single[:, 1].sort(-1).values)
