"""TRL's completions table, where the run logged token ids and log-probabilities into it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.imports.importer import (
    ImportedSequence,
    Notes,
    dump_files,
    per_token,
    register_importer,
    token_ids,
)
from mismatch_probe.trace.parquet_pages import PageClaimError, open_parquet

_RENAMED = {
    "prompt_ids": "prompt_token_ids",
    "completion_ids": "response_token_ids",
    "logprobs": "rollout_logprobs",
    "old_per_token_logps": "train/forward",
    "tool_mask": "counted tokens",
    "advantage": "advantage",
}
_NEEDED = ("prompt_ids", "completion_ids", "logprobs")
_ROWS = 64


@register_importer("trl", summary="completions_N.parquet with ids and log-probabilities added by log_extra")
def trl(path: Path, notes: Notes) -> Iterator[ImportedSequence]:
    """Reads TRL's completions tables.

    TRL itself writes texts only. Texts are not turned into ids here: what a tokenizer makes of them need not be what
    was sampled, and the difference would look like drift.
    """
    import pyarrow as pa

    for file in dump_files(path, ("**/completions_*.parquet",), "TRL completions table"):
        try:
            table = open_parquet(file)
            missing = [name for name in _NEEDED if name not in table.schema_arrow.names]
            if missing:
                raise InconclusiveError(
                    f"{file.name} has no {', '.join(missing)}: it is text, and text is not what was sampled",
                    hint="add these columns with log_extra, or audit the checkpoint instead",
                )
            number = 0
            for batch in table.iter_batches(batch_size=_ROWS):
                for row in batch.to_pylist():
                    yield _sequence(row, f"{file.name} row {number}", notes)
                    number += 1
        except (
            pa.ArrowException,
            PageClaimError,
            MemoryError,
            OSError,
            UnicodeDecodeError,
            NotImplementedError,
        ) as error:
            raise ConfigError(f"{file} is damaged: {error}") from error


def _sequence(row: dict[str, object], where: str, notes: Notes) -> ImportedSequence:
    prompt = token_ids(row["prompt_ids"], where)
    response = token_ids(row["completion_ids"], where)

    def fill(name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        return np.concatenate([np.zeros(prompt.size), per_token(row[name], response.size, name, where)])

    counted = np.arange(prompt.size + response.size) >= prompt.size
    if row.get("tool_mask") is not None:
        counted &= fill("tool_mask") != 0
    notes.renamed.update({name: to for name, to in _RENAMED.items() if name in row})
    extras = {name: value for name, value in row.items() if name not in _RENAMED}
    notes.unknown.update(extras)
    advantage = row.get("advantage")
    return ImportedSequence(
        where=where,
        tokens=np.concatenate([prompt, response]),
        counted=counted,
        rollout_logprobs=fill("logprobs"),
        train_logprobs=None if row.get("old_per_token_logps") is None else fill("old_per_token_logps"),
        advantage=float(advantage) if isinstance(advantage, int | float) else None,
        extras=extras,
    )
