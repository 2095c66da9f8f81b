"""SkyRL's training batches: both sides, pickled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mismatch_probe.errors import ConfigError
from mismatch_probe.imports.allowed import Held
from mismatch_probe.imports.importer import ImportedSequence, Notes, dump_files, register_importer
from mismatch_probe.imports.padded import PaddedLayout, padded_sequences
from mismatch_probe.imports.unpickling import load_torch_bytes, read_pickle

_SKYRL = PaddedLayout(
    tokens="sequences",
    attention="attention_mask",
    counted=("response_mask", "loss_mask"),
    rollout="rollout_logprobs",
    train=("action_log_probs",),
    advantage="advantages",
    reward="rewards",
    group=("uids",),
    routes="rollout_expert_indices",
    unrouted="router_padding_mask",
)


@register_importer("skyrl", summary="global_step_N_training_input.pkl, both sides")
def skyrl(path: Path, notes: Notes) -> Iterator[ImportedSequence]:
    """Reads SkyRL's dumped training batches: left-padded, with columns for the response at the row's end."""
    for file in dump_files(path, ("**/*training_input.pkl",), "SkyRL training batch"):
        state = read_pickle(file)
        if isinstance(state, Held):
            state = state.get("__state__")
        if not isinstance(state, dict):
            raise ConfigError(f"{file} holds no training batch")
        tensors = state.get("batch_dict")
        if not isinstance(tensors, dict):
            raise ConfigError(f"{file} holds no training batch")
        batch = {}
        for name, value in tensors.items():
            if isinstance(value, dict) and value.get("format") == "tensor_list":
                notes.dropped[f"column {name}: a list of tensors of several shapes"] += 1
            elif value is not None:
                batch[name] = _tensor(value, name, str(file))
        if _SKYRL.unrouted not in batch and batch.pop(_SKYRL.routes, None) is not None:
            # Without the mask its filler, experts 0 to top_k - 1, is not to be told from a route.
            notes.dropped[
                f"column {_SKYRL.routes}: no {_SKYRL.unrouted} says which of them were recorded"
            ] += 1
        metadata = state.get("metadata")
        yield from padded_sequences(
            batch, metadata if isinstance(metadata, Mapping) else {}, _SKYRL, file.name, notes
        )


def _tensor(value: Any, name: str, where: str) -> Any:
    try:
        if value.get("format") == "torch":
            return load_torch_bytes(value["data"], where)
        dtype = np.dtype(str(value["dtype"]))
        if dtype.hasobject:
            raise ConfigError(f"{where}: {name} holds objects")
        return np.frombuffer(value["data"], dtype=dtype).reshape(value["shape"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{where}: {name} is damaged: {error}") from error
