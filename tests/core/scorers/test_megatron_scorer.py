"""megatron-core against transformers: tiny random models in float32, routes, replay, and what cannot be mapped."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from mismatch_probe.errors import ConfigError
from mismatch_probe.scorers.protocol import ScoreRequest, ScorerSpec
from mismatch_probe.scorers.registry import scorers

RNG = np.random.default_rng(0)
REQUESTS = [
    ScoreRequest(i, RNG.integers(0, 60, size=3 + i).tolist(), RNG.integers(0, 60, size=14 - 3 * i).tolist())
    for i in range(4)
]
SHAPE = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3,
}  # fmt: skip
MOE = {"moe_intermediate_size": 24, "num_experts": 6, "num_experts_per_tok": 2, "head_dim": 8}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SHAPE, rope_parameters=LLAMA3), 0),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SHAPE, tie_word_embeddings=True), 0),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SHAPE, head_dim=16), 0),
    "qwen3-moe": (Qwen3MoeForCausalLM, Qwen3MoeConfig(**SHAPE, **MOE, norm_topk_prob=True), 3),
    "qwen3-moe-mixed": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig(**SHAPE, **MOE, norm_topk_prob=False, mlp_only_layers=[1]),
        2,
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tmp_path_factory):
    """The same random checkpoint in transformers and in megatron-core, and its number of MoE layers."""
    kind, config, num_moe_layers = MODELS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    model = kind(config)
    with torch.no_grad():
        # Biases and norms are 0 and 1 in a fresh model, where leaving one out would not show.
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    spec = ScorerSpec(folder, "float32", num_moe_layers, 2 if num_moe_layers else 0, {})
    sides = [scorers.get(name).item.make(spec) for name in ("transformers", "megatron")]
    return *sides, num_moe_layers


def score(scorer, requests=REQUESTS, batching="forward", capture=False):
    return scorer.score(
        requests, temperature=0.8, batching=batching, capture_routing=capture, progress=lambda *_: None
    )


def with_routes(routed, **more):
    return [
        dataclasses.replace(r, routing=s.routing, **{name: getattr(s, name) for name in more})
        for r, s in zip(REQUESTS, routed, strict=True)
    ]


def test_float32_log_probabilities_and_routes_are_those_of_transformers(pair):
    transformers, megatron, num_moe_layers = pair
    capture = num_moe_layers > 0
    for ours, theirs in zip(
        score(megatron, capture=capture), score(transformers, capture=capture), strict=True
    ):
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
        assert ours.entropy == pytest.approx(theirs.entropy, abs=1e-4)
        if capture:
            assert ours.routing.shape == theirs.routing.shape == (*theirs.gates.shape,)
            assert np.array_equal(ours.routing, theirs.routing)
            assert ours.gates == pytest.approx(theirs.gates, abs=1e-5)
            assert ours.margins == pytest.approx(theirs.margins, abs=1e-4)


def test_padding_does_not_leak(pair):
    for one, other in zip(score(pair[1]), score(pair[1], batching="repeat"), strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=2e-5)


def test_replay_of_the_own_routes_changes_nothing_and_of_others_does_what_it_does_to_transformers(pair):
    transformers, megatron, num_moe_layers = pair
    if not num_moe_layers:
        with pytest.raises(ConfigError, match="no experts"):
            score(megatron, capture=True)
        return
    free = score(megatron, capture=True)
    for one, other in zip(free, score(megatron, with_routes(free)), strict=True):
        assert np.array_equal(one.logprobs, other.logprobs)
    others = [
        dataclasses.replace(s, routing=np.where(np.arange(len(s.routing))[:, None, None] % 3 == 2, -1, 5 - s.routing))
        for s in free
    ]  # fmt: skip
    forced, held = with_routes(others), score(megatron, with_routes(others), capture=True)
    for request, ours, theirs, before in zip(forced, held, score(transformers, forced), free, strict=True):
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
        assert not np.allclose(ours.logprobs, before.logprobs, atol=1e-3)
        named = request.routing[:, 0, 0] >= 0
        assert np.array_equal(np.sort(ours.routing[named]), np.sort(request.routing[named]))
    assert all(np.array_equal(a.logprobs, b.logprobs) for a, b in zip(score(megatron), free, strict=True))


def test_forced_gates_are_used(pair):
    transformers, megatron, num_moe_layers = pair
    if not num_moe_layers:
        assert pair[1].facts().attention == "local"
        return
    free = score(megatron, capture=True)
    halved = [dataclasses.replace(s, gates=s.gates / 2) for s in free]
    requests = with_routes(halved, gates=True)
    for ours, theirs, before in zip(
        score(megatron, requests), score(transformers, requests), free, strict=True
    ):
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
        assert not np.allclose(ours.logprobs, before.logprobs, atol=1e-3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "mixtral"}, "mixtral checkpoint"),
        ({"model_type": "llama", "mlp_bias": True}, "biases in the feed-forward"),
        ({"model_type": "qwen3", "attention_bias": True}, "biases in the attention"),
        ({"model_type": "llama", "rope_scaling": {"rope_type": "yarn"}}, "yarn RoPE scaling"),
        ({"model_type": "llama", "rope_scaling": {**LLAMA3, "low_freq_factor": 2.0}}, "llama3 RoPE scaling"),
    ],
)
def test_what_cannot_be_mapped_is_refused_before_anything_is_loaded(tmp_path, config, message):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=message):
        scorers.get("megatron").item.check(tmp_path, {})
