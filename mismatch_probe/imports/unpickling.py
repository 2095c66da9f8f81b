"""Pickles and torch files of a dump, read without running what they name.

A pickle names callables and the reader calls them. Here a name is looked up in a short list of things that only build
arrays, tensors and containers (`mismatch_probe.imports.allowed`); any other ends the reading, before anything was
imported or called.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, ClassVar

from mismatch_probe.errors import ConfigError
from mismatch_probe.imports.allowed import allowed_name, check_state

MAX_BYTES = 64 << 30
"""A dump file beyond this is refused."""


class RestrictedUnpickler(pickle._Unpickler):  # noqa: SLF001 (the C one has a public name, this one has none)
    """An unpickler that knows a fixed list of names and imports nothing.

    Python's own implementation, about 7 times slower than the one in C: its memo is a dict, so that a memo index makes no
    room for all the indices below it. In C five bytes take up to 32 GB.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)  # noqa: SLF001

    def find_class(self, module: str, name: str) -> Any:
        """Looks a name up in the list.

        Raises:
            UnpicklingError: It is not there.
        """
        found = allowed_name(module, name)
        if found is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return found

    def _load_build(self) -> None:
        """Gives an object its state, if that is one for it."""
        check_state(self.stack[-2], self.stack[-1])  # type: ignore[attr-defined]
        self.load_build()  # type: ignore[attr-defined]

    def _load_bytearray8(self) -> None:
        """Makes no room for more bytes than the file has, whatever length it declares."""
        (size,) = struct.unpack("<Q", self.read(8))  # type: ignore[attr-defined]
        self.append(bytearray(self.read(min(size, sys.maxsize))))  # type: ignore[attr-defined]

    dispatch[pickle.BUILD[0]] = _load_build
    dispatch[pickle.BYTEARRAY8[0]] = _load_bytearray8


class _Bounded:
    """A file that is never asked for more than it has left, whatever length a pickle declares."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._size = file, size

    def read(self, count: int = -1, /) -> bytes:
        left = self._size - self._file.tell()
        return self._file.read(left if count < 0 else min(count, left))

    def readline(self) -> bytes:
        return self._file.readline()


def read_pickle(path: Path) -> Any:
    """Content of a pickle, objects of unknown frameworks as `Held`; read front to back, and held once.

    Raises:
        ConfigError: The file is too big for this machine, damaged, or asks for anything outside the list.
    """
    size = _checked_size(path)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory // 2:
        raise ConfigError(
            f"{path} is {size / 1e9:.1f} GB, and a pickle is read into memory whole: this machine has "
            f"{memory / 1e9:.1f} GB",
            hint="import it on a larger machine",
        )
    with path.open("rb") as file:
        return _guarded(lambda: RestrictedUnpickler(_Bounded(file, size)).load(), str(path))


def read_torch(path: Path) -> Any:
    """Content of a `torch.save` file; its tensors are mapped, and come into memory where they are used.

    Raises:
        ConfigError: As `read_pickle`; also an archive that is compressed, holds code or names files outside itself.
    """
    return _load_torch(path, _checked_size(path), str(path))


def load_torch_bytes(data: bytes, where: str) -> Any:
    """Content of `torch.save` bytes: with torch's own weights-only reader, else with `RestrictedUnpickler`.

    Raises:
        ConfigError: As `read_torch`.
    """
    return _load_torch(data, len(data), where)


def _load_torch(source: Path | bytes, size: int, where: str) -> Any:
    import torch

    def opened() -> Any:
        return io.BytesIO(source) if isinstance(source, bytes) else source

    options: dict[str, Any] = {"map_location": "cpu", "mmap": not isinstance(source, bytes)}
    _check_archive(opened(), size, where)
    try:
        return torch.load(opened(), weights_only=True, **options)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        TypeError,
        AttributeError,
        LookupError,
        ValueError,
        AssertionError,
        OSError,
        EOFError,
    ):
        pass  # damaged, or not only weights: read below, name by name, which says what is wrong
    module = types.ModuleType("restricted_pickle")
    vars(module).update(Unpickler=RestrictedUnpickler, load=lambda file: RestrictedUnpickler(file).load())
    return _guarded(lambda: torch.load(opened(), weights_only=False, pickle_module=module, **options), where)


def _checked_size(path: Path) -> int:
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ConfigError(f"{path} is {size / 1e9:.0f} GB", hint="import single steps or ranks of the dump")
    if size == 0:
        raise ConfigError(f"{path} is empty")
    return size


def _check_archive(source: Any, size: int, where: str) -> None:
    try:
        with zipfile.ZipFile(source) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, LookupError, struct.error) as error:
        raise ConfigError(
            f"{where} is no whole torch.save archive",
            hint="it is truncated, or was written by torch before 1.6",
        ) from error
    for entry in entries:
        parts = entry.filename.split("/")
        if entry.filename.startswith("/") or ".." in parts:
            raise ConfigError(f"{where} is refused: it names a file outside itself ({entry.filename})")
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ConfigError(f"{where} is refused: it is compressed, which torch.save never does")
        if parts[-1] == "constants.pkl" or "code" in parts[1:-1]:
            raise ConfigError(f"{where} is refused: it holds code (TorchScript)")
    if sum(entry.file_size for entry in entries) > size:
        raise ConfigError(f"{where} is refused: its entries claim more bytes than the file has")


def _guarded(read: Callable[[], Any], where: str) -> Any:
    try:
        return read()
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"{where} is refused or damaged: {error}",
            hint="nothing in it was run; only arrays, tensors and the framework's own containers are read",
        ) from error
    except (
        *(EOFError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError),
        *(OSError, struct.error, zipfile.BadZipFile),
        SystemError,  # numpy, of a state that cannot be
    ) as error:
        raise ConfigError(f"{where} is damaged: {type(error).__name__}: {error}") from error
    except (MemoryError, OverflowError, RecursionError) as error:
        raise ConfigError(f"{where} is refused: reading it takes more memory than there is") from error
