"""The trace of a run as flat arrays: every leg's log-probabilities over the same response tokens, row by row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import InconclusiveError, RunDirectoryError
from mismatch_probe.trace.parts import RoutingPart, read_routing, read_routing_part, read_table
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.schema import refit_schema, replay_schema, rollout_schema, score_schema

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Rollout:
    """Responses as flat arrays.

    Attributes:
        sequence_id: int64 [sequences].
        prompt_index: int64 [sequences]; sequences of one prompt share a number. The unit of resampling.
        prompt_ids: Name of each prompt index.
        prompt_tokens: int32 flat, with `prompt_offsets` int64 [sequences + 1].
        response_tokens: int32 flat, with `offsets` int64 [sequences + 1].
        logprobs: float64 flat [response tokens], nats; leg `rollout/decode`.
        advantage: float64 [sequences] or None where the run has none.
        reward: float64 [sequences] or None.
        finish_reason: One per sequence.
    """

    sequence_id: IntArray
    prompt_index: IntArray
    prompt_ids: tuple[str, ...]
    prompt_tokens: npt.NDArray[np.int32]
    prompt_offsets: IntArray
    response_tokens: npt.NDArray[np.int32]
    offsets: IntArray
    logprobs: FloatArray
    advantage: FloatArray | None
    reward: FloatArray | None
    finish_reason: tuple[str, ...]

    @cached_property
    def lengths(self) -> IntArray:
        """Response tokens per sequence."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class RefitReading:
    """A sample of the sequences, read before and after the engine loaded its own checkpoint again.

    Attributes:
        fresh: float64 flat [tokens], nats; before.
        reloaded: float64 flat [tokens], nats; after. May hold NaN: a broken engine returns anything.
        offsets: int64 [sequences + 1].
        prompt_index: int64 [sequences], as of `Rollout`.
    """

    fresh: FloatArray
    reloaded: FloatArray
    offsets: IntArray
    prompt_index: IntArray


