"""The study of routing replay, inside the worker process: on a few sequences, which routes explain what.

Every case is a forward of the same sequences in the same batches (but for the two that ask about batching), so that nothing
but the forced routes differs between two cases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from mismatch_probe.errors import ConfigError
from mismatch_probe.scorers.protocol import ReplayOptions, ScoredSequence, Scorer, ScoreRequest
from mismatch_probe.stages.job import ReplayPlan
from mismatch_probe.trace.parts import RoutingPart, write_table
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.schema import replay_schema

STUDY = "routing/replay"
"""What the study is called among the tasks of a score job."""

OWN = "own"
SELF = "self"
REPEAT = "repeat"
RECORDED = "recorded"
ROLLOUT = "rollout"
ROLLOUT_GATES = "rollout_gates"
ONLY = "only/"
WITHOUT = "without/"

_SHALLOW = 8


def plan_replay(options: Mapping[str, Any], *, num_sequences: int, num_layers: int) -> ReplayPlan | None:
    """Chooses the sequences of the study, evenly over the run.

    Args:
        options: `train.options.*`.
        num_sequences: Sequences of the run, ids 0 to num_sequences - 1.
        num_layers: MoE layers.

    Raises:
        ConfigError: An option of the study is not a number of sequences.
    """
    names = ReplayOptions.model_fields.keys() & options.keys()
    try:
        asked = ReplayOptions.model_validate({name: options[name] for name in names})
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"train.options.{first['loc'][0]}: {first['msg']}", hint="give a number of sequences"
        ) from error
    by_layer = asked.layer_replay
    if by_layer is None:
        by_layer = asked.replay_controls if num_layers <= _SHALLOW else 0
    count = min(by_layer or asked.replay_controls, num_sequences)
    if not count:
        return None
    chosen = (np.arange(count, dtype=np.int64) * num_sequences + num_sequences // 2) // count
    return ReplayPlan(sequences=tuple(int(index) for index in chosen), by_layer=by_layer > 0)


def run_replay_part(
    run: RunDirectory,
    part: int,
    scorer: Scorer,
    requests: Sequence[ScoreRequest],
    routes: RoutingPart,
    plan: ReplayPlan,
    *,
    temperature: float,
) -> None:
    """Does the study for one part and writes it.

    Args:
        run: The run directory.
        part: Index of the part.
        scorer: The training-side forward of `train/forward`.
        requests: All sequences of the part, without routes.
        routes: What the rollout engine used, of the same sequences.
        plan: Which sequences, and whether by layer.
        temperature: Of the sampling.
    """
    import pyarrow as pa

    chosen = set(plan.sequences)
    places = [place for place, request in enumerate(requests) if request.sequence_id in chosen]
    rows: list[tuple[str, int, npt.NDArray[np.float32]]] = []
    if places:
        for case, scored in _cases(scorer, requests, places, routes, plan, temperature):
            rows += [(case, sequence.sequence_id, sequence.logprobs) for sequence in scored]
    columns = {
        "case": [row[0] for row in rows],
        "sequence_id": [row[1] for row in rows],
        "logprobs": [row[2] for row in rows],
    }
    write_table(run.replay_part(part), pa.table(columns, schema=replay_schema()), run.note_part)


def _cases(
    scorer: Scorer,
    requests: Sequence[ScoreRequest],
    places: Sequence[int],
    routes: RoutingPart,
    plan: ReplayPlan,
    temperature: float,
) -> Iterator[tuple[str, list[ScoredSequence]]]:
    free = [requests[place] for place in places]
    theirs = [routes.experts[routes.offsets[place] : routes.offsets[place + 1]] for place in places]

    def score(
        experts: Sequence[npt.NDArray[np.int16] | None],
        *,
        batching: str = "forward",
        capture: bool = False,
        gates: Sequence[npt.NDArray[np.float32]] | None = None,
    ) -> list[ScoredSequence]:
        weights = gates if gates is not None else [None] * len(free)
        forced = [
            replace(request, routing=ids, gates=weight)
            for request, ids, weight in zip(free, experts, weights, strict=True)
        ]
        return scorer.score(
            forced,
            temperature=temperature,
            batching=batching,
            capture_routing=capture,
            progress=lambda *_: None,
        )

    nothing = [None] * len(free)
    own = score(nothing, capture=True)
    recorded = [sequence.routing for sequence in own]
    yield OWN, own
    yield SELF, score(recorded)
    yield REPEAT, score(nothing, batching="repeat")
    yield RECORDED, score(recorded, batching="repeat")
    yield ROLLOUT, score(theirs)
    if routes.gates is not None:
        gates = [
            routes.gates[routes.offsets[place] : routes.offsets[place + 1]].astype(np.float32)
            for place in places
        ]
        yield ROLLOUT_GATES, score(theirs, gates=gates)
    if not plan.by_layer:
        return
    for layer in range(routes.experts.shape[1]):
        only = [np.full_like(ids, -1) for ids in theirs]
        without = [ids.copy() for ids in theirs]
        for ids, single, rest in zip(theirs, only, without, strict=True):
            single[:, layer] = ids[:, layer]
            rest[:, layer] = -1
        yield f"{ONLY}{layer}", score(only)
        yield f"{WITHOUT}{layer}", score(without)
