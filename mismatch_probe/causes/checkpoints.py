"""Two checkpoints that should be one, tensor by tensor: which differ, and how."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mismatch_probe.causes.tensor_relations import Relation, relation_of
from mismatch_probe.errors import ConfigError

if TYPE_CHECKING:
    import torch

Kind = Literal["equal", "stale", "unsynchronised", "low_rank", "fp8", "int8", "permuted"]
_EXPERT = re.compile(r"\.experts\.(\d+)\.")
_LAYER = re.compile(r"\blayers?\.(\d+)\.")
MAJORITY = 0.8
SPREAD = 0.5


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """One tensor (or one stack of experts) that differs.

    Attributes:
        name: Its name; experts of a layer are one stack, `*` for their number.
        relation: How the two are related.
        relative: Norm of the difference over the norm of the rollout's tensor.
    """

    name: str
    relation: Relation
    relative: float


@dataclass(frozen=True, slots=True)
class CheckpointComparison:
    """Two checkpoints.

    Attributes:
        kind: What the differences come to.
        num_tensors: Tensors and stacks compared.
        num_different: Those that differ.
        layers: Decoder layers with a difference.
        num_layers: Decoder layers.
        missing: Names that only one side has, at most 8.
        differences: The largest first, at most 32.
    """

    kind: Kind
    num_tensors: int
    num_different: int
    layers: tuple[int, ...]
    num_layers: int
    missing: tuple[str, ...]
    differences: tuple[TensorDifference, ...]


def compare_checkpoints(rollout: Path, train: Path) -> CheckpointComparison:
    """Compares two folders of safetensors, one tensor or one layer's experts in memory at a time.

    Args:
        rollout: Folder of the rollout side's checkpoint.
        train: Folder of the training side's checkpoint.

    Raises:
        ConfigError: A folder holds no safetensors.
    """
    return compare_tensors(_SafetensorsFolder(rollout), _SafetensorsFolder(train))


def compare_tensors(
    rollout: Mapping[str, torch.Tensor], train: Mapping[str, torch.Tensor]
) -> CheckpointComparison:
    """Compares two sets of named tensors, such as state dicts.

    Args:
        rollout: By name; may load lazily.
        train: By name.
    """
    names = sorted(rollout.keys() & train.keys())
    missing = sorted(rollout.keys() ^ train.keys())
    stacks = list(_stacks(names))
    differences = []
    for label, members in stacks:
        left, right = ([side[name] for name in members] for side in (rollout, train))
        if all(one.shape == other.shape for one, other in zip(left, right, strict=True)):
            relation, relative = relation_of(left, right)
        else:
            relation, relative = "other", float("inf")
        if relation != "equal":
            differences.append(TensorDifference(label, relation, relative))
    touched = {int(found[1]) for item in differences if (found := _LAYER.search(item.name))}
    layers = {int(found[1]) for label, _ in stacks if (found := _LAYER.search(label))}
    differences.sort(key=lambda item: -item.relative)
    return CheckpointComparison(
        kind=_kind(differences, len(stacks), touched, layers),
        num_tensors=len(stacks),
        num_different=len(differences),
        layers=tuple(sorted(touched)),
        num_layers=len(layers),
        missing=tuple(missing[:8]),
        differences=tuple(differences[:32]),
    )


def _kind(differences: list[TensorDifference], num_tensors: int, touched: set[int], layers: set[int]) -> Kind:
    """What the differences come to: the relation that most share, else by how widely they are spread."""
    if not differences:
        return "equal"
    shared: tuple[tuple[Relation, Kind], ...] = (
        ("permuted", "permuted"), ("fp8", "fp8"), ("int8", "int8"), ("low_rank", "low_rank"),
    )  # fmt: skip
    for relation, kind in shared:
        if sum(item.relation == relation for item in differences) >= MAJORITY * len(differences):
            return kind
    local = len(touched) <= SPREAD * len(layers) or len(differences) <= 0.25 * num_tensors
    return "unsynchronised" if local else "stale"


def _stacks(names: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Names, with the experts of one layer and projection together, in order of their number."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_EXPERT.sub(".experts.*.", name), []).append(name)
    for label, members in groups.items():
        yield label, sorted(members, key=lambda name: int(_EXPERT.search(name)[1]) if "*" in label else 0)  # type: ignore[index]


class _SafetensorsFolder(Mapping[str, "torch.Tensor"]):
    """The tensors of a checkpoint folder, read when asked for."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self._where: dict[str, Path] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                self._where |= dict.fromkeys(file.keys(), path)
        if not self._where:
            raise ConfigError(
                f"{folder.name} holds no safetensors", hint="compare checkpoints in that format"
            )

    def __getitem__(self, name: str) -> torch.Tensor:
        from safetensors import safe_open

        with safe_open(self._where[name], framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)
