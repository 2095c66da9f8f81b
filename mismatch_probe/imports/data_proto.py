"""verl's and ROLL's recorded batches: a pickled DataProto, whose tensors are one consolidated TensorDict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mismatch_probe.errors import ConfigError
from mismatch_probe.imports.allowed import Held
from mismatch_probe.imports.importer import ImportedSequence, Notes, dump_files, register_importer
from mismatch_probe.imports.padded import PaddedLayout, padded_sequences
from mismatch_probe.imports.transfer_queue import queued_sequences
from mismatch_probe.imports.unpickling import load_torch_bytes, read_pickle

_VERL = PaddedLayout(
    tokens="input_ids",
    attention="attention_mask",
    counted=("response_mask",),
    rollout="rollout_log_probs",
    train=("old_log_probs",),
    advantage="advantages",
    reward="token_level_scores",
    group=("uid",),
    routes="routed_experts",
)
# ROLL's fork of the batch renames what the rollout engine said and what names a group.
_ROLL = replace(_VERL, rollout="infer_logprobs", reward="scores", group=("group_ids", "prompt_id", "uid"))


def _data_proto(file: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Tensors and non-tensor columns of a pickled DataProto."""
    held = read_pickle(file)
    state = held.get("__state__") if isinstance(held, Held) else None
    if not isinstance(state, tuple) or len(state) not in (3, 4):
        raise ConfigError(f"{file} holds no DataProto")
    data = state[0].getvalue() if hasattr(state[0], "getvalue") else state[0]
    if not isinstance(data, bytes):
        raise ConfigError(
            f"{file} was written in another layout (VERL_DATAPROTO_SERIALIZATION_METHOD=numpy)",
            hint="record without that variable",
        )
    if len(state) == 4 and state[2] is not None:
        raise ConfigError(f"{file} keeps its tensors on other machines (remote batch): they are not in it")
    batch = load_torch_bytes(data, str(file))
    if not isinstance(batch, dict) or not isinstance(state[1], dict):
        raise ConfigError(f"{file} holds no TensorDict")
    return batch, state[1]


@register_importer("verl", summary="gen_batch.dp or tq_batch.pt of the skip manager, rollout side")
def verl(path: Path, notes: Notes) -> Iterator[ImportedSequence]:
    """Reads what verl's skip manager records: the rollout's side, and `old_log_probs` where a batch has them."""
    for file in dump_files(path, ("**/gen_batch.dp", "**/tq_batch.pt"), "verl recorded batch"):
        where = f"{file.parent.name}/{file.name}"
        if file.suffix == ".pt":
            yield from queued_sequences(file, where, notes)
        else:
            yield from padded_sequences(*_data_proto(file), _VERL, where, notes)


@register_importer("roll", summary="step_NNNNNN.pkl of rollout_mock, rollout side")
def roll(path: Path, notes: Notes) -> Iterator[ImportedSequence]:
    """Reads what ROLL's rollout mock records; its log-probabilities begin with the second token."""
    for file in dump_files(path, ("**/step_*.pkl",), "ROLL recorded batch"):
        yield from padded_sequences(*_data_proto(file), _ROLL, file.name, notes)
