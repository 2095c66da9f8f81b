"""The rollout's routed experts of a dump, as a run keeps them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import ConfigError

MISSING = -1
"""Stands for a route that was not recorded: neither an agreement nor a flip, and replay leaves the token alone."""


def fed_routes(
    values: npt.NDArray[Any], tokens: int, what: str, where: str, *, absent: npt.NDArray[Any] | None = None
) -> npt.NDArray[np.int16]:
    """Experts of every fed token, int16 [tokens - 1, layers, top_k]; `MISSING` where the dump has none.

    The last token was sampled and not fed, so it has no route; frameworks leave it out or fill it. Rows of zeros are
    fillers: no token goes to one expert several times. With one expert a token only zeros at the end are.

    Args:
        values: Whole numbers [tokens or fewer, layers, top_k] of one sequence, from its first token on.
        tokens: Of the sequence, prompt and response.
        what: The column, for messages.
        where: The sequence, for messages.
        absent: bool [as values]; rows that the dump itself marks as not recorded.

    Raises:
        ConfigError: They are no whole numbers, of another shape, or more than tokens.
    """
    if values.ndim != 3 or values.dtype.kind not in "iu" or 0 in values.shape[1:]:
        raise ConfigError(
            f"{where}: {what} is {values.dtype} of shape {values.shape}, expected whole numbers [tokens, layers, top_k]"
        )
    if len(values) > tokens:
        raise ConfigError(f"{where}: {what} has {len(values)} rows for {tokens} tokens")
    routes = np.full((tokens - 1, *values.shape[1:]), MISSING, dtype=np.int16)
    rows = values[: tokens - 1]
    known = (rows >= 0) & (rows <= np.iinfo(np.int16).max)
    routes[: len(rows)] = np.where(known, rows, MISSING)
    filler: npt.NDArray[np.bool_] = np.all(rows == 0, axis=(1, 2))
    if values.shape[2] == 1:
        filler &= np.logical_and.accumulate(filler[::-1])[::-1]
    if absent is not None:
        filler |= absent[: len(rows)].astype(bool)
    routes[: len(rows)][filler] = MISSING
    return routes
