"""Responses that context-parallel ranks of a trainer hold in pieces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import ConfigError


def response_spans(rank: int, size: int, total: int, response: int) -> list[tuple[int, int]]:
    """Which response tokens a rank holds: up to two spans, begin and end within the response.

    A sequence is cut into 2 * size chunks of equal length, the last one short; rank r holds chunks r and
    2 * size - 1 - r, which balances causal attention. A logit predicts the token after it, so the spans of
    log-probabilities are those of the logits, one further.

    Args:
        rank: Context-parallel rank.
        size: Number of ranks.
        total: Tokens of the sequence.
        response: Tokens of its response.
    """
    chunk = -(-total // (2 * size))
    prompt = total - response
    spans = []
    for index in (rank, 2 * size - 1 - rank):
        begin, end = max(index * chunk, prompt - 1), min((index + 1) * chunk, total - 1)
        if begin < end:
            spans.append((begin - prompt + 1, end - prompt + 1))
    return spans


def stitch_shards(
    shards: Mapping[int, npt.NDArray[Any]], size: int, total: int, response: int, what: str
) -> npt.NDArray[Any]:
    """One value per response token out of what the ranks hold.

    Args:
        shards: By context-parallel rank.
        size: Number of ranks.
        total: Tokens of the sequence.
        response: Tokens of its response.
        what: For messages.

    Raises:
        ConfigError: A rank is missing, or holds more or fewer values than its share.
    """
    if size == 1:
        values = shards.get(0)
        if values is None or len(values) != response:
            held = None if values is None else len(values)
            raise ConfigError(f"{what} has {held} values for {response} response tokens")
        return values
    absent = sorted(set(range(size)) - set(shards))
    if absent:
        raise ConfigError(
            f"{what}: context-parallel rank {absent[0]} of {size} is missing",
            hint="copy the files of all ranks",
        )
    whole = np.zeros(response, dtype=np.float64)
    for rank in range(size):
        spans, done = response_spans(rank, size, total, response), 0
        if sum(end - begin for begin, end in spans) != len(shards[rank]):
            raise ConfigError(f"{what}: rank {rank} holds {len(shards[rank])} values, its share is another")
        for begin, end in spans:
            whole[begin:end] = shards[rank][done : done + end - begin]
            done += end - begin
    return whole
