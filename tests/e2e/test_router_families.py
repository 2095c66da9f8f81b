"""Real vLLM and transformers on a sparse model whose routers are not Qwen's: GLM-4.5's sigmoid router with a scaling factor."""

import json

import numpy as np
import pytest
from running import run_cli
from safetensors.numpy import load_file

pytestmark = pytest.mark.engine

SCALING = 2.5


@pytest.fixture(scope="module")
def glm(tmp_path_factory):
    import torch
    from transformers import AutoTokenizer, Glm4MoeConfig, Glm4MoeForCausalLM

    from mismatch_probe.assets.catalog import resolve_model

    folder = tmp_path_factory.mktemp("models") / "glm"
    torch.manual_seed(0)
    config = Glm4MoeConfig(
        vocab_size=64, hidden_size=128, intermediate_size=128, moe_intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, n_shared_experts=1, n_routed_experts=16,
        routed_scaling_factor=SCALING, n_group=1, topk_group=1, num_experts_per_tok=4, first_k_dense_replace=1,
        use_qk_norm=True, max_position_embeddings=256, initializer_range=0.1, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    Glm4MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(resolve_model("tiny-qwen3-moe").path).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_gate_weights_of_a_scaled_sigmoid_router_compare(glm, tmp_path):
    from mismatch_probe.assets.catalog import resolve_model

    prompts = resolve_model("tiny-qwen3-moe").path / "prompts.jsonl"
    legs = ["rollout/decode", "train/forward", "train/replay", "train/repeat"]
    finished = run_cli(
        "audit", "--no-report", str(glm), "--out", str(tmp_path / "run"), "--prompts", str(prompts), "--num-prompts", "8", "--max-tokens", "48",
        "--set", f"legs={json.dumps(legs)}",
    )  # fmt: skip
    assert finished.status in (0, 1), finished.stderr
    for leg in ("rollout/decode", "train/forward"):
        gates = load_file(tmp_path / "run" / "routing" / leg / "part-00000.safetensors")["gates"]
        assert np.allclose(gates.astype(np.float64).sum(axis=-1), SCALING, atol=5e-3), leg
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    # The first layer is dense, so the model's layers 1 and 2 route.
    assert [layer["layer"] for layer in result["routing"]["layers"]] == [1, 2]
    for layer in result["routing"]["layers"]:
        assert layer["set_agreement"]["value"] > 0.9
        assert layer["gate_distance"] < 0.02 < layer["gate_distance_flipped"]
    assert result["routing"]["replay"]["self_replay"]["exact"]
    assert result["routing"]["replay"]["gates"]["available"]
    assert result["routing"]["replay"]["explained"]["value"] > 0.8
