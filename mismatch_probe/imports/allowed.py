"""The names that a dump's pickle may call, and what stands for each: things that only build arrays and containers."""

from __future__ import annotations

import io
import math
import pickle
import re
from collections import OrderedDict
from itertools import pairwise
from typing import Any

import numpy as np

# As numpy pickles them; anything else it may parse as Python.
_PLAIN_DTYPE = re.compile(r"[a-zA-Z]\d{0,9}")
_DIMENSIONS = 32
EXPANDED_BYTES = 1 << 30
"""A tensor whose strides repeat its storage may say at most so many bytes; beyond, the file claims what it has not."""


class Held(dict[str, Any]):
    """Stands for an object of a class that is not imported: its state, as a dict."""

    def __setstate__(self, state: Any) -> None:
        self["__state__"] = state


class Ragged(list[Any]):
    """Rows of a nested tensor, each a tensor of its own shape."""


def allowed_name(module: str, name: str) -> Any:
    """What stands for a name in a pickle; None where the name is not allowed.

    Nothing is imported for it but torch, and nothing that it names is called.
    """
    found = _NAMES.get((module, name))
    if found is None and module == "torch":
        import torch

        thing = getattr(torch, name, None)
        if isinstance(thing, torch.dtype) or (name.endswith("Storage") and isinstance(thing, type)):
            return thing
    return found


def check_expanded(tensor: Any) -> None:
    """Refuses a tensor that its strides make far larger than what is stored.

    Raises:
        UnpicklingError: It is.
    """
    size = tensor.numel() * tensor.element_size()
    if size > EXPANDED_BYTES and size > tensor.untyped_storage().nbytes():
        raise pickle.UnpicklingError(
            f"a tensor says {size >> 20} MiB, its storage has {tensor.untyped_storage().nbytes()} bytes"
        )


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Any:
    from torch._utils import _rebuild_tensor_v2

    tensor = _rebuild_tensor_v2(storage, offset, size, stride, False, OrderedDict())
    check_expanded(tensor)
    return tensor


def _from_type(build: Any, _type: Any, arguments: Any, _state: Any) -> Any:
    if build not in (_tensor, _jagged):
        raise pickle.UnpicklingError("a tensor of an unknown kind")
    return build(*arguments)


def _jagged(parts: Any) -> Ragged:
    """A jagged nested tensor: rows one after the other along the first axis of the values."""
    if parts["lengths"] is not None or parts.get("_ragged_idx", 1) != 1:
        raise pickle.UnpicklingError("a nested tensor with holes, or ragged along another axis")
    values, bounds = parts["values"], [int(bound) for bound in parts["offsets"]]
    if bounds[:1] != [0] or bounds[-1] != len(values) or sorted(bounds) != bounds:
        raise pickle.UnpicklingError("a nested tensor whose rows do not fit its values")
    return Ragged(values[begin:end] for begin, end in pairwise(bounds))


def _strided(buffer: Any, sizes: Any, strides: Any, offsets: Any) -> Ragged:
    """A strided nested tensor: one flat buffer, and size, stride and begin of each row."""
    import torch

    rows = Ragged()
    for size, stride, offset in zip(sizes.tolist(), strides.tolist(), offsets.tolist(), strict=True):
        rows.append(torch.as_strided(buffer, size, stride, offset))
        check_expanded(rows[-1])
    return rows


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


def _tensordict(_cls: Any, state: Any) -> Any:
    return state.get("_tensordict", state) if isinstance(state, dict) else state


def _batch(_cls: Any, state: Any) -> Any:
    return state


class _Dtype:
    """`numpy.dtype` as a pickle names it: called with a plain name, and given its byte order as state."""

    def __new__(cls, *arguments: Any) -> Any:
        if not arguments or not isinstance(arguments[0], str) or not _PLAIN_DTYPE.fullmatch(arguments[0]):
            raise pickle.UnpicklingError("a dtype that is no plain name")
        # A copy: what the state says of it must not become true of every array of this process.
        return np.dtype(arguments[0], copy=True)


def check_state(thing: Any, state: Any) -> None:
    """Refuses a state that only an attack would have.

    numpy believes what its own state says of flags, sizes and shapes, and then reads memory that is not there.

    Raises:
        UnpicklingError: The state does not fit the object, or objects of this kind have none.
    """
    if callable(thing):
        raise pickle.UnpicklingError("it changes a function or a class")
    if type(thing).__module__.partition(".")[0] == "torch":
        raise pickle.UnpicklingError("it gives a tensor another content")
    if isinstance(thing, np.dtype) and not _is_state_of_dtype(thing, state):
        raise pickle.UnpicklingError("a dtype of an impossible state")
    if isinstance(thing, np.ndarray) and not _is_state_of_array(state):
        raise pickle.UnpicklingError("an array of an impossible state")


