"""The sections `weights` and `weights_reads` of a result: what every correction would do with what was measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mismatch_probe.result import to_json
from mismatch_probe.simulate.respond import respond_all
from mismatch_probe.simulate.responses import Responses
from mismatch_probe.trace.parts import read_table
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.schema import rollout_schema
from mismatch_probe.trace.trace import Trace


def weights_sections(responses: Responses) -> dict[str, Any]:
    """Simulates every registered correction on a run's responses."""
    return {
        "weights_reads": reads(responses),
        "weights": to_json(respond_all(None, responses, complete=True)),
    }


def reads(responses: Responses) -> str:
    """Which policies the weights were made from, in words."""
    if responses.old is None:
        return "train/forward over rollout/decode (pi/mu); no recomputed pi_old, so pi stands for it"
    return "train/forward (pi), rollout/decode (mu) and the recorded old_logprobs (pi_old)"


def read_responses(run: RunDirectory, trace: Trace, num_parts: int) -> Responses:
    """The run's responses as corrections take them: pi, mu, where recorded pi_old, and the tokens that count.

    Args:
        run: The run.
        trace: Its trace.
        num_parts: How many parts it has.

    Raises:
        InconclusiveError: No token counts.
        RunDirectoryError: A part is missing or damaged, or a column does not line up with the tokens.
    """
    rollout = trace.rollout
    old = _column(run, num_parts, "old_logprobs", trace.recorded.offsets)
    if old is not None and trace.counted is not None:
        old = old[trace.counted]
    return Responses.of(
        trace.logprobs("train/forward"),
        rollout.logprobs,
        rollout.offsets,
        rollout.prompt_index,
        rollout.advantage,
        old_logprobs=None if old is None else old.astype(np.float64),
    )


def _column(
    run: RunDirectory, num_parts: int, name: str, offsets: npt.NDArray[np.int64]
) -> npt.NDArray[Any] | None:
    """A list column of the rollout parts, flat; None where it is not there for every sequence."""
    import pyarrow as pa

    from mismatch_probe.errors import RunDirectoryError

    schema = pa.schema([rollout_schema().field(name)])
    tables = [read_table(run.checked(run.rollout_part(index)), schema) for index in range(num_parts)]
    column = pa.concat_tables(tables).combine_chunks()[name].combine_chunks()
    if column.null_count:
        return None
    bounds = column.offsets.to_numpy().astype(np.int64)
    if not np.array_equal(bounds - bounds[0], offsets):
        raise RunDirectoryError(
            f"{run.path}: {name} does not have one value for every response token",
            hint="write the rollout parts again",
        )
    flat: npt.NDArray[Any] = column.values.to_numpy(zero_copy_only=False)[bounds[0] : bounds[-1]]
    return flat
