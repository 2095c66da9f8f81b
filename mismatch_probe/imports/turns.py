"""From a dump's sequence with a mask to rows of a run: a prompt, a response, and nothing that is not counted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mismatch_probe.imports.importer import FloatArray, ImportedSequence, IntArray


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a run.

    Attributes:
        prompt: int64 [prompt tokens].
        response: int64 [response tokens].
        rollout: float64 [response tokens], nats.
        train: float64 [response tokens], nats, or None.
        joined: Whether uncounted tokens were taken out of the middle of the response, so that prompt and response no
            longer follow each other as the model saw them.
    """

    prompt: IntArray
    response: IntArray
    rollout: FloatArray
    train: FloatArray | None
    joined: bool


def rows_of(sequence: ImportedSequence) -> list[Row]:
    """Rows of one sequence; none where no token counts.

    Tokens before the first counted one are the prompt and tokens after the last are left out. Tokens in between, such as a
    tool's output, have no log-probability. With both sides there, they are taken out: the numbers are then those of the
    whole sequence, and no more is asked of its ids. With one side there, the ids have to be scored as the model saw them:
    the sequence becomes one row for each stretch of counted tokens, with everything before it for a prompt.
    """
    places = np.flatnonzero(sequence.counted)
    if places.size == 0:
        return []
    stretches = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
    train = sequence.train_logprobs
    if train is not None:
        return [
            Row(
                sequence.tokens[: places[0]],
                sequence.tokens[places],
                sequence.rollout_logprobs[places],
                train[places],
                len(stretches) > 1,
            )
        ]
    return [
        Row(sequence.tokens[: part[0]], sequence.tokens[part], sequence.rollout_logprobs[part], None, False)
        for part in stretches
    ]
