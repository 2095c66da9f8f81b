"""Pickles and torch files of a dump, read without running what they name.

A pickle names callables and the reader calls them. Here a name is looked up in a short list of things that only build
arrays, tensors and containers; any other ends the reading, before anything was imported or called.
"""

from __future__ import annotations

import io
import pickle
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mismatch_probe.errors import ConfigError

MAX_BYTES = 64 << 30
"""A dump file beyond this is refused: it is read into memory whole."""


class Held(dict[str, Any]):
    """Stands for an object of a class that is not imported: its state, as a dict."""

    def __setstate__(self, state: Any) -> None:
        self["__state__"] = state


def _rebuild_batch(_cls: Any, state: Any) -> Any:
    return state


def _held_dict(_cls: Any, state: Any) -> Any:
    return state.get("_tensordict", state) if isinstance(state, dict) else state


def _consolidated(metadata: Any, storage: Any) -> dict[str, Any]:
    """Tensors of a consolidated TensorDict: views of one byte storage, as its metadata says."""
    import torch

    tensors: dict[str, Any] = dict(metadata["non_tensors"])
    for name, (dtype, shape, start, stop, pad) in metadata["leaves"].items():
        kind = getattr(torch, str(dtype).removeprefix("torch."), None)
        if not isinstance(kind, torch.dtype) or not 0 <= start <= stop - pad <= len(storage):
            raise pickle.UnpicklingError(f"field {name!r} has impossible metadata")
        tensors[name] = storage[start : stop - pad].view(kind).reshape(shape)
    return tensors


def _dtype(*arguments: Any) -> Any:
    """numpy.dtype without structured or callable descriptions."""
    if not arguments or not isinstance(arguments[0], str):
        raise pickle.UnpicklingError("a dtype that is no plain name")
    return np.dtype(*arguments)


class _Dtype:
    """`numpy.dtype` as a pickle names it: called, and given its byte order as state."""

    def __new__(cls, *arguments: Any) -> Any:
        return _dtype(*arguments)


def _no_scalar_code(dtype: Any, data: Any = None) -> Any:
    if not isinstance(dtype, np.dtype) or dtype.hasobject:
        raise pickle.UnpicklingError("a numpy scalar that holds objects")
    return np.frombuffer(data, dtype=dtype, count=1)[0]


def _empty_array(_cls: Any, *_shape_and_code: Any) -> Any:
    """What numpy's pickles begin with: an array that takes shape, dtype and data from the state that follows."""
    return np.ndarray.__new__(np.ndarray, (0,), "b")


def _allowed() -> dict[tuple[str, str], Any]:
    names: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("_io", "BytesIO"): io.BytesIO,
        ("builtins", "bytearray"): bytearray,
        ("_codecs", "encode"): _encode,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): _Dtype,
        ("torch", "Size"): tuple,
        ("torch", "device"): lambda *arguments: str(arguments[0]),
        ("tensordict._reductions", "_rebuild_tensordict_files_consolidated"): _consolidated,
        ("tensordict._reductions", "_make_td"): _held_dict,
        ("tensordict._td", "TensorDict"): Held,
        ("verl.protocol", "DataProto"): Held,
        ("roll.distributed.scheduler.protocol", "DataProto"): Held,
        ("skyrl.backends.skyrl_train.training_batch", "_rebuild_tensor_batch"): _rebuild_batch,
        ("skyrl.backends.skyrl_train.training_batch", "TrainingInputBatch"): Held,
        ("skyrl_train.training_batch", "TrainingInputBatch"): Held,
    }
    for core in ("numpy.core.multiarray", "numpy._core.multiarray"):
        names[core, "_reconstruct"] = _empty_array
        names[core, "scalar"] = _no_scalar_code
    return names


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """How protocol 2 writes bytes; no other codec."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the codec {encoding!r}")
    return str(text).encode("latin1")


class RestrictedUnpickler(pickle.Unpickler):
    """An unpickler that knows a fixed list of names and imports nothing."""

    def find_class(self, module: str, name: str) -> Any:
        """Looks a name up in the list.

        Raises:
            UnpicklingError: It is not there.
        """
        found = _allowed().get((module, name))
        if found is not None:
            return found
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _inner_torch
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            from torch._utils import _rebuild_tensor_v2

            return _rebuild_tensor_v2
        if module == "torch":
            import torch

            thing = getattr(torch, name, None)
            if isinstance(thing, torch.dtype) or (name.endswith("Storage") and isinstance(thing, type)):
                return thing
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _inner_torch(data: bytes) -> Any:
    return load_torch_bytes(data, "a tensor inside the dump")


def read_pickle(path: Path) -> Any:
    """Content of a pickle, objects of unknown frameworks as `Held`.

    Raises:
        ConfigError: The file is too big, damaged, or asks for anything outside the list.
    """
    _check_size(path)
    return _guarded(lambda: RestrictedUnpickler(io.BytesIO(path.read_bytes())).load(), str(path))


def read_torch(path: Path) -> Any:
    """Content of a `torch.save` file.

    Raises:
        ConfigError: As `read_pickle`; also an archive that is compressed, holds code or names files outside itself.
    """
    _check_size(path)
    return load_torch_bytes(path.read_bytes(), str(path))


def load_torch_bytes(data: bytes, where: str) -> Any:
    """Content of `torch.save` bytes: with torch's own weights-only reader, else with `RestrictedUnpickler`.

    Raises:
        ConfigError: As `read_torch`.
    """
    import torch

    _check_archive(data, where)
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, TypeError, AttributeError):
        pass  # not only weights: read below, name by name, which says what is wrong
    module = types.ModuleType("restricted_pickle")
    vars(module).update(Unpickler=RestrictedUnpickler, load=lambda file: RestrictedUnpickler(file).load())
    return _guarded(
        lambda: torch.load(io.BytesIO(data), map_location="cpu", weights_only=False, pickle_module=module),
        where,
    )


def _check_size(path: Path) -> None:
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ConfigError(f"{path} is {size / 1e9:.0f} GB", hint="import single steps or ranks of the dump")
    if size == 0:
        raise ConfigError(f"{path} is empty")


def _check_archive(data: bytes, where: str) -> None:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
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
    if sum(entry.file_size for entry in entries) > len(data):
        raise ConfigError(f"{where} is refused: its entries claim more bytes than the file has")


def _guarded(read: Callable[[], Any], where: str) -> Any:
    try:
        return read()
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"{where} is refused or damaged: {error}",
            hint="nothing in it was run; only arrays, tensors and the framework's own containers are read",
        ) from error
    except (EOFError, RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ConfigError(f"{where} is damaged: {type(error).__name__}: {error}") from error
    except (MemoryError, OverflowError, RecursionError) as error:
        raise ConfigError(f"{where} is refused: reading it takes more memory than there is") from error
