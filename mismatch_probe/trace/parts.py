"""Files that exist whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import RunDirectoryError
from mismatch_probe.trace.parquet_pages import open_parquet

if TYPE_CHECKING:
    import pyarrow as pa

_TEMPORARY_SUFFIX = ".partial"
Note = Callable[[Path, str], None]
"""Takes a file's name to be and the SHA-256 of its bytes, before the file has that name."""


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Says which file could not be written and why, in the place of the system's error.

    Raises:
        RunDirectoryError: The system refused: no space, no right, a read-only file system.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise RunDirectoryError(
            f"cannot write {path}: {error.strerror or error}",
            hint="make room, then go on with --resume: what was written is whole"
            if full
            else "give another place",
        ) from error


def write_atomically(path: Path, write: Callable[[Path], None], note: Note | None = None) -> None:
    """Writes `path` through a temporary name: written, synced to disk, renamed, the folder synced.

    Args:
        path: Where the file is to be.
        write: Writes the whole content to the path it is given.
        note: Called with the content's checksum before the file gets its name.

    Raises:
        RunDirectoryError: The system refused.
    """
    with storage_errors(path):
        _write_atomically(path, write, note)


def _write_atomically(path: Path, write: Callable[[Path], None], note: Note | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Processes of two nodes may have one number.
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}{_TEMPORARY_SUFFIX}")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
            if note is not None:
                note(path, hashlib.file_digest(file, "sha256").hexdigest())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically; NaN and infinity are refused, they are no JSON."""
    text = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    write_text(path, text)


def write_text(path: Path, text: str, note: Note | None = None) -> None:
    """Writes UTF-8 text atomically; `note` as of `write_atomically`."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomically(path, write, note)


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
        RunDirectoryError: The file is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunDirectoryError(f"{path} does not exist") from error
    except (OSError, ValueError, RecursionError) as error:
        raise RunDirectoryError(
            f"{path} is damaged: {error}", hint="run the stage that writes it again"
        ) from error


def remove_partial_files(folder: Path) -> None:
    """Removes what a killed process left behind; such files are never read."""
    for path in folder.rglob(f"*{_TEMPORARY_SUFFIX}"):
        path.unlink(missing_ok=True)


def part_name(index: int, suffix: str) -> str:
    """Name of part `index`: part-00003.parquet."""
    return f"part-{index:05d}.{suffix}"


def write_table(path: Path, table: pa.Table, note: Note | None = None) -> None:
    """Writes a parquet part atomically; `note` as of `write_atomically`."""
    import pyarrow.parquet as pq

    write_atomically(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"), note)


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """Reads a parquet part and checks its columns.

    Raises:
        RunDirectoryError: The part is damaged, or a column is missing or of another type.
    """
    import pyarrow as pa

    try:
        # pyarrow's read_table would import its datasets, and with them pandas, which takes a second.
        with open_parquet(path) as part:
            return part.read().select(schema.names).cast(schema)
    # A name that is no UTF-8 comes out as a ValueError, a type that Arrow does not have as a NotImplementedError.
    except (pa.ArrowException, MemoryError, OSError, KeyError, ValueError, NotImplementedError) as error:
        raise RunDirectoryError(
            f"{path} is damaged or of another version: {error}", hint="record or score it again"
        ) from error


@dataclass(frozen=True, slots=True)
class RoutingPart:
    """The routes of one part.

    Attributes:
        experts: int16 [tokens, MoE layers, top_k].
        offsets: int64 [sequences + 1]; where each sequence's fed tokens begin and end.
        sequence_id: int64 [sequences].
        gates: float16 [tokens, MoE layers, top_k]; the weight of each expert, or None where the leg does not give them.
        margins: float16 [tokens, MoE layers]; the router's score of its last choice minus that of the first expert left
            out, or None.
    """

    experts: npt.NDArray[np.int16]
    offsets: npt.NDArray[np.int64]
    sequence_id: npt.NDArray[np.int64]
    gates: npt.NDArray[np.float16] | None = None
    margins: npt.NDArray[np.float16] | None = None


def write_routing(
    path: Path,
    experts: list[npt.NDArray[np.int16]],
    sequence_ids: list[int],
    *,
    gates: Sequence[npt.NDArray[np.floating]] | None = None,
    margins: Sequence[npt.NDArray[np.floating]] | None = None,
    note: Note | None = None,
) -> None:
    """Writes the routes of one part atomically.

    Args:
        path: The safetensors file.
        experts: Per sequence, int16 [fed tokens, MoE layers, top_k].
        sequence_ids: One per sequence.
        gates: Per sequence, float [fed tokens, MoE layers, top_k], kept as float16; or None.
        margins: Per sequence, float [fed tokens, MoE layers], kept as float16; or None.
        note: As of `write_atomically`.
    """
    lengths = np.array([0, *[len(rows) for rows in experts]], dtype=np.int64)
    tensors: dict[str, npt.NDArray[Any]] = {
        "experts": np.ascontiguousarray(np.concatenate(experts)),
        "offsets": np.cumsum(lengths),
        "sequence_id": np.asarray(sequence_ids, dtype=np.int64),
    }
    for name, arrays in (("gates", gates), ("margins", margins)):
        if arrays is not None:
            tensors[name] = np.concatenate(arrays).astype(np.float16)
    write_atomically(path, lambda temporary: save_tensors(temporary, tensors), note)


def save_tensors(path: Path, tensors: dict[str, npt.NDArray[Any]]) -> None:
    """Writes a safetensors file.

    Raises:
        OSError: The system refused, which safetensors says as an error of its own.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file(tensors, path)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise OSError(str(error)) from error
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def read_routing_part(path: Path) -> RoutingPart:
    """Reads the routes of one part.

    Raises:
        RunDirectoryError: The part is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
        return RoutingPart(
            tensors["experts"],
            tensors["offsets"],
            tensors["sequence_id"],
            tensors.get("gates"),
            tensors.get("margins"),
        )
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise RunDirectoryError(f"{path} is damaged: {error}", hint="record or score it again") from error


def read_routing(path: Path) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Reads the experts of one part.

    Returns:
        experts int16 [tokens, MoE layers, top_k], offsets int64 [sequences + 1], sequence_id int64 [sequences].

    Raises:
        RunDirectoryError: The part is damaged.
    """
    part = read_routing_part(path)
    return part.experts, part.offsets, part.sequence_id