class Trace:
    """Reads the parts of a run.

    Tokens outside the loss mask (a tool's output, say) were not sampled by the policy: `rollout`, `logprobs`, `entropy`,
    `refit` and `replay_cases` leave them out, so that every number is that of the responses without them. `recorded`
    has them all, and routes are of every fed token, as a prompt's are.

    Args:
        run: The run directory.
        num_parts: How many parts the run has.
        parts: The parts to read; None reads all. What is numbered (prompts, say) is then numbered within them.
    """

    def __init__(self, run: RunDirectory, num_parts: int, parts: Sequence[int] | None = None) -> None:
        self._run = run
        self._parts = range(num_parts) if parts is None else parts

    @cached_property
    def _table(self) -> Any:
        import pyarrow as pa

        tables = [
            read_table(self._run.checked(self._run.rollout_part(i)), rollout_schema()) for i in self._parts
        ]
        return pa.concat_tables(tables).combine_chunks()

    @cached_property
    def rollout(self) -> Rollout:
        """What was sampled: the recorded responses without the tokens that do not count.

        Raises:
            RunDirectoryError: A part is missing or damaged.
            InconclusiveError: There is not one response token, or none counts.
        """
        recorded, counted = self.recorded, self.counted
        if counted is None:
            return recorded
        if not counted.any():
            raise InconclusiveError(
                "the loss mask leaves no response token", hint="is the mask the right way round?"
            )
        return replace(
            recorded,
            response_tokens=recorded.response_tokens[counted],
            logprobs=recorded.logprobs[counted],
            offsets=np.concatenate([[0], np.cumsum(counted)])[recorded.offsets],
        )

    @cached_property
    def counted(self) -> BoolArray | None:
        """Which recorded response tokens the loss mask keeps, bool flat; None where every one counts.

        Raises:
            RunDirectoryError: A mask is not one value for every response token.
        """
        column, offsets = self._table["loss_mask"], self.recorded.offsets
        if column.null_count == len(column):
            return None
        masks = column.combine_chunks()
        given = masks.is_valid().to_numpy(zero_copy_only=False)
        lengths = np.where(given, np.diff(masks.offsets.to_numpy()), self.recorded.lengths)
        values = masks.flatten()
        if values.null_count or not np.array_equal(lengths, self.recorded.lengths):
            raise RunDirectoryError(
                f"{self._run.path}: loss_mask does not have one value for every response token",
                hint="write the rollout parts again",
            )
        counted = np.ones(int(offsets[-1]), dtype=np.bool_)
        counted[np.repeat(given, lengths)] = values.to_numpy(zero_copy_only=False)
        return None if counted.all() else counted

    @cached_property
    def recorded(self) -> Rollout:
        """Every response token of the run, those outside the loss mask included.

        Raises:
            RunDirectoryError: A part is missing or damaged.
            InconclusiveError: There is not one response token.
        """
        table = self._table
        if table.num_rows == 0:
            raise InconclusiveError("the run has no sequences", hint="check the prompts")
        prompt_tokens, prompt_offsets = _flatten(table["prompt_token_ids"])
        response_tokens, offsets = _flatten(table["response_token_ids"])
        logprobs, logprob_offsets = _flatten(table["rollout_logprobs"])
        if not np.array_equal(offsets, logprob_offsets):
            raise RunDirectoryError("some sequences have more or fewer rollout log-probabilities than tokens")
        if response_tokens.size == 0:
            raise InconclusiveError(
                "not one response token was sampled", hint="check prompts and stop tokens"
            )
        names = table["prompt_id"].to_pylist()
        order = {name: index for index, name in enumerate(dict.fromkeys(names))}
        return Rollout(
            sequence_id=table["sequence_id"].to_numpy(),
            prompt_index=np.array([order[name] for name in names], dtype=np.int64),
            prompt_ids=tuple(order),
            prompt_tokens=prompt_tokens.astype(np.int32),
            prompt_offsets=prompt_offsets,
            response_tokens=response_tokens.astype(np.int32),
            offsets=offsets,
            logprobs=logprobs.astype(np.float64),
            advantage=_nullable(table["advantage"]),
            reward=_nullable(table["reward"]),
            finish_reason=tuple(table["finish_reason"].to_pylist()),
        )

    def logprobs(self, leg: str) -> FloatArray:
        """One leg's log-probabilities, float64 flat, row by row those of `rollout.response_tokens`.

        Raises:
            InconclusiveError: The leg scored other sequences or other lengths than were sampled.
        """
        if leg == "rollout/decode":
            return self.rollout.logprobs
        tables = self._score_tables(leg)
        parts = [(table["sequence_id"].to_numpy(), *_flatten(table["logprobs"])) for table in tables]
        ids = np.concatenate([part[0] for part in parts])
        lengths = np.concatenate([np.diff(part[2]) for part in parts])
        if not np.array_equal(ids, self.recorded.sequence_id) or not np.array_equal(
            lengths, self.recorded.lengths
        ):
            raise InconclusiveError(
                f"the leg {leg} does not line up with the sampled sequences",
                hint="score it again into a fresh run",
            )
        return self._keep(np.concatenate([part[1] for part in parts]).astype(np.float64))

    def _keep(self, values: FloatArray) -> FloatArray:
        return values if self.counted is None else values[self.counted]

    def refit(self) -> RefitReading:
        """What the leg `rollout/refit` read.

        Raises:
            InconclusiveError: It holds other sequences or other lengths than were sampled.
        """
        table = read_table(
            self._run.checked(self._run.score_part("rollout/refit", 0)), refit_schema()
        ).combine_chunks()
        fresh, offsets = _flatten(table["fresh"])
        reloaded, after = _flatten(table["logprobs"])
        ids = table["sequence_id"].to_numpy()
        rows = np.flatnonzero(np.isin(self.recorded.sequence_id, ids))
        lengths = self.recorded.lengths[rows]
        if not (
            np.array_equal(self.recorded.sequence_id[rows], ids)
            and np.array_equal(np.diff(offsets), lengths)
            and np.array_equal(np.diff(after), lengths)
        ):
            raise InconclusiveError(
                "the leg rollout/refit does not line up with the sampled sequences",
                hint="record the run again",
            )
        if self.counted is not None:
            kept = self.counted[np.repeat(np.isin(self.recorded.sequence_id, ids), self.recorded.lengths)]
            fresh, reloaded = fresh[kept], reloaded[kept]
            offsets = np.concatenate([[0], np.cumsum(kept)])[offsets]
        return RefitReading(
            fresh.astype(np.float64), reloaded.astype(np.float64), offsets, self.rollout.prompt_index[rows]
        )

    def entropy(self, leg: str) -> FloatArray | None:
        """One leg's next-token entropies in nats, float64 flat, or None where the leg does not give them."""
        columns = [table["entropy"] for table in self._score_tables(leg)]
        if any(column.null_count for column in columns):
            return None
        values = np.concatenate([_flatten(column)[0] for column in columns]).astype(np.float64)
        return self._keep(values) if values.size == self.recorded.offsets[-1] else None

    def _score_tables(self, leg: str) -> list[Any]:
        paths = [self._run.checked(self._run.score_part(leg, index)) for index in self._parts]
        tables = [read_table(path, score_schema()) for path in paths]
        return [table.combine_chunks() for table in tables]

    def routes(self, leg: str) -> tuple[npt.NDArray[np.int16], IntArray]:
        """The experts one leg used: int16 [fed tokens, MoE layers, top_k] and offsets int64 [sequences + 1].

        Raises:
            InconclusiveError: Routes of some sequence or token are missing.
        """
        parts = [read_routing(self._run.checked(self._run.routing_part(leg, index))) for index in self._parts]
        ids = np.concatenate([part[2] for part in parts])
        lengths = np.concatenate([np.diff(part[1]) for part in parts])
        expected = np.diff(self.recorded.prompt_offsets) + self.recorded.lengths - 1
        if not np.array_equal(ids, self.recorded.sequence_id) or not np.array_equal(lengths, expected):
            raise InconclusiveError(
                f"the routes of {leg} do not cover every fed token", hint="record the run again"
            )
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return np.concatenate([part[0] for part in parts]), offsets

    def has_routes(self, leg: str) -> bool:
        """Whether any part of a leg's routes is there; a leg can be scored without."""
        return any(self._run.routing_part(leg, index).is_file() for index in self._parts)

    def route_parts(self, leg: str) -> Iterator[RoutingPart]:
        """The routes of one leg, one part at a time, in the order of the rollout's sequences.

        Raises:
            InconclusiveError: Routes of some sequence or token are missing.
        """
        fed = np.diff(self.recorded.prompt_offsets) + self.recorded.lengths - 1
        begin = 0
        for index in self._parts:
            part = read_routing_part(self._run.checked(self._run.routing_part(leg, index)))
            end = begin + len(part.sequence_id)
            if not np.array_equal(
                part.sequence_id, self.recorded.sequence_id[begin:end]
            ) or not np.array_equal(np.diff(part.offsets), fed[begin:end]):
                break
            yield part
            begin = end
        if begin != len(fed):
            raise InconclusiveError(
                f"the routes of {leg} do not cover every fed token", hint="record the run again"
            )

    def replay_cases(self) -> dict[str, dict[int, FloatArray]]:
        """Log-probabilities of the replay study by case and sequence id, float64 [response tokens], nats.

        Empty where the study was not made for every part.
        """
        paths = [self._run.replay_part(index) for index in self._parts]
        cases: dict[str, dict[int, FloatArray]] = {}
        if not all(path.is_file() for path in paths):
            return cases
        places = {int(sequence): place for place, sequence in enumerate(self.recorded.sequence_id)}
        bounds = self.recorded.offsets
        for path in paths:
            table = read_table(self._run.checked(path), replay_schema())
            for case, sequence, logprobs in zip(
                table["case"].to_pylist(), table["sequence_id"].to_pylist(), table["logprobs"], strict=True
            ):
                values = np.array(logprobs.values, dtype=np.float64)
                place = places.get(sequence)
                if place is not None and self.counted is not None:
                    values = values[self.counted[bounds[place] : bounds[place + 1]]]
                cases.setdefault(case, {})[sequence] = values
        return cases


def _flatten(column: object) -> tuple[npt.NDArray[np.float64], IntArray]:
    chunk = column.combine_chunks()  # type: ignore[attr-defined]
    offsets = chunk.offsets.to_numpy().astype(np.int64)
    values = chunk.values.to_numpy(zero_copy_only=False)[offsets[0] : offsets[-1]]
    return values, offsets - offsets[0]


def _nullable(column: object) -> FloatArray | None:
    if column.null_count:  # type: ignore[attr-defined]
        return None
    values: FloatArray = column.to_numpy()  # type: ignore[attr-defined]
    return values
