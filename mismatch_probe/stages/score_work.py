"""A score job, inside the worker process: the training-side forward over what was sampled, part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from mismatch_probe.errors import ConfigError
from mismatch_probe.scorers.protocol import ScoredSequence, Scorer, ScoreRequest, ScorerFacts, ScorerSpec
from mismatch_probe.scorers.registry import scorers
from mismatch_probe.stages.job import ScoreJob, Task
from mismatch_probe.stages.replay_study import STUDY, run_replay_part
from mismatch_probe.stages.rollout_work import read_sequences, write_scores
from mismatch_probe.stages.worker import EventWriter
from mismatch_probe.trace.keep_sets import read_keep_sets
from mismatch_probe.trace.parts import read_routing, read_routing_part, write_routing
from mismatch_probe.trace.run_directory import RunDirectory

T = TypeVar("T")


def run_score_job(job: ScoreJob, events: EventWriter, tasks: Iterable[Task] | None = None) -> ScorerFacts:
    """Loads the model once and does every task of the job, or those that are handed over one by one."""
    entry = scorers.get(job.scorer)
    events.send("loading", what=job.scorer)
    scorer = entry.item.make(ScorerSpec(**{**job.spec, "model_path": Path(job.spec["model_path"])}))
    try:
        facts = scorer.facts()
        run = RunDirectory(job.run)
        for task in job.tasks if tasks is None else tasks:
            events.send("leg", leg=task.leg)
            if task.leg == STUDY:
                _study(run, job, task, scorer, events)
                continue
            # Routes are kept of the leg that training runs; replay repeats the rollout's, the others are controls.
            capture = job.routing and task.leg == "train/forward"
            read = partial(_requests, run, replay=task.leg == "train/replay", keep_sets=job.keep_sets)
            for part, requests in read_ahead(read, task.parts):
                scored = scorer.score(
                    requests,
                    temperature=job.temperature,
                    batching="repeat" if task.leg == "train/repeat" else "forward",
                    capture_routing=capture,
                    progress=partial(events.progress, task.leg),
                )
                ids = [sequence.sequence_id for sequence in scored]
                if capture:
                    _write_routes(run, task.leg, part, scored)
                write_scores(
                    run, task.leg, part, ids, [s.logprobs for s in scored], [s.entropy for s in scored]
                )
                events.send("part", leg=task.leg, part=part)
        return facts
    finally:
        scorer.close()


def read_ahead(read: Callable[[int], T], parts: Sequence[int]) -> Iterator[tuple[int, T]]:
    """Each part with what was read of it; the next one is read while the caller works on this one.

    Args:
        read: Reads a part. What it raises comes out in the part's turn.
        parts: In order.
    """
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max_workers=1) as pool:
        pending = pool.submit(read, parts[0]) if parts else None
        for position, part in enumerate(parts):
            assert pending is not None  # noqa: S101 - submitted a turn ago
            ready = pending.result()
            if position + 1 < len(parts):
                pending = pool.submit(read, parts[position + 1])
            yield part, ready


def _study(run: RunDirectory, job: ScoreJob, task: Task, scorer: Scorer, events: EventWriter) -> None:
    if job.replay is None:
        raise ConfigError(
            "the study of routing replay has no sequences", hint="raise train.options.replay_controls"
        )
    for part in task.parts:
        requests = _requests(run, part, replay=False, keep_sets=job.keep_sets)
        routes = read_routing_part(run.checked(run.routing_part("rollout/decode", part)))
        run_replay_part(run, part, scorer, requests, routes, job.replay, temperature=job.temperature)
        # Progress counts the run's sequences: the study covers a part with a few of them.
        events.progress(task.leg, len(requests), sum(len(r.response_token_ids) for r in requests))
        events.send("part", leg=task.leg, part=part)


def _write_routes(run: RunDirectory, leg: str, part: int, scored: Sequence[ScoredSequence]) -> None:
    """Experts and margins, and gate weights where the rollout's are there to be compared with."""
    routed = [sequence for sequence in scored if sequence.routing is not None]
    gates = [sequence.gates for sequence in routed if sequence.gates is not None]
    margins = [sequence.margins for sequence in routed if sequence.margins is not None]
    wanted = read_routing_part(run.checked(run.routing_part("rollout/decode", part))).gates is not None
    write_routing(
        run.routing_part(leg, part),
        [sequence.routing for sequence in routed if sequence.routing is not None],
        [sequence.sequence_id for sequence in routed],
        gates=gates if wanted and len(gates) == len(routed) else None,
        margins=margins if len(margins) == len(routed) else None,
        note=run.note_part,
    )


def _requests(run: RunDirectory, part: int, *, replay: bool, keep_sets: bool) -> list[ScoreRequest]:
    sequences = read_sequences(run, part)
    requests = [ScoreRequest(s.sequence_id, s.prompt_token_ids, s.response_token_ids) for s in sequences]
    if keep_sets:
        kept = read_keep_sets(
            run.checked(run.keep_set_part(part)),
            [s.sequence_id for s in sequences],
            [s.response_token_ids for s in sequences],
        )
        requests = [replace(request, keep_set=own) for request, own in zip(requests, kept, strict=True)]
    if replay:
        experts, offsets, _ = read_routing(run.checked(run.routing_part("rollout/decode", part)))
        requests = [
            replace(request, routing=experts[offsets[i] : offsets[i + 1]])
            for i, request in enumerate(requests)
        ]
    return requests
