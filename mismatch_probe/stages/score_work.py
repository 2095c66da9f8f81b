"""A score job, inside the worker process: the training-side forward over what was sampled, part by part."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from mismatch_probe.scorers.protocol import ScoreRequest, ScorerFacts, ScorerSpec
from mismatch_probe.scorers.registry import scorers
from mismatch_probe.stages.job import ScoreJob
from mismatch_probe.stages.rollout_work import read_sequences, write_scores
from mismatch_probe.stages.worker import EventWriter
from mismatch_probe.trace.parts import read_routing, write_routing
from mismatch_probe.trace.run_directory import RunDirectory


def run_score_job(job: ScoreJob, events: EventWriter) -> ScorerFacts:
    """Loads the model once and does every task of the job."""
    entry = scorers.get(job.scorer)
    events.send("loading", what=job.scorer)
    scorer = entry.item.make(ScorerSpec(**{**job.spec, "model_path": Path(job.spec["model_path"])}))
    try:
        facts = scorer.facts()
        run = RunDirectory(job.run)
        for task in job.tasks:
            events.send("leg", leg=task.leg)
            # Routes are kept of the leg that training runs; replay repeats the rollout's, the others are controls.
            capture = job.routing and task.leg == "train/forward"
            for part in task.parts:
                requests = _requests(run, part, replay=task.leg == "train/replay")
                scored = scorer.score(
                    requests,
                    temperature=job.temperature,
                    batching="repeat" if task.leg == "train/repeat" else "forward",
                    capture_routing=capture,
                    progress=partial(events.progress, task.leg),
                )
                ids = [sequence.sequence_id for sequence in scored]
                if capture:
                    routes = [sequence.routing for sequence in scored if sequence.routing is not None]
                    write_routing(run.routing_part(task.leg, part), routes, ids)
                write_scores(
                    run, task.leg, part, ids, [s.logprobs for s in scored], [s.entropy for s in scored]
                )
                events.send("part", leg=task.leg, part=part)
        return facts
    finally:
        scorer.close()


def _requests(run: RunDirectory, part: int, *, replay: bool) -> list[ScoreRequest]:
    sequences = read_sequences(run, part)
    if not replay:
        return [ScoreRequest(s.sequence_id, s.prompt_token_ids, s.response_token_ids) for s in sequences]
    experts, offsets, _ = read_routing(run.routing_part("rollout/decode", part))
    return [
        ScoreRequest(
            s.sequence_id, s.prompt_token_ids, s.response_token_ids, experts[offsets[i] : offsets[i + 1]]
        )
        for i, s in enumerate(sequences)
    ]
