"""verl's and ROLL's recorded batches: a pickled DataProto, whose tensors are one consolidated TensorDict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mismatch_probe.errors import ConfigError
from mismatch_probe.imports.importer import ImportedSequence, Notes, dump_files, register_importer
from mismatch_probe.imports.padded import PaddedLayout, padded_sequences
from mismatch_probe.imports.unpickling import Held, load_torch_bytes, read_pickle, read_torch

_VERL = PaddedLayout(
    tokens="input_ids",
    attention="attention_mask",
    counted=("response_mask",),
    rollout="rollout_log_probs",
    train=("old_log_probs",),
    advantage="advantages",
    reward="token_level_scores",
    group=("uid",),
)
_ROLL = PaddedLayout(
    tokens="input_ids",
    attention="attention_mask",
    counted=("response_mask",),
    rollout="infer_logprobs",
    train=("old_log_probs",),
    advantage="advantages",
    reward="scores",
    group=("group_ids", "prompt_id", "uid"),
)


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
    files = dump_files(path, ("**/gen_batch.dp", "**/tq_batch.pt"), "verl recorded batch")
    for file in files:
        if file.suffix == ".pt":
            payload = read_torch(file)
            batch = payload.get("tensordict") if isinstance(payload, dict) else None
            if not isinstance(batch, dict):
                raise ConfigError(f"{file} holds no tensordict")
            others: Mapping[str, Any] = {}
        else:
            batch, others = _data_proto(file)
        _drop_routes(batch, notes)
        yield from padded_sequences(batch, others, _VERL, _name(file), notes)


@register_importer("roll", summary="step_NNNNNN.pkl of rollout_mock, rollout side")
def roll(path: Path, notes: Notes) -> Iterator[ImportedSequence]:
    """Reads what ROLL's rollout mock records; its log-probabilities begin with the second token."""
    for file in dump_files(path, ("**/step_*.pkl",), "ROLL recorded batch"):
        batch, others = _data_proto(file)
        _drop_routes(batch, notes)
        yield from padded_sequences(batch, others, _ROLL, file.name, notes)


def _name(file: Path) -> str:
    return f"{file.parent.name}/{file.name}"


def _drop_routes(batch: Any, notes: Notes) -> None:
    if batch.pop("routed_experts", None) is not None:
        notes.dropped["column routed_experts: routes are not imported"] += 1
