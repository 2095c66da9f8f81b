"""Rectangular batches: sequences padded on either side, a response that ends the row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.imports.importer import ImportedSequence, Notes, constant, token_ids


@dataclass(frozen=True, slots=True)
class PaddedLayout:
    """Which column of a batch is what; names that a batch lacks are skipped where they are not needed.

    Attributes:
        tokens: int [batch, length].
        attention: [batch, length], nonzero at real tokens.
        counted: Masks whose product says what counts, each [batch, length], [batch, length - 1] or [batch, response].
        rollout: Log-probabilities of the rollout engine, of any of those widths.
        train: Names under which the trainer's log-probabilities may be.
        advantage: Per response token or per sequence.
        reward: Per response token (summed over the row) or per sequence.
        group: Non-tensor column that names the prompt group.
        weight_version: Column with the weights' version, or None.
    """

    tokens: str
    attention: str
    counted: tuple[str, ...]
    rollout: str
    train: tuple[str, ...]
    advantage: str
    reward: str
    group: tuple[str, ...]
    weight_version: str | None = None


def as_array(value: Any, name: str, where: str) -> npt.NDArray[Any]:
    """A tensor, array or list as a numpy array; bfloat16 widens to float32.

    Raises:
        ConfigError: It is ragged or no array.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if value.is_floating_point():
            value = value.float() if value.dtype.itemsize <= 4 else value
        value = value.numpy()
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ConfigError(f"{where}: {name} is ragged") from error


def _full_width(array: npt.NDArray[Any], length: int, name: str, where: str) -> npt.NDArray[np.float64]:
    """float64 [batch, length]: a column of fewer positions belongs to the last ones, as each is that of its token."""
    if array.ndim != 2 or array.shape[1] > length or array.dtype.kind not in "biuf":
        raise ConfigError(
            f"{where}: {name} is {array.dtype} of shape {array.shape}, expected numbers [batch, up to {length}]"
        )
    full = np.zeros((array.shape[0], length), dtype=np.float64)
    full[:, length - array.shape[1] :] = array
    return full


def padded_sequences(
    batch: Mapping[str, Any], others: Mapping[str, Any], layout: PaddedLayout, where: str, notes: Notes
) -> Iterator[ImportedSequence]:
    """Sequences of one batch, padding removed.

    Args:
        batch: Tensors or arrays by name, each with one row a sequence.
        others: Non-tensor columns with one entry a sequence.
        layout: Of the framework.
        where: The file, for messages.
        notes: Filled on the way.

    Raises:
        InconclusiveError: Token ids, masks or rollout log-probabilities are missing.
        ConfigError: A column has another shape or type.
    """
    needed = (layout.tokens, layout.attention, *layout.counted, layout.rollout)
    missing = [name for name in needed if batch.get(name) is None]
    if missing:
        raise InconclusiveError(
            f"{where} has no {', '.join(missing)}", hint=f"it has {', '.join(sorted(batch))}"
        )
    arrays = {name: as_array(value, name, where) for name, value in batch.items() if value is not None}
    rows, length = arrays[layout.tokens].shape if arrays[layout.tokens].ndim == 2 else (0, 0)
    if rows == 0:
        raise InconclusiveError(f"{where}: {layout.tokens} holds no sequences [batch, length]")
    trained = next((name for name in layout.train if name in arrays), None)
    columns = {
        name: _full_width(arrays[name], length, name, where)
        for name in (layout.attention, *layout.counted, layout.rollout, *([trained] if trained else []))
    }
    for name, array in arrays.items():
        if len(array) != rows:
            raise ConfigError(f"{where}: {name} has {len(array)} rows, {layout.tokens} has {rows}")
    real = columns[layout.attention] != 0
    counted = real & np.logical_and.reduce([columns[name] != 0 for name in layout.counted])
    known = {*needed, *layout.train, layout.advantage, layout.reward, *layout.group, layout.weight_version}
    renamed: list[tuple[str | None, str]] = [
        (layout.tokens, "prompt_token_ids + response_token_ids"),
        (layout.rollout, "rollout_logprobs"),
        (trained, "train/forward"),
        *((mask, "counted tokens") for mask in layout.counted),
    ]
    notes.renamed.update({name: to for name, to in renamed if name is not None})
    per_row = {name: values for name, values in others.items() if _is_column(values, rows)}
    notes.unknown.update(name for name in {*arrays, *per_row} if name not in known)
    for row in range(rows):
        place, keep = f"{where} row {row}", real[row]
        yield ImportedSequence(
            where=place,
            tokens=token_ids(arrays[layout.tokens][row][keep], place),
            counted=counted[row][keep],
            rollout_logprobs=columns[layout.rollout][row][keep],
            train_logprobs=None if trained is None else columns[trained][row][keep],
            group=next((str(per_row[name][row]) for name in layout.group if name in per_row), None),
            advantage=_of_sequence(arrays.get(layout.advantage), row, length, counted[row]),
            reward=_reward(arrays.get(layout.reward), row),
            weight_version=str(per_row[layout.weight_version][row])
            if layout.weight_version in per_row
            else None,
            extras=_extras(arrays, per_row, known, row),
        )  # fmt: skip


def _extras(
    arrays: Mapping[str, npt.NDArray[Any]], per_row: Mapping[str, Any], known: set[str | None], row: int
) -> dict[str, Any]:
    """Columns without a place in a run, of one row."""
    own = {name: array[row].tolist() for name, array in arrays.items() if name not in known}
    return own | {name: values[row] for name, values in per_row.items() if name not in known}


def _is_column(values: Any, rows: int) -> bool:
    return isinstance(values, list | tuple | np.ndarray) and len(values) == rows


def _of_sequence(
    array: npt.NDArray[Any] | None, row: int, length: int, counted: npt.NDArray[np.bool_]
) -> float | None:
    if array is None:
        return None
    if array.ndim == 1:
        return float(array[row])
    full = np.zeros(length)
    full[length - array.shape[1] :] = array[row]
    return constant(full, counted)


def _reward(array: npt.NDArray[Any] | None, row: int) -> float | None:
    return None if array is None else float(np.sum(array[row]))
