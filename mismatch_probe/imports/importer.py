"""What an importer gives, and importers by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.registry import Registry

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
RouteArray = npt.NDArray[np.int16]


MAX_VALUES = 1 << 24
"""A column of one sequence may hold so many values as Python lists."""


@dataclass(frozen=True, slots=True)
class ImportedSequence:
    """One sequence of a dump; everything per token is aligned with `tokens`.

    Attributes:
        where: Place in the dump, for messages ("rank_0.jsonl line 3").
        tokens: int64 [tokens], prompt and response without padding.
        counted: bool [tokens]; the tokens that the framework's loss and metrics count.
        rollout_logprobs: float64 [tokens], nats; log mu of each token given those before it. Anything where not counted.
        train_logprobs: float64 [tokens], nats, log pi; None in a one-sided dump.
        group: Name of the prompt group; None takes the prompt's ids for it.
        advantage: Of the sequence, or None.
        reward: Of the sequence, or None.
        weight_version: Of the rollout's weights, or None.
        extras: Columns without a place in a run; kept beside it.
        routes: int16 [tokens - 1, layers, top_k]; experts that the rollout gave each fed token, -1 where not recorded; or
            None.
    """

    where: str
    tokens: IntArray
    counted: BoolArray
    rollout_logprobs: FloatArray
    train_logprobs: FloatArray | None = None
    group: str | None = None
    advantage: float | None = None
    reward: float | None = None
    weight_version: str | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)
    routes: RouteArray | None = None


@dataclass(slots=True)
class Notes:
    """What became of a dump's columns, filled while its sequences are read.

    Attributes:
        renamed: Column of the dump to column of the run.
        unknown: Columns kept beside the run, as they are.
        missing: What the dump does not have, each with what follows.
        dropped: Reasons for which sequences or columns were left out, with how often.
    """

    renamed: dict[str, str] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    missing: dict[str, str] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)


class Importer(Protocol):
    """Reads one framework's dump."""

    def __call__(self, path: Path, notes: Notes) -> Iterator[ImportedSequence]:
        """Yields the sequences of a dump, in a fixed order.

        Args:
            path: A file or folder of the dump.
            notes: Filled on the way.

        Raises:
            ConfigError: The path holds no such dump, or one that is damaged or not safe to read.
            InconclusiveError: The dump has no token ids or no rollout log-probabilities.
        """
        ...


def _load_own() -> None:
    import mismatch_probe.imports.data_proto
    import mismatch_probe.imports.json_lines
    import mismatch_probe.imports.samples
    import mismatch_probe.imports.skyrl
    import mismatch_probe.imports.trl  # noqa: F401  (each registers itself)


importers: Registry[Importer] = Registry("dump format", "mismatch_probe.importers", _load_own)


def register_importer(name: str, *, summary: str) -> Callable[[Importer], Importer]:
    """Decorates a function so that `import --from NAME` finds it."""

    def register(importer: Importer) -> Importer:
        importers.add(name, importer, summary)
        return importer

    return register


def per_token(values: Any, length: int, what: str, where: str) -> FloatArray:
    """Values of a dump as float64 [length]; null becomes NaN, which the measurement names.

    Raises:
        ConfigError: They are no numbers, nested, or of another length.
    """
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {what} is not a list of numbers") from error
    if array.shape != (length,):
        raise ConfigError(
            f"{where}: {what} has shape {array.shape}, expected ({length},)",
            hint="the dump is ragged or of another version of the framework",
        )
    return array


def token_ids(values: Any, where: str) -> IntArray:
    """Token ids of a dump as int64 [tokens].

    Raises:
        ConfigError: They are not whole numbers that fit an id.
    """
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ConfigError(f"{where}: token ids are nested") from error
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ConfigError(f"{where}: token ids are no list of whole numbers (dtype {array.dtype})")
    ids = array.astype(np.int64)
    if ids.size and (ids.min() < 0 or ids.max() >= 2**31):
        raise ConfigError(f"{where}: a token id is negative or beyond 32 bits", hint="is padding included?")
    return ids


def check_values(value: Any, what: str, where: str) -> None:
    """Refuses nested lists that hold one another so often that they say far more than the file does.

    Raises:
        ConfigError: There are more than 2^24 values, each counted as often as it is reached.
    """
    try:
        unfolded = _unfolded(value, {})
    except RecursionError as error:
        raise ConfigError(f"{where}: {what} is refused: it is nested too deep") from error
    if unfolded > MAX_VALUES:
        raise ConfigError(f"{where}: {what} is refused: it unfolds to over {MAX_VALUES} values")


def _unfolded(value: Any, known: dict[int, int]) -> int:
    """Values that a column says, each list counted once and added wherever it is held."""
    if isinstance(value, str | bytes):
        return 1 + len(value) // 8
    if not isinstance(value, list | tuple | Mapping):
        return 1
    if id(value) not in known:
        known[id(value)] = MAX_VALUES + 1  # what a list that holds itself comes to
        entries = value.values() if isinstance(value, Mapping) else value
        known[id(value)] = sum(_unfolded(entry, known) for entry in entries)
    return known[id(value)]


def name_of(value: Any, what: str, where: str) -> str:
    """A group or a version as text.

    Raises:
        ConfigError: It is neither text nor a number.
    """
    plain = value.item() if hasattr(value, "item") and np.size(value) == 1 else value
    if not isinstance(plain, str | int | float):
        raise ConfigError(f"{where}: {what} is {type(value).__name__}, expected text or a number")
    return str(plain)


def constant(values: Any, counted: BoolArray) -> float | None:
    """The one value that a per-token column holds over the counted tokens; None where it varies or is not finite."""
    held = np.asarray(values, dtype=np.float64)[counted]
    return float(held[0]) if held.size and np.isfinite(held[0]) and np.all(held == held[0]) else None


def dump_files(path: Path, patterns: tuple[str, ...], what: str) -> list[Path]:
    """The file itself, or the files of a folder that match any of the patterns, by name and number.

    Links are not followed out of the folder.

    Raises:
        ConfigError: There is none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ConfigError(f"{path} does not exist", hint="give the dump's file or folder")
    root = path.resolve()
    found = {entry for pattern in patterns for entry in path.glob(pattern) if entry.is_file()}
    inside = [entry for entry in found if entry.resolve().is_relative_to(root)]
    if not inside:
        raise ConfigError(f"{path} holds no {what}", hint=f"looked for {', '.join(patterns)}")
    return sorted(inside, key=_natural)


def _natural(path: Path) -> list[tuple[int, int, str]]:
    import re

    pieces = re.split(r"(\d+)", str(path))
    return [(1, int(piece), "") if piece.isdigit() else (0, 0, piece) for piece in pieces]


def require(row: Mapping[str, Any], names: tuple[str, ...], where: str) -> None:
    """Checks that columns are there.

    Raises:
        InconclusiveError: One is missing; all missing ones are named.
    """
    missing = [name for name in names if row.get(name) is None]
    if missing:
        raise InconclusiveError(
            f"{where} has no {', '.join(missing)}", hint=f"it has {', '.join(sorted(map(str, row)))[:300]}"
        )
