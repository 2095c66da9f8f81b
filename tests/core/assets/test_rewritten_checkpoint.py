"""Rewritten checkpoints: which tensors change, and by how much at most."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mismatch_probe.assets.catalog import resolve_model
from mismatch_probe.assets.rewritten_checkpoint import write_int8_checkpoint, write_noisy_checkpoint
from mismatch_probe.errors import ConfigError

SOURCE = resolve_model("tiny-qwen3-moe").path


def test_int8_is_within_half_a_step_and_leaves_experts_routers_and_head(tmp_path):
    write_int8_checkpoint(SOURCE, tmp_path / "int8")
    before, after = (load_file(path / "model.safetensors") for path in (SOURCE, tmp_path / "int8"))
    changed = {name for name in before if not torch.equal(before[name].float(), after[name].float())}
    assert changed == {name for name in before if "self_attn." in name and name.endswith("_proj.weight")}
    for name in changed:
        step = after[name.removesuffix("weight") + "weight_scale"]
        assert after[name].dtype == torch.int8
        assert after[name].abs().amax() == 127
        assert torch.all((after[name] * step - before[name].float()).abs() <= 0.501 * step)
    config = json.loads((tmp_path / "int8" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"


def test_a_quantised_checkpoint_is_refused(tmp_path):
    write_int8_checkpoint(SOURCE, tmp_path / "int8")
    with pytest.raises(ConfigError, match="quantised already"):
        write_int8_checkpoint(tmp_path / "int8", tmp_path / "again")


def test_a_sharded_checkpoint_keeps_an_index_that_names_every_tensor(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({name: torch.randn(4, 8)}, source / "model-00001-of-00002.safetensors")
    save_file({"lm_head.weight": torch.randn(4, 8)}, source / "model-00002-of-00002.safetensors")
    places = {name: "model-00001-of-00002.safetensors", "lm_head.weight": "model-00002-of-00002.safetensors"}
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (source / "config.json").write_text("{}")
    write_int8_checkpoint(source, tmp_path / "int8")
    index = json.loads((tmp_path / "int8" / "model.safetensors.index.json").read_text())["weight_map"]
    scale = name.removesuffix("weight") + "weight_scale"
    assert index == {**places, scale: "model-00001-of-00002.safetensors"}


def test_noise_moves_every_matrix_and_nothing_else(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    torch.manual_seed(0)
    held = {"w": torch.randn(64, 64).to(torch.bfloat16), "norm": torch.ones(64, dtype=torch.bfloat16)}
    save_file(held, source / "model.safetensors", metadata={"format": "pt"})
    (source / "config.json").write_text("{}")
    write_noisy_checkpoint(source, tmp_path / "one", scale=0.1)
    write_noisy_checkpoint(source, tmp_path / "two", scale=0.1)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert torch.equal(one["w"], two["w"])
    assert torch.equal(one["norm"], held["norm"])
    assert one["w"].dtype == torch.bfloat16
    moved = (one["w"].float() - held["w"].float()).std() / held["w"].float().std()
    assert 0.08 < float(moved) < 0.12
    assert (tmp_path / "one" / "config.json").read_text() == "{}"
