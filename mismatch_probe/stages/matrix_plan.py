"""Which pairs of a matrix are audited: every rollout engine samples in turn, every engine reads its tokens.

One side's samples cannot show what that side never samples, so a pair of rollout engines is measured in both directions. A
training-side forward cannot sample: it has a column and no row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from mismatch_probe.config.model import MatrixRollout, MatrixTrain, ProbeConfig
from mismatch_probe.errors import ConfigError

Entry = TypeVar("Entry", MatrixRollout, MatrixTrain)

CELLS = "cells"
READING_LEGS = ("rollout/decode", "train/forward", "train/repeat")


@dataclass(frozen=True, slots=True)
class Cell:
    """One pair: who samples and who reads.

    Attributes:
        source: Label of the rollout engine, such as "rollout/vllm".
        reader: Label of the engine that reads its tokens, such as "train/transformers".
        config: The audit of the pair; a rollout engine reads as the scorer "rollout-engine".
    """

    source: str
    reader: str
    config: ProbeConfig

    @property
    def is_pair(self) -> bool:
        """Whether the reader is a training-side forward, so that corrections and routing make sense."""
        return self.reader.startswith("train/")

    @property
    def folder(self) -> str:
        """Folder below the matrix's run directory."""
        return _folder(self.source, self.reader)


def plan_cells(config: ProbeConfig) -> list[Cell]:
    """The cells of a matrix, by source; the training-side readers first, since their rollout has every leg.

    Args:
        config: A configuration with `matrix`; a side without entries has the one of `rollout` or `train`.

    Raises:
        ConfigError: Two entries of a side have one name.
    """
    rollouts = config.matrix.rollout or (MatrixRollout(**config.rollout.model_dump()),)
    trains = config.matrix.train or (MatrixTrain(**config.train.model_dump()),)
    sources = _labels("rollout", [(entry.name or entry.engine, entry) for entry in rollouts])
    trainers = _labels("train", [(entry.name or entry.scorer, entry) for entry in trains])
    cells = []
    for source, rollout in sources.items():
        side: dict[str, Any] = {"rollout": rollout.model_dump(exclude={"name"}, exclude_unset=True)}
        for reader, train in trainers.items():
            changes = {**side, "train": train.model_dump(exclude={"name"}, exclude_unset=True)}
            cells.append(Cell(source, reader, _cell_config(config, _folder(source, reader), changes)))
        for reader, engine in sources.items():
            changes = {**side, "train": _reading(engine, config), "legs": READING_LEGS, "routing": False}
            cells.append(Cell(source, reader, _cell_config(config, _folder(source, reader), changes)))
    return cells


def _labels(side: str, named: Iterable[tuple[str, Entry]]) -> dict[str, Entry]:
    named = list(named)
    twice = [name for name, count in Counter(name for name, _ in named).items() if count > 1]
    if twice:
        raise ConfigError(
            f"matrix.{side} has {twice[0]!r} twice", hint="give each a name of its own: name = ..."
        )
    return {f"{side}/{name}": entry for name, entry in named}


def _reading(entry: MatrixRollout, config: ProbeConfig) -> dict[str, Any]:
    """A rollout engine as a scorer, reading the very distribution that it would sample from."""
    sampling = config.sampling
    return {
        "scorer": "rollout-engine",
        "model": entry.model or config.rollout_model,
        "dtype": entry.dtype,
        "options": {
            **entry.options,
            "engine": entry.engine,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
        },
    }


def _cell_config(config: ProbeConfig, folder: str, changes: dict[str, Any]) -> ProbeConfig:
    # Only what was set, so that a cell's defaults stay defaults (legs that a model does not have are left out of them).
    held = config.model_dump(mode="json", exclude_unset=True, exclude={"matrix", "rollout", "train", "out"})
    return ProbeConfig.model_validate({**held, **changes, "out": str(config.out / folder)})


def _folder(source: str, reader: str) -> str:
    return f"{CELLS}/{source.replace('/', '-')}--{reader.replace('/', '-')}"
