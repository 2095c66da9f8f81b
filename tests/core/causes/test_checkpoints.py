"""Two checkpoints tensor by tensor: each way to differ is told from the others, whichever side has it."""

import pytest
import torch
from safetensors.torch import save_file

from mismatch_probe.causes.checkpoints import compare_checkpoints, compare_tensors
from mismatch_probe.causes.tensor_relations import grid_share
from mismatch_probe.errors import ConfigError

LAYERS, EXPERTS = 4, 6


@pytest.fixture(scope="module")
def model():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return (0.05 * torch.randn(*shape, generator=generator)).bfloat16()

    tensors = {"model.embed_tokens.weight": draw(64, 128), "lm_head.weight": draw(64, 128)}
    for layer in range(LAYERS):
        start = f"model.layers.{layer}"
        tensors |= {f"{start}.self_attn.{name}_proj.weight": draw(128, 128) for name in "qkvo"}
        tensors[f"{start}.input_layernorm.weight"] = torch.ones(128, dtype=torch.bfloat16)
        tensors |= {f"{start}.mlp.experts.{e}.down_proj.weight": draw(128, 64) for e in range(EXPERTS)}
    return tensors


def changed(model, change, where=lambda name: True):
    return {name: change(tensor) if where(name) else tensor for name, tensor in model.items()}


def is_matrix(name):
    return "_proj" in name


def fp8(tensor):
    scale = tensor.float().abs().amax(-1, keepdim=True) / 448
    return ((tensor.float() / scale).to(torch.float8_e4m3fn).float() * scale).bfloat16()


def fp8_by_tensor(tensor):
    scale = tensor.float().abs().max() / 448
    return ((tensor.float() / scale).to(torch.float8_e4m3fn).float() * scale).bfloat16()


def int8(tensor):
    scale = tensor.float().abs().amax(-1, keepdim=True) / 127
    return ((tensor.float() / scale).round() * scale).bfloat16()


def step(tensor):
    noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1))
    return (tensor.float() + 1e-3 * noise).to(tensor.dtype)


def low_rank(tensor):
    generator = torch.Generator().manual_seed(2)
    left, right = (
        torch.randn(tensor.shape[0], 2, generator=generator),
        torch.randn(2, tensor.shape[1], generator=generator),
    )
    return (tensor.float() + 1e-3 * left @ right).bfloat16()


@pytest.mark.parametrize(
    ("kind", "change", "where"),
    [
        ("fp8", fp8, is_matrix),
        ("fp8", fp8_by_tensor, is_matrix),
        ("int8", int8, is_matrix),
        ("low_rank", low_rank, lambda name: "q_proj" in name or "v_proj" in name),
        ("stale", step, is_matrix),
        ("unsynchronised", step, lambda name: "layers.2." in name),
        ("unsynchronised", step, lambda name: name == "lm_head.weight"),
    ],
)
@pytest.mark.parametrize("swap_sides", [False, True])
def test_each_difference_is_told(model, kind, change, where, swap_sides):
    pair = (model, changed(model, change, where))
    comparison = compare_tensors(*(reversed(pair) if swap_sides else pair))
    assert comparison.kind == kind, comparison.differences
    assert comparison.num_layers == LAYERS
    assert all(0 < item.relative < 0.5 for item in comparison.differences)


def test_equal_checkpoints_are_equal(model):
    comparison = compare_tensors(model, dict(model))
    assert (comparison.kind, comparison.num_different, comparison.layers) == ("equal", 0, ())


@pytest.mark.parametrize("fused", [False, True])
def test_experts_in_another_order_are_permuted(model, fused):
    names = [f"model.layers.1.mlp.experts.{e}.down_proj.weight" for e in range(EXPERTS)]
    if fused:
        stack = torch.stack([model[name] for name in names])
        label = "model.layers.1.mlp.experts.down_proj"
        rest = {name: tensor for name, tensor in model.items() if name not in names}
        pair = {**rest, label: stack}, {**rest, label: stack.roll(1, dims=0)}
    else:
        moved = dict(zip(names, [model[name] for name in names[1:] + names[:1]], strict=True))
        pair = model, {**model, **moved}
    comparison = compare_tensors(*pair)
    assert comparison.kind == "permuted"
    assert comparison.layers == (1,)


def test_a_name_on_one_side_only_is_told(model):
    short = {name: tensor for name, tensor in model.items() if name != "lm_head.weight"}
    assert compare_tensors(model, short).missing == ("lm_head.weight",)


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_plain_weights_are_off_every_grid(model, kind):
    rounded = {"fp8": fp8, "int8": int8}[kind](model["lm_head.weight"]).float()
    assert grid_share(rounded, kind) > 0.97
    assert grid_share(model["lm_head.weight"].float(), kind) < 0.6


def test_folders_are_read_tensor_by_tensor(model, tmp_path):
    folders = [tmp_path / "rollout", tmp_path / "train"]
    for folder, tensors in zip(folders, (model, changed(model, step, is_matrix)), strict=True):
        folder.mkdir()
        halves = list(tensors.items())
        for index, part in enumerate((halves[:9], halves[9:])):
            save_file(dict(part), folder / f"model-{index}.safetensors")
    assert compare_checkpoints(*folders).kind == "stale"
    with pytest.raises(ConfigError, match="no safetensors"):
        compare_checkpoints(folders[0], tmp_path)
