"""verl's batches out of its transfer queue: trajectories without padding, one row of a nested tensor each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.imports.allowed import Held
from mismatch_probe.imports.importer import (
    FloatArray,
    ImportedSequence,
    Notes,
    constant,
    name_of,
    per_token,
    require,
    token_ids,
)
from mismatch_probe.imports.padded import as_array
from mismatch_probe.imports.routes import fed_routes
from mismatch_probe.imports.unpickling import read_torch

_NEEDED = ("prompts", "responses", "response_mask", "rollout_log_probs")
_RENAMED = {
    "prompts": "prompt_token_ids",
    "responses": "response_token_ids",
    "response_mask": "counted tokens",
    "rollout_log_probs": "rollout_logprobs",
    "old_log_probs": "train/forward",
    "routed_experts": "routing/rollout/decode",
    "uid": "prompt_id",
    "rm_scores": "reward",
    "advantages": "advantage",
}
_DERIVED = ("input_ids", "position_ids", "attention_mask", "loss_mask")
_VERSIONS = ("min_global_steps", "max_global_steps")


def queued_sequences(file: Path, where: str, notes: Notes) -> Iterator[ImportedSequence]:
    """Sequences of one `tq_batch.pt`.

    Args:
        file: The file.
        where: Its name, for messages.
        notes: Filled on the way.

    Raises:
        ConfigError: The file is damaged, not safe to read, or holds something else.
        InconclusiveError: Token ids, masks or rollout log-probabilities are missing.
    """
    payload = read_torch(file)
    batch = payload.get("tensordict") if isinstance(payload, dict) else None
    keys = payload.get("keys") if isinstance(payload, dict) else None
    if not isinstance(batch, dict) or not isinstance(keys, list):
        raise ConfigError(f"{file} holds no tensordict with keys")
    tags = payload.get("tags")
    if not isinstance(tags, list) or len(tags) != len(keys):
        tags = [{}] * len(keys)
    columns = {name: _rows(values) for name, values in batch.items()}
    for name, rows in columns.items():
        if name in _NEEDED and len(rows) != len(keys):
            raise ConfigError(f"{where}: {name} has {len(rows)} rows for {len(keys)} keys")
    for index, (key, tag) in enumerate(zip(keys, tags, strict=True)):
        name = name_of(key, "keys", where)
        row = {column: rows[index] for column, rows in columns.items() if len(rows) == len(keys)}
        yield _sequence(row, name, tag, f"{where} {name}", notes)


def _rows(values: Any) -> Sequence[Any]:
    """One value a trajectory, of a tensor, of a nested tensor or of a stack of other things."""
    state = values.get("__state__") if isinstance(values, Held) else None
    if not isinstance(state, dict):
        return values if hasattr(values, "__len__") and not isinstance(values, str | dict) else ()
    return [_value(held) for held in state.get("tensordicts", ())]


def _value(held: Any) -> Any:
    state = held.get("__state__") if isinstance(held, Held) else None
    if not isinstance(state, dict):
        return held
    other = state.get("non_tensordict")
    return other.get("data") if isinstance(other, dict) else None


def _sequence(row: Mapping[str, Any], key: str, tag: Any, where: str, notes: Notes) -> ImportedSequence:
    require(row, _NEEDED, where)
    prompt, response = (
        token_ids(as_array(row[name], name, where), where) for name in ("prompts", "responses")
    )
    tokens = np.concatenate([prompt, response])
    if row.get("input_ids") is not None and not np.array_equal(
        as_array(row["input_ids"], "input_ids", where), tokens
    ):
        raise InconclusiveError(f"{where}: input_ids is not prompts and responses one after the other")

    def fill(name: str) -> FloatArray:
        values = per_token(as_array(row[name], name, where), response.size, name, where)
        return np.concatenate([np.zeros(prompt.size), values])

    counted = fill("response_mask") != 0
    notes.renamed.update({name: to for name, to in _RENAMED.items() if row.get(name) is not None})
    extras = {name: value for name, value in row.items() if name not in _RENAMED and name not in _DERIVED}
    notes.unknown.update(extras)
    versions = [tag.get(name) for name in _VERSIONS] if isinstance(tag, dict) else []
    uid, routes, scores = (row.get(name) for name in ("uid", "routed_experts", "rm_scores"))
    return ImportedSequence(
        where=where,
        tokens=tokens,
        counted=counted,
        rollout_logprobs=fill("rollout_log_probs"),
        train_logprobs=fill("old_log_probs") if row.get("old_log_probs") is not None else None,
        # A key is the prompt's uid, the number of the sample and that of the piece of its trajectory.
        group=name_of(uid, "uid", where) if uid is not None else key.rsplit("_", 2)[0],
        advantage=constant(fill("advantages"), counted) if row.get("advantages") is not None else None,
        reward=None if scores is None else float(np.sum(as_array(scores, "rm_scores", where), dtype=np.float64)),
        weight_version="..".join(dict.fromkeys(name_of(v, "tags", where) for v in versions if v is not None)) or None,
        extras=extras,
        routes=None
        if routes is None
        else fed_routes(as_array(routes, "routed_experts", where), tokens.size, "routed_experts", where),
    )  # fmt: skip
