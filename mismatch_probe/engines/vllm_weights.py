"""What weights a running vLLM holds, inside its worker: read, written down, and compared bit by bit.

Kernels may pack a weight into a handle of their own and leave an empty tensor behind (vLLM on CPU does so with
every linear layer), so a checksum of parameters says nothing of most of the model. Such a module is asked
instead: its own `quant_method.apply` on a fixed input. A module that packs a copy and keeps the weight as well (the
LM head on CPU) is read and asked: an update may reach the weight and not the copy that multiplies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_PROBE_ROWS = 4
_OUTPUT = "output"
# What vLLM on CPU calls the function that closes over a packed copy.
_PACKED_COPY = "cpu_linear"


class WeightProbe:
    """Mix-in of vLLM's worker."""

    model_runner: Any
    rank: int

    def probe_save_weights(self, folder: str) -> int:
        """Writes this worker's state.

        Returns:
            Pieces of state written.
        """
        from safetensors.torch import save_file

        tensors, unread = read_state(self.model_runner.get_model())
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path / f"rank-{self.rank}.safetensors", metadata={"unread": json.dumps(unread)})
        return len(tensors)

    def probe_compare_weights(self, folder: str) -> dict[str, Any]:
        """Compares this worker's state with what `probe_save_weights` wrote.

        Returns:
            `compared`, `unread` and `differences` as in `mismatch_probe.engines.refit.WeightComparison`.
        """
        from safetensors.torch import load_file

        tensors, unread = read_state(self.model_runner.get_model())
        held = load_file(Path(folder) / f"rank-{self.rank}.safetensors")
        return {
            "compared": len(held.keys() | tensors.keys()),
            "unread": unread,
            "differences": compare_states(held, tensors),
        }

    def probe_digest_weights(self) -> dict[str, Any]:
        """Digests of this worker's state, one tensor in host memory at a time.

        Returns:
            `tensors`: name -> (shape, SHA-256 of dtype, shape and bytes), and `unread` as in `read_state`.
        """
        unread: list[str] = []
        tensors = {
            name: digest(tensor) for name, tensor in iterate_state(self.model_runner.get_model(), unread)
        }
        return {"tensors": tensors, "unread": unread}


def digest(tensor: torch.Tensor) -> tuple[tuple[int, ...], str]:
    """Shape of a tensor on the CPU and the SHA-256 of its dtype, shape and bytes."""
    import torch

    shape = tuple(tensor.shape)
    hashed = hashlib.sha256(f"{tensor.dtype} {shape} ".encode())
    hashed.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return shape, hashed.hexdigest()


def read_state(model: torch.nn.Module) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Every parameter and buffer, and the answers of modules that multiply by a packed weight.

    Args:
        model: The model as the engine holds it.

    Returns:
        Contiguous copies on the CPU by name, and the names of empty tensors whose module cannot be asked.
    """
    unread: list[str] = []
    return dict(iterate_state(model, unread)), unread


def iterate_state(model: torch.nn.Module, unread: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """The state of `read_state`, piece by piece.

    Args:
        model: The model as the engine holds it.
        unread: Filled with the names of empty tensors whose module cannot be asked.
    """
    import itertools

    # Tied weights are read under each of their names: an update may reach only one of them.
    named = itertools.chain(
        model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    )
    for name, tensor in named:
        if tensor.numel():
            yield name, tensor.detach().to("cpu", copy=True).contiguous()
            continue
        module_name = name.rpartition(".")[0]
        answer = _answer(model.get_submodule(module_name))
        if answer is None:
            unread.append(name)
        else:
            yield f"{module_name}.{_OUTPUT}", answer
    for name, module in model.named_modules(remove_duplicate=False):
        weight = getattr(module, "weight", None)
        if hasattr(module, _PACKED_COPY) and weight is not None and weight.numel():
            answer = _answer(module)
            if answer is not None:
                yield f"{name}.{_OUTPUT}", answer


def _answer(module: Any) -> torch.Tensor | None:
    """What a module with a packed weight makes of a fixed input, or None where it offers no way to ask."""
    import torch

    method = getattr(module, "quant_method", None)
    names = ("input_size_per_partition", "input_size", "embedding_dim")
    width = next((value for name in names if (value := getattr(module, name, None))), None)
    dtype = getattr(module, "params_dtype", None) or next(
        (p.dtype for p in module.parameters(recurse=False) if p.is_floating_point()), None
    )
    if method is None or width is None or dtype is None:
        return None
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(_PROBE_ROWS, int(width), generator=generator).to(dtype)
    device = next(module.parameters(recurse=False)).device
    with torch.inference_mode():
        answer: torch.Tensor = method.apply(module, rows.to(device), None)
    return answer.detach().to("cpu", copy=True).contiguous()


def compare_states(held: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
    """Compares two states by name, NaN equal to NaN.

    Args:
        held: The state that is taken for right.
        found: The state in question.

    Returns:
        One entry for each name that is not equal in every bit, the fields of `WeightDifference`.
    """
    rows = []
    for name in sorted(held.keys() | found.keys()):
        row = _difference(held.get(name), found.get(name))
        if row is not None:
            rows.append({"name": name, "module": name.rpartition(".")[0], **row})
    return rows


def _difference(held: torch.Tensor | None, found: torch.Tensor | None) -> dict[str, Any] | None:
    import torch

    one = found if held is None else held
    if one is None:
        return None
    row: dict[str, Any] = {"shape": tuple(one.shape), "max_abs": None, "differing_fraction": None}
    if held is None or found is None:
        return {**row, "what": "unexpected" if held is None else "missing"}
    if held.shape != found.shape or held.dtype != found.dtype:
        return {**row, "what": "shape differs"}
    first, second = (t.contiguous().reshape(-1).view(torch.uint8) for t in (held, found))
    if torch.equal(first, second):
        return None
    size = held.element_size()
    changed = (first.view(-1, size) != second.view(-1, size)).any(dim=1).double().mean()
    gap = (held.double() - found.double()).abs()
    finite = gap[gap.isfinite()]
    largest = float(finite.max()) if finite.numel() else None
    return {**row, "max_abs": largest, "differing_fraction": float(changed), "what": "differs"}
