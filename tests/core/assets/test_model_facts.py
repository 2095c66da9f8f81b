"""Facts of checkpoints, read from configurations and safetensors headers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from mismatch_probe.assets import model_facts
from mismatch_probe.assets.model_facts import read_model_facts
from mismatch_probe.errors import ConfigError

BASE = {
    "num_hidden_layers": 6,
    "hidden_size": 64,
    "vocab_size": 128,
    "architectures": ["X"],
    "eos_token_id": 2,
}


def write_model(folder: Path, config: dict[str, Any], **files: dict[str, np.ndarray]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name, tensors in files.items():
        save_file(tensors, folder / f"{name}.safetensors")
    return folder


@pytest.mark.parametrize(
    ("extra", "layers", "experts", "top_k"),
    [
        ({"model_type": "llama"}, (), None, None),
        (
            {"model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2, "decoder_sparse_step": 1},
            range(6),
            8,
            2,
        ),
        (
            {"num_experts": 8, "num_experts_per_tok": 2, "decoder_sparse_step": 2, "mlp_only_layers": [3]},
            (1, 5),
            8,
            2,
        ),
        ({"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}, range(6), 8, 2),
        ({"model_type": "olmoe", "num_experts": 64, "num_experts_per_tok": 8}, range(6), 64, 8),
        (
            {
                "n_routed_experts": 64,
                "num_experts_per_tok": 6,
                "first_k_dense_replace": 1,
                "moe_layer_freq": 1,
            },
            (1, 2, 3, 4, 5),
            64,
            6,
        ),
        (
            {
                "n_routed_experts": 64,
                "num_experts_per_tok": 6,
                "first_k_dense_replace": 1,
                "moe_layer_freq": 2,
            },
            (2, 4),
            64,
            6,
        ),
        (
            {"n_routed_experts": 4, "num_experts_per_tok": 1, "moe_layer_freq": [0, 1, 1, 0, 0, 1]},
            (1, 2, 5),
            4,
            1,
        ),
        (
            {"num_local_experts": 16, "num_experts_per_tok": 1, "interleave_moe_layer_step": 2},
            (1, 3, 5),
            16,
            1,
        ),
        (
            {"num_experts": 16, "num_experts_per_tok": 2, "expert_layer_period": 2, "expert_layer_offset": 1},
            (1, 3, 5),
            16,
            2,
        ),
        (
            {"num_experts": 4, "num_experts_per_tok": 2, "mlp_layer_types": ["dense"] + ["sparse"] * 5},
            range(1, 6),
            4,
            2,
        ),
        ({"num_experts": 4, "experts_per_token": 2, "moe_layers": [4, 0]}, (0, 4), 4, 2),
        ({"num_experts": 0, "num_experts_per_tok": 2}, (), None, None),
    ],
)
def test_moe_layers_of_each_family(
    tmp_path: Path, extra: dict[str, Any], layers: Any, experts: int | None, top_k: int | None
) -> None:
    facts = read_model_facts(write_model(tmp_path / "m", BASE | extra))
    assert facts.moe_layers == tuple(layers)
    assert (facts.num_experts, facts.top_k) == (experts, top_k)
    assert facts.is_moe == bool(tuple(layers))
    assert facts.num_moe_layers == len(tuple(layers))


def test_moe_layers_are_those_that_transformers_builds() -> None:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    shared = {
        "num_hidden_layers": 4,
        "hidden_size": 32,
        "intermediate_size": 32,
        "vocab_size": 64,
        "moe_intermediate_size": 8,
    }
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    cases = [
        Qwen3MoeForCausalLM(
            Qwen3MoeConfig(**shared, **heads, num_experts=4, decoder_sparse_step=2, mlp_only_layers=[1])
        ),
        DeepseekV3ForCausalLM(
            DeepseekV3Config(
                **shared, **heads, n_routed_experts=8, n_group=2, topk_group=1, first_k_dense_replace=3
            )
        ),
    ]
    for model in cases:
        built = tuple(i for i, layer in enumerate(model.model.layers) if hasattr(layer.mlp, "experts"))
        assert model_facts.moe_layer_indices(model.config.to_dict()) == built == (3,)


def test_parameters_dtype_and_end_tokens(tmp_path: Path) -> None:
    config = BASE | {"torch_dtype": "torch.bfloat16", "max_position_embeddings": 99, "eos_token_id": [2, 7]}
    folder = write_model(tmp_path / "m", config, a={"x": np.zeros((3, 4), np.float16)}, b={"y": np.zeros(5)})
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 2]}')
    facts = read_model_facts(folder)
    assert facts.num_parameters == 17
    assert facts.dtype == "bfloat16"
    assert facts.max_position_embeddings == 99
    assert facts.eos_token_ids == (5, 2, 7)


def test_multimodal_configurations_are_read_one_level_down(tmp_path: Path) -> None:
    text = {k: v for k, v in BASE.items() if k != "architectures"}
    facts = read_model_facts(write_model(tmp_path / "m", {"architectures": ["Y"], "text_config": text}))
    assert (facts.architecture, facts.num_layers) == ("Y", 6)


@pytest.mark.parametrize("limit", [1 << 30, 10])
def test_hash_tells_weights_and_file_names_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(model_facts, "FULL_HASH_LIMIT", limit)
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(200, 200))
    facts = [
        read_model_facts(write_model(tmp_path / name, BASE, **{file: {"x": tensor}}))
        for name, file, tensor in (
            ("a", "w", weights),
            ("same", "w", weights),
            ("renamed", "v", weights),
            ("other", "w", weights + rng.normal(size=(200, 200)) * 1e-3),
        )
    ]
    hashes = [fact.weights_sha256 for fact in facts]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3
    assert {fact.weights_hash_kind for fact in facts} == {"sampled" if limit == 10 else "full"}


def test_a_folder_without_weights_has_no_parameters_and_no_hash(tmp_path: Path) -> None:
    facts = read_model_facts(write_model(tmp_path / "m", BASE))
    assert (facts.num_parameters, facts.weights_sha256, facts.weights_hash_kind) == (None, None, "none")


def test_shards_of_the_index_must_all_be_there(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", BASE, a={"x": np.zeros(3)})
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=r"lacks 1 of 2 weight files, first b\.safetensors"):
        read_model_facts(folder)
    assert not model_facts.has_all_weights(folder)
    save_file({"y": np.zeros(2)}, folder / "b.safetensors")
    assert model_facts.has_all_weights(folder)
    assert read_model_facts(folder).num_parameters == 5


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b[:5], lambda b: b"\xff" * len(b)]
)
def test_damaged_safetensors_are_refused(tmp_path: Path, damage: Any) -> None:
    folder = write_model(tmp_path / "m", BASE, a={"x": np.zeros(3)})
    file = folder / "a.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ConfigError, match=r"a\.safetensors"):
        read_model_facts(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no config.json"),
        ("{broken", "cannot be read"),
        ("[]", "not a JSON object"),
        ("{}", "names no architecture"),
        (json.dumps({"architectures": ["X"]}), "num_hidden_layers"),
        (json.dumps(BASE | {"vocab_size": "128"}), "vocab_size"),
        (json.dumps(BASE | {"num_experts": 8}), "how many a token is sent to"),
    ],
)
def test_bad_configurations_are_config_errors_with_a_hint(
    tmp_path: Path, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_model_facts(tmp_path)
    assert caught.value.hint


def test_reading_facts_imports_no_engine() -> None:
    script = (
        "import sys\n"
        "from mismatch_probe.assets.catalog import read_model_facts, resolve_model\n"
        "read_model_facts(resolve_model('tiny-qwen3-moe').path)\n"
        "sys.exit(' '.join({'torch', 'transformers', 'vllm', 'huggingface_hub'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
