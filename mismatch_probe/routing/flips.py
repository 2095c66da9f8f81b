"""Flips token by token: how many layers, the first of them, and which of them a response token is charged with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mismatch_probe.routing.agreement import BoolArray, IntArray, RouteComparison


@dataclass(frozen=True, slots=True)
class TokenFlips:
    """Flips of each token.

    Attributes:
        rows: int64 [flips]; flat indices token * layers + layer of all flips, rising.
        count: int64 [tokens]; layers that flipped.
        first: int64 [tokens]; the first layer that flipped, or the number of layers where none did.
        complete: bool [tokens]; the routes of every layer are known on both sides.
    """

    rows: IntArray
    count: IntArray
    first: IntArray
    complete: BoolArray


def token_flips(compared: RouteComparison) -> TokenFlips:
    """Sums up a comparison by token."""
    tokens, layers = compared.num_tokens, compared.num_layers
    rows = np.flatnonzero(compared.flipped)
    token = rows // layers
    first = np.full(tokens, layers, dtype=np.int64)
    # Rows rise, so a token's first entry is its first layer.
    leads = np.concatenate([[True], token[1:] != token[:-1]])[: rows.size]
    first[token[leads]] = rows[leads] - token[leads] * layers
    complete = np.ones(tokens, dtype=np.bool_)
    complete[np.flatnonzero(compared.missing) // layers] = False
    return TokenFlips(rows, np.bincount(token, minlength=tokens), first, complete)


def predicting_positions(prompt_lengths: IntArray, response_lengths: IntArray) -> IntArray:
    """The fed position whose logits gave each response token.

    The token at position i is predicted from position i - 1, so that is where its own routing matters. The last
    response token was never fed.

    Args:
        prompt_lengths: int64 [sequences], at least 1.
        response_lengths: int64 [sequences].

    Returns:
        int64 [response tokens]; indices into fed tokens, prompt + response - 1 a sequence, one after the other.
    """
    fed = prompt_lengths + response_lengths - 1
    starts = np.cumsum(fed) - fed + prompt_lengths - 1
    within = np.arange(response_lengths.sum()) - np.repeat(
        np.cumsum(response_lengths) - response_lengths, response_lengths
    )
    positions: IntArray = np.repeat(starts, response_lengths) + within
    return positions
