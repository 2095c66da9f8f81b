"""Copies of a checkpoint with other weights in it: an update to load, a quantised twin."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mismatch_probe.errors import ConfigError

if TYPE_CHECKING:
    import torch

_INDEX = "model.safetensors.index.json"
_INT8_WEIGHTS = re.compile(r"\.(?:self_attn|mlp|shared_expert)\.[a-z]+_proj\.weight$")
# As vLLM reads compressed-tensors: everything linear that keeps its weights has to be named.
_INT8_LEAVES = (
    "lm_head",
    r"re:.*mlp\.gate$",
    r"re:.*\.shared_expert_gate$",
    r"re:.*\.experts\..*",
    r"re:.*\.experts$",
)


def write_noisy_checkpoint(source: Path, target: Path, *, scale: float, seed: int = 0) -> None:
    """Copies a checkpoint with every matrix moved by Gaussian noise.

    Args:
        source: Folder with `*.safetensors`.
        target: Folder to make; one that is there is replaced.
        scale: Standard deviation of the noise over that of the matrix.
        seed: Of the noise; the same seed gives the same checkpoint.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)

    def move(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        if tensor.ndim < 2 or not tensor.is_floating_point():
            return {name: tensor}
        wide = tensor.float()
        noise = torch.randn(wide.shape, generator=generator)
        return {name: (wide + scale * wide.std() * noise).to(tensor.dtype)}

    _rewrite(source, target, move)


def write_int8_checkpoint(source: Path, target: Path) -> None:
    """Copies a checkpoint with its linear layers in INT8, as compressed-tensors keeps W8A8.

    The projections of attention, dense MLPs and shared experts are rounded to nearest with one scale a channel, the
    largest weight being 127; activations are quantised by the engine, token by token. Routed experts, routers, norms,
    embeddings and the head stay as they are.

    Args:
        source: Folder with `*.safetensors`.
        target: Folder to make; one that is there is replaced.

    Raises:
        ConfigError: The checkpoint is quantised already, or no layer has a name that is known here.
    """
    import torch

    config = json.loads((source / "config.json").read_text("utf-8"))
    if "quantization_config" in config:
        raise ConfigError(f"{source.name} is quantised already", hint="leave out the knob")
    count = 0

    def quantise(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        nonlocal count
        if not _INT8_WEIGHTS.search(name) or tensor.ndim != 2:
            return {name: tensor}
        count += 1
        wide = tensor.float()
        step = (wide.abs().amax(dim=1, keepdim=True) / 127.0).clamp(min=torch.finfo(torch.float32).tiny)
        rounded = (wide / step).round().clamp(-127, 127).to(torch.int8)
        return {name: rounded, name.removesuffix("weight") + "weight_scale": step}

    _rewrite(source, target, quantise)
    if count == 0:
        shutil.rmtree(target)
        raise ConfigError(f"{source.name} names no linear layer as is known here", hint="leave out the knob")
    numbers = {"num_bits": 8, "type": "int", "symmetric": True}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": list(_INT8_LEAVES),
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**numbers, "strategy": "channel", "dynamic": False},
                "input_activations": {**numbers, "strategy": "token", "dynamic": True},
            }
        },
    }
    (target / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def _rewrite(
    source: Path, target: Path, change: Callable[[str, torch.Tensor], Mapping[str, torch.Tensor]]
) -> None:
    """Copies a folder; each tensor becomes those that `change` gives for it."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    places: dict[str, str] = {}
    for path in sorted(source.iterdir()):
        if path.suffix != ".safetensors":
            if path.is_file() and path.name != _INDEX:
                shutil.copyfile(path, target / path.name)
            continue
        tensors: dict[str, Any] = {}
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            for name in file.keys():  # noqa: SIM118 - a safetensors file is no mapping
                tensors |= change(name, file.get_tensor(name))
        save_file(tensors, target / path.name, metadata=metadata)
        places |= dict.fromkeys(tensors, path.name)
    if (source / _INDEX).is_file():
        index = json.loads((source / _INDEX).read_text("utf-8"))
        (target / _INDEX).write_text(json.dumps({**index, "weight_map": places}, indent=1), encoding="utf-8")
