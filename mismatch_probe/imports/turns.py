"""From a dump's sequence to a row of a run: a prompt, and a response that begins with the first counted token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mismatch_probe.imports.importer import BoolArray, FloatArray, ImportedSequence, IntArray, RouteArray


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a run.

    Attributes:
        prompt: int64 [prompt tokens].
        response: int64 [response tokens].
        rollout: float64 [response tokens], nats; 0 where not counted.
        train: float64 [response tokens], nats, 0 where not counted; or None.
        counted: bool [response tokens], or None where all count.
        routes: int16 [prompt + response - 1, layers, top_k], or None.
    """

    prompt: IntArray
    response: IntArray
    rollout: FloatArray
    train: FloatArray | None
    counted: BoolArray | None
    routes: RouteArray | None


def row_of(sequence: ImportedSequence) -> Row | None:
    """The row of one sequence; None where no token counts.

    Tokens before the first counted one are the prompt and tokens after the last are left out. Tokens in between, such as
    a tool's output, stay where they are, as the model saw them, outside the row's loss mask.
    """
    places = np.flatnonzero(sequence.counted)
    if places.size == 0:
        return None
    span = slice(int(places[0]), int(places[-1]) + 1)
    counted = sequence.counted[span]
    train = sequence.train_logprobs
    return Row(
        sequence.tokens[: span.start],
        sequence.tokens[span],
        np.where(counted, sequence.rollout_logprobs[span], 0.0),
        None if train is None else np.where(counted, train[span], 0.0),
        None if counted.all() else counted,
        None if sequence.routes is None else sequence.routes[: span.stop - 1],
    )
