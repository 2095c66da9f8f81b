"""prime-rl's token exports and NeMo-RL's training data: JSON Lines, both sides in one row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mismatch_probe.errors import ConfigError
from mismatch_probe.imports.importer import (
    ImportedSequence,
    Notes,
    constant,
    dump_files,
    per_token,
    register_importer,
    require,
    token_ids,
)

_LINE_LIMIT = 1 << 28

_PRIME = {
    "token_ids": "prompt_token_ids + response_token_ids",
    "inference_logprobs": "rollout_logprobs",
    "trainer_logprobs": "train/forward",
    "loss_mask": "counted tokens",
    "advantages": "advantage",
}
_NEMO = {
    "token_ids": "prompt_token_ids + response_token_ids",
    "generation_logprobs": "rollout_logprobs",
    "prev_logprobs": "train/forward",
    "token_loss_mask": "counted tokens",
    "sample_loss_mask": "counted tokens",
    "input_lengths": "length without padding",
    "advantages": "advantage",
    "rewards": "reward",
}


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a JSON Lines file with the place of each.

    Raises:
        ConfigError: A line is no JSON object, or is over 256 MiB.
    """
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(_LINE_LIMIT + 1), b""), start=1):
            where = f"{path.name} line {number}"
            if len(line) > _LINE_LIMIT:
                raise ConfigError(f"{where} is longer than {_LINE_LIMIT >> 20} MiB")
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ConfigError(f"{where} is no JSON: {error}", hint="is the file truncated?") from error
            if not isinstance(row, dict):
                raise ConfigError(f"{where} is no JSON object")
            yield where, row


def _kept(row: dict[str, Any], known: dict[str, str], notes: Notes) -> dict[str, Any]:
    notes.renamed.update({name: to for name, to in known.items() if name in row})
    extras = {name: value for name, value in row.items() if name not in known}
    notes.unknown.update(extras)
    return extras


@register_importer("prime-rl", summary="token_exports/step_N/rank_R.jsonl, both sides")
def prime_rl(path: Path, notes: Notes) -> Iterator[ImportedSequence]:
    """Reads prime-rl's token exports: the log-probability at index i is that of token i."""
    for file in dump_files(path, ("**/rank_*.jsonl",), "prime-rl token export"):
        for where, row in read_json_lines(file):
            require(row, ("token_ids", "loss_mask", "inference_logprobs"), where)
            if row.get("schema_version", 1) != 1:
                raise ConfigError(f"{where} has schema version {row['schema_version']}, this reads 1")
            ids = token_ids(row["token_ids"], where)
            counted = per_token(row["loss_mask"], ids.size, "loss_mask", where) != 0
            trained = row.get("trainer_logprobs")
            advantages = row.get("advantages")
            yield ImportedSequence(
                where=where,
                tokens=ids,
                counted=counted,
                rollout_logprobs=per_token(row["inference_logprobs"], ids.size, "inference_logprobs", where),
                train_logprobs=None
                if trained is None
                else per_token(trained, ids.size, "trainer_logprobs", where),
                advantage=None
                if advantages is None
                else constant(per_token(advantages, ids.size, "advantages", where), counted),
                extras=_kept(row, _PRIME, notes),
            )


@register_importer("nemo-rl", summary="train_data_stepN.jsonl, both sides")
def nemo_rl(path: Path, notes: Notes) -> Iterator[ImportedSequence]:
    """Reads NeMo-RL's training data: padded to the longest of the batch, and the first log-probability is a filler."""
    for file in dump_files(path, ("**/train_data_step*.jsonl",), "NeMo-RL training data"):
        for where, row in read_json_lines(file):
            require(row, ("token_ids", "token_loss_mask", "input_lengths", "generation_logprobs"), where)
            padded = token_ids(row["token_ids"], where)
            length = int(np.ravel(row["input_lengths"])[0])
            if not 0 < length <= padded.size:
                raise ConfigError(f"{where}: input_lengths {length} does not fit {padded.size} token ids")

            def column(
                name: str, row: dict[str, Any] = row, where: str = where, size: int = padded.size
            ) -> Any:
                return per_token(row[name], size, name, where)

            counted = column("token_loss_mask")[:length] != 0
            if float(np.ravel(row.get("sample_loss_mask", 1.0))[0]) == 0:
                counted = np.zeros(length, dtype=bool)
            # Nothing precedes the first token, so no log-probability of it is one.
            counted[0] = False
            advantages = row.get("advantages")
            reward = row.get("rewards")
            yield ImportedSequence(
                where=where,
                tokens=padded[:length],
                counted=counted,
                rollout_logprobs=column("generation_logprobs")[:length],
                train_logprobs=None if row.get("prev_logprobs") is None else column("prev_logprobs")[:length],
                advantage=_sequence_value(advantages, padded.size, counted),
                reward=None if reward is None else float(np.ravel(reward)[0]),
                extras=_kept(row, _NEMO, notes),
            )


def _sequence_value(values: Any, size: int, counted: Any) -> float | None:
    if values is None:
        return None
    array = np.asarray(values, dtype=np.float64).ravel()
    if array.size == size:
        return constant(array[: counted.size], counted)
    return float(array[0]) if array.size == 1 else None
