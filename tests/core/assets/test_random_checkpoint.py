"""Random-weight checkpoints: layout, determinism, reuse, atomicity, refusal; and random prompts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mismatch_probe.assets import random_checkpoint
from mismatch_probe.assets.catalog import read_model_facts
from mismatch_probe.assets.random_checkpoint import (
    checkpoint_bytes,
    plan_shards,
    random_prompts,
    write_random_checkpoint,
)
from mismatch_probe.errors import ConfigError

GEOMETRY = Path(random_checkpoint.__file__).parent / "geometries" / "qwen3-30b-a3b.json"


def true_config() -> dict[str, Any]:
    return json.loads(GEOMETRY.read_text())


def small_config(layers: int = 2) -> dict[str, Any]:
    """The shipped geometry with every width shrunk; all other keys are the real ones."""
    return true_config() | {
        "hidden_size": 64,
        "moe_intermediate_size": 32,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "vocab_size": 160,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "num_hidden_layers": layers,
    }


def test_plan_of_the_true_geometry_has_the_published_size() -> None:
    # Qwen3-30B-A3B is published as 30.5 B parameters: 30,532,122,624 elements in bfloat16.
    assert checkpoint_bytes(true_config()) == 2 * 30_532_122_624
    names = [tensor.name for shard in plan_shards(true_config()) for tensor in shard]
    assert len(names) == len(set(names)) == 18_867


def test_transformers_loads_it_with_no_key_missing_or_unexpected(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = write_random_checkpoint(small_config(), tmp_path / "model")
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    facts = read_model_facts(folder)
    assert facts.num_parameters == sum(p.numel() for p in model.parameters())
    assert facts.moe_layers == (0, 1)
    with torch.inference_mode():
        output = model(torch.tensor(random_prompts(160, 4, 32, 0)), output_router_logits=True)
    # Neither one token nor one expert takes all: the draw is that of an untrained network, not degenerate.
    assert output.logits.float().std() > 0.05
    for logits in output.router_logits:
        assert logits.float().topk(2).indices.unique().numel() == 8


def test_norms_are_one_and_weights_have_the_declared_spread(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = write_random_checkpoint(small_config(), tmp_path / "model")
    tensors = {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}
    for name, tensor in tensors.items():
        if "norm" in name:
            assert bool((tensor == 1).all()), name
        else:
            assert tensor.float().std().item() == pytest.approx(0.02, rel=0.1), name
            assert abs(tensor.float().mean().item()) < 0.02 * 5 / tensor.numel() ** 0.5, name


def test_weights_depend_on_the_seed_but_not_on_the_depth(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    def layer(depth: int, seed: int) -> Any:
        folder = write_random_checkpoint(small_config(depth), tmp_path / f"{depth}-{seed}", seed=seed)
        shards = sorted(folder.glob("*.safetensors"))
        return load_file(shards[1])["model.layers.0.mlp.experts.3.down_proj.weight"]

    assert layer(2, 0).equal(layer(1, 0))
    assert not layer(2, 0).equal(layer(2, 1))


def test_a_whole_checkpoint_is_reused_and_a_damaged_or_other_one_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    reports: list[tuple[str, int, int]] = []

    def write(config: dict[str, Any], seed: int = 0) -> int:
        reports.clear()
        write_random_checkpoint(config, folder, seed=seed, progress=lambda *report: reports.append(report))
        return len(reports)

    assert write(small_config()) == 4
    assert reports[-1][1] == reports[-1][2] == checkpoint_bytes(small_config())
    first = read_model_facts(folder).weights_sha256
    assert write(small_config()) == 0
    shard = sorted(folder.glob("*.safetensors"))[2]
    shard.write_bytes(shard.read_bytes()[:-1])
    assert write(small_config()) == 4
    assert read_model_facts(folder).weights_sha256 == first
    assert write(small_config(), seed=1) == 4
    assert read_model_facts(folder).weights_sha256 != first
    assert write(small_config(1), seed=1) == 3


def test_an_interrupted_write_leaves_nothing_that_passes_for_a_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "model"

    def stop(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_random_checkpoint(small_config(), folder, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == [".model.lock"]
    # A killed process cannot clean up: its left-over must not survive into the next checkpoint.
    (tmp_path / ".model.partial").mkdir()
    (tmp_path / ".model.partial" / "stray.safetensors").write_bytes(b"x")
    write_random_checkpoint(small_config(), folder)
    assert not (folder / "stray.safetensors").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".model.lock", "model"]


def test_too_little_disk_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(ConfigError, match="do not fit") as caught:
        write_random_checkpoint(small_config(), tmp_path / "model")
    assert "MISMATCH_PROBE_CACHE" in str(caught.value)
    assert not (tmp_path / "model").exists()


def test_a_folder_that_cannot_be_made_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write"):
        write_random_checkpoint(small_config(), tmp_path / "file" / "model")


@given(st.integers(16, 5000), st.integers(1, 5), st.integers(1, 40), st.integers(0, 9))
def test_random_prompts_avoid_the_ends_and_repeat_for_a_seed(
    vocab: int, num: int, length: int, seed: int
) -> None:
    prompts = random_prompts(vocab, num, length, seed, avoid=[vocab // 2])
    assert [len(prompt) for prompt in prompts] == [length] * num
    margin = max(4, vocab // 256)
    assert all(
        margin <= token < vocab - margin and token != vocab // 2 for prompt in prompts for token in prompt
    )
    assert prompts == random_prompts(vocab, num, length, seed, avoid=[vocab // 2])


def test_random_prompts_never_draw_the_special_tokens_of_the_geometry() -> None:
    # In Qwen3's vocabulary every id from 151643 on is special or unused.
    prompts = random_prompts(151_936, 50, 400, 0)
    assert max(max(prompt) for prompt in prompts) < 151_643
    assert prompts != random_prompts(151_936, 50, 400, 1)


def test_random_prompts_refuse_what_cannot_be_drawn() -> None:
    with pytest.raises(ConfigError, match="must be positive"):
        random_prompts(100, 0, 5, 0)
    with pytest.raises(ConfigError, match="no ordinary token"):
        random_prompts(8, 1, 5, 0)