def _is_state_of_dtype(dtype: Any, state: Any) -> bool:
    """Whether a state says nothing new of a dtype but its byte order."""
    if not isinstance(state, tuple) or len(state) != 8:
        return False
    version, order, *inner, size, alignment, flags = state
    return (
        all(type(number) is int for number in (version, size, alignment, flags))
        and isinstance(order, str)
        and order in {"<", ">", "=", "|"}
        and inner == [None, None, None]
        and (size, alignment) in ((-1, -1), (dtype.itemsize, dtype.alignment))
        and flags == dtype.flags
    )


def _is_state_of_array(state: Any) -> bool:
    """Whether shape, dtype and data of an array fit each other."""
    if not isinstance(state, tuple) or len(state) != 5:
        return False
    version, shape, dtype, fortran, data = state
    if not (
        type(version) is int
        and isinstance(shape, tuple)
        and len(shape) <= _DIMENSIONS
        and all(type(size) is int and size >= 0 for size in shape)
        and isinstance(dtype, np.dtype)
        and isinstance(fortran, bool | int)
    ):
        return False
    if dtype.hasobject:
        return dtype == np.dtype(object) and isinstance(data, list) and len(data) == math.prod(shape)
    return isinstance(data, bytes) and len(data) == math.prod(shape) * dtype.itemsize


def _scalar(dtype: Any, data: Any = None) -> Any:
    if not isinstance(dtype, np.dtype) or dtype.hasobject:
        raise pickle.UnpicklingError("a numpy scalar that holds objects")
    return np.frombuffer(data, dtype=dtype, count=1)[0]


def _empty_array(_cls: Any, *_shape_and_code: Any) -> Any:
    """What numpy's pickles begin with: an array that takes shape, dtype and data from the state that follows."""
    return np.ndarray.__new__(np.ndarray, (0,), "b")


def _bytes(text: Any, encoding: Any = "latin1") -> bytes:
    """How protocol 2 writes bytes; no other codec."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the codec {encoding!r}")
    return str(text).encode("latin1")


def _bytearray(data: Any = b"", *_: Any) -> bytearray:
    if not isinstance(data, bytes):
        raise pickle.UnpicklingError("a bytearray of no bytes")
    return bytearray(data)


def _device(kind: Any, *_: Any) -> str:
    return str(kind)


def _inner_torch(data: bytes) -> Any:
    from mismatch_probe.imports.unpickling import load_torch_bytes

    return load_torch_bytes(data, "a tensor inside the dump")


_SKYRL = "skyrl.backends.skyrl_train.training_batch"
_NESTED = "torch.nested._internal.nested_tensor"
_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_io", "BytesIO"): io.BytesIO,
    ("builtins", "bytearray"): _bytearray,
    ("builtins", "set"): list,
    ("__builtin__", "set"): list,
    ("_codecs", "encode"): _bytes,
    ("numpy", "ndarray"): Held,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("torch", "Size"): tuple,
    ("torch", "Tensor"): Held,
    ("torch", "device"): _device,
    ("torch.storage", "_load_from_bytes"): _inner_torch,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_nested_tensor"): _strided,
    ("torch._tensor", "_rebuild_from_type_v2"): _from_type,
    ("torch._dynamo.decorators", "_DimRange"): Held,
    (_NESTED, "_rebuild_njt"): _jagged,
    (_NESTED, "NestedTensor"): Held,
    ("tensordict._reductions", "_rebuild_tensordict_files_consolidated"): _consolidated,
    ("tensordict._reductions", "_make_td"): _tensordict,
    ("tensordict._td", "TensorDict"): Held,
    ("tensordict.tensorclass", "NonTensorStack"): Held,
    ("tensordict.tensorclass", "NonTensorData"): Held,
    ("verl.protocol", "DataProto"): Held,
    ("roll.distributed.scheduler.protocol", "DataProto"): Held,
    (_SKYRL, "_rebuild_tensor_batch"): _batch,
    (_SKYRL, "TrainingInputBatch"): Held,
    ("skyrl_train.training_batch", "TrainingInputBatch"): Held,
}
