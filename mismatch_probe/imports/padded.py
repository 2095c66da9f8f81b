"""Rectangular batches: sequences padded on either side, a response that ends the row."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.imports.allowed import check_expanded
from mismatch_probe.imports.importer import (
    ImportedSequence,
    Notes,
    check_values,
    constant,
    name_of,
    token_ids,
)
from mismatch_probe.imports.routes import fed_routes


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
        group: Columns of which the first that is there names the prompt group.
        routes: int [batch, length, layers, top_k]; the rollout's experts of each token of the row.
        unrouted: bool [batch, length]; tokens whose routes were not recorded.
    """

    tokens: str
    attention: str
    counted: tuple[str, ...]
    rollout: str
    train: tuple[str, ...]
    advantage: str
    reward: str
    group: tuple[str, ...]
    routes: str | None = None
    unrouted: str | None = None


def as_array(value: Any, name: str, where: str) -> npt.NDArray[Any]:
    """A tensor, array or list as a numpy array; bfloat16 widens to float32.

    Raises:
        ConfigError: It is ragged or no array, or its strides say far more than it stores.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        try:
            check_expanded(value)
        except pickle.UnpicklingError as error:
            raise ConfigError(f"{where}: {name} is refused: {error}") from error
        if value.is_floating_point():
            value = value.float() if value.dtype.itemsize <= 4 else value
        try:
            value = value.numpy()
        except (TypeError, RuntimeError) as error:
            raise ConfigError(
                f"{where}: {name} is a tensor of {value.dtype}, which is no number here"
            ) from error
    check_values(value, name, where)
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ConfigError(f"{where}: {name} is ragged") from error


def _check_column(array: npt.NDArray[Any], length: int, name: str, where: str) -> None:
    if array.ndim != 2 or array.shape[1] > length or array.dtype.kind not in "biuf":
        raise ConfigError(
            f"{where}: {name} is {array.dtype} of shape {array.shape}, expected numbers [batch, up to {length}]"
        )


def _full_width(values: npt.NDArray[Any], length: int) -> npt.NDArray[np.float64]:
    """float64 [length]: a column of fewer positions belongs to the last ones, as each is that of its token."""
    full = np.zeros(length, dtype=np.float64)
    full[length - values.size :] = values
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
    for name in (layout.attention, *layout.counted, layout.rollout, *([trained] if trained else [])):
        _check_column(arrays[name], length, name, where)
    for name in (layout.advantage, layout.reward):
        # One value a sequence, or one a token.
        if name in arrays and (arrays[name].ndim != 1 or arrays[name].dtype.kind not in "biuf"):
            _check_column(arrays[name], length, str(name), where)
    for name, array in arrays.items():
        if len(array) != rows:
            raise ConfigError(f"{where}: {name} has {len(array)} rows, {layout.tokens} has {rows}")
    routes, unrouted = arrays.get(layout.routes or ""), arrays.get(layout.unrouted or "")
    if routes is not None and (routes.ndim != 4 or routes.shape[1] != length):
        raise ConfigError(
            f"{where}: {layout.routes} is of shape {routes.shape}, expected [batch, {length}, layers, top_k]"
        )
    if unrouted is not None and unrouted.shape != (rows, length):
        raise ConfigError(
            f"{where}: {layout.unrouted} is of shape {unrouted.shape}, expected [batch, {length}]"
        )
    known = {
        *needed, *layout.train, layout.advantage, layout.reward, *layout.group, layout.routes,
        layout.unrouted,
    }  # fmt: skip
    renamed: list[tuple[str | None, str]] = [
        (layout.tokens, "prompt_token_ids + response_token_ids"),
        (layout.rollout, "rollout_logprobs"),
        (trained, "train/forward"),
        (layout.routes if routes is not None else None, "routing/rollout/decode"),
        *((mask, "counted tokens") for mask in layout.counted),
    ]
    notes.renamed.update({name: to for name, to in renamed if name is not None})
    per_row = {name: values for name, values in others.items() if _is_column(values, rows)}
    notes.unknown.update(name for name in {*arrays, *per_row} if name not in known)
    groups = {name: array for name, array in arrays.items() if array.ndim == 1} | per_row
    for row in range(rows):
        place = f"{where} row {row}"
        keep = _full_width(arrays[layout.attention][row], length) != 0
        tokens = token_ids(arrays[layout.tokens][row][keep], place)
        counted = np.logical_and.reduce(
            [keep, *(_full_width(arrays[name][row], length) != 0 for name in layout.counted)]
        )
        yield ImportedSequence(
            where=place,
            tokens=tokens,
            counted=counted[keep],
            rollout_logprobs=_full_width(arrays[layout.rollout][row], length)[keep],
            train_logprobs=None if trained is None else _full_width(arrays[trained][row], length)[keep],
            group=next((name_of(groups[name][row], name, place) for name in layout.group if name in groups), None),
            advantage=_of_sequence(arrays.get(layout.advantage), row, length, counted),
            reward=_reward(arrays.get(layout.reward), row),
            extras=_extras(arrays, per_row, known, row),
            routes=None
            if routes is None
            else fed_routes(
                routes[row][keep], tokens.size, str(layout.routes), place,
                absent=None if unrouted is None else unrouted[row][keep],
            ),
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
    return constant(_full_width(array[row], length), counted)


def _reward(array: npt.NDArray[Any] | None, row: int) -> float | None:
    return None if array is None else float(np.sum(array[row]))
