"""A rollout job, inside the worker process: sample, score by prefill, force, part by part."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mismatch_probe.engines.protocol import (
    EngineFacts,
    EngineSpec,
    FixedSequence,
    PromptRequest,
    RolloutEngine,
    SampledSequence,
)
from mismatch_probe.engines.registry import engines
from mismatch_probe.errors import CaptureError
from mismatch_probe.stages.job import JobPrompt, RolloutJob, Task
from mismatch_probe.stages.refit_leg import REFIT_LEG, take_refit_leg
from mismatch_probe.stages.worker import EventWriter
from mismatch_probe.trace.keep_sets import KeepSet, write_keep_sets
from mismatch_probe.trace.parts import read_table, write_routing, write_table
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.schema import rollout_schema, score_schema


def run_rollout_job(job: RolloutJob, events: EventWriter, tasks: Iterable[Task] | None = None) -> EngineFacts:
    """Starts the engine and does every task of the job, or those that are handed over one by one."""
    entry = engines.get(job.engine)
    events.send("loading", what=job.engine)
    engine = entry.item.make(EngineSpec(**{**job.spec, "model_path": Path(job.spec["model_path"])}))
    try:
        run = RunDirectory(job.run)
        facts = None
        for task in job.tasks if tasks is None else tasks:
            events.send("leg", leg=task.leg)
            if task.leg == REFIT_LEG:
                facts = engine.facts()
                events.send("facts", facts=dataclasses.asdict(facts))
                take_refit_leg(
                    run,
                    engine,
                    Path(job.spec["model_path"]),
                    read_sequences(run, 0)[: task.sequences],
                    job.sampling,
                    forced_decode=entry.item.capabilities().forced_decode,
                    progress=partial(events.progress, task.leg),
                )
                events.send("part", leg=task.leg, part=0)
                continue
            for part in task.parts:
                _do_part(job, run, engine, task.leg, part, events)
                events.send("part", leg=task.leg, part=part)
        return facts or engine.facts()
    finally:
        engine.close()


def _do_part(
    job: RolloutJob, run: RunDirectory, engine: RolloutEngine, leg: str, part: int, events: EventWriter
) -> None:
    def progress(sequences: int, tokens: int) -> None:
        events.progress(leg, sequences, tokens)

    if leg == "rollout/decode":
        _sample_part(job, run, engine, part, progress, events)
        return
    sequences = read_sequences(run, part)
    score = engine.score_prefill if leg == "rollout/prefill" else engine.force_decode
    logprobs = score(sequences, job.sampling, progress)
    events.progress(leg, 0, sum(map(len, logprobs)))
    write_scores(run, leg, part, [sequence.sequence_id for sequence in sequences], logprobs, None)


def _sample_part(
    job: RolloutJob,
    run: RunDirectory,
    engine: RolloutEngine,
    part: int,
    progress: Callable[[int, int], None],
    events: EventWriter,
) -> None:
    begin = part * job.prompts_per_part
    group = job.sampling.samples
    numbered = list(enumerate(job.prompts))[begin : begin + job.prompts_per_part]
    rows = [(index * group + sample, sample, prompt) for index, prompt in numbered for sample in range(group)]
    requests = [
        PromptRequest(sequence_id, prompt.token_ids, seed=job.sampling.seed + sequence_id)
        for sequence_id, _, prompt in rows
    ]
    sampled = engine.sample(requests, job.sampling, progress)
    events.progress("rollout/decode", 0, sum(len(sequence.response_token_ids) for sequence in sampled))
    rewards, advantages = _rewards(
        job, [prompt for _, _, prompt in rows], [s.response_token_ids for s in sampled]
    )
    import pyarrow as pa

    columns: dict[str, Any] = {
        "sequence_id": [sequence_id for sequence_id, _, _ in rows],
        "prompt_id": [prompt.prompt_id for _, _, prompt in rows],
        "sample_index": [sample for _, sample, _ in rows],
        "prompt_token_ids": [list(prompt.token_ids) for _, _, prompt in rows],
        "response_token_ids": [sequence.response_token_ids for sequence in sampled],
        "rollout_logprobs": [sequence.logprobs for sequence in sampled],
        "finish_reason": [sequence.finish_reason for sequence in sampled],
        "advantage": advantages,
        "reward": rewards,
        "weight_version": [None] * len(rows),
        "old_logprobs": [None] * len(rows),
        "loss_mask": [None] * len(rows),
    }
    routes = [sequence.routing for sequence in sampled]
    if job.spec["routing"]:
        # Routes first: a part of the rollout is what says that the part is done.
        present = [route for route in routes if route is not None]
        gates = [sequence.gates for sequence in sampled if sequence.gates is not None]
        write_routing(
            run.routing_part("rollout/decode", part),
            present,
            columns["sequence_id"],
            gates=gates if len(gates) == len(present) else None,
            note=run.note_part,
        )
    if job.spec.get("keep_sets"):
        write_keep_sets(run.keep_set_part(part), _kept(sampled), columns["sequence_id"], run.note_part)
    write_table(run.rollout_part(part), pa.table(columns, schema=rollout_schema()), run.note_part)


def _kept(sampled: Sequence[SampledSequence]) -> list[KeepSet]:
    """The keep-set of every response, which has to be whole and to hold what was drawn."""
    kept = []
    for sequence in sampled:
        problem = (
            "none was returned"
            if sequence.keep_set is None
            else sequence.keep_set.problem(sequence.response_token_ids)
        )
        if sequence.keep_set is None or problem is not None:
            raise CaptureError(
                f"sequence {sequence.sequence_id}: the keep-set is not whole: {problem}",
                hint="set sampling.keep_sets=false",
            )
        kept.append(sequence.keep_set)
    return kept


def _rewards(
    job: RolloutJob, prompts: Sequence[JobPrompt], responses: Sequence[Sequence[int]]
) -> tuple[list[float | None], list[float | None]]:
    if job.reward is None:
        return [None] * len(prompts), [None] * len(prompts)
    from transformers import AutoTokenizer

    from mismatch_probe.assets.rewards import arithmetic_reward, group_advantages

    tokenizer = AutoTokenizer.from_pretrained(job.tokenizer_path, local_files_only=True)
    rewards = np.array(
        [
            arithmetic_reward(tokenizer.decode(list(ids), skip_special_tokens=True), prompt.answer or "")
            for prompt, ids in zip(prompts, responses, strict=True)
        ]
    )
    names = list(dict.fromkeys(prompt.prompt_id for prompt in prompts))
    index = np.array([names.index(prompt.prompt_id) for prompt in prompts], dtype=np.int64)
    return list(rewards.tolist()), list(group_advantages(rewards, index).tolist())


def read_sequences(run: RunDirectory, part: int) -> list[FixedSequence]:
    """The sampled sequences of one part."""
    table = read_table(run.checked(run.rollout_part(part)), rollout_schema())
    columns = [table[name].to_pylist() for name in ("sequence_id", "prompt_token_ids", "response_token_ids")]
    return [FixedSequence(*row) for row in zip(*columns, strict=True)]


def write_scores(
    run: RunDirectory,
    leg: str,
    part: int,
    sequence_ids: list[int],
    logprobs: list[Any],
    entropy: list[Any] | None,
) -> None:
    """Writes what one leg scored of one part."""
    import pyarrow as pa

    columns = {
        "sequence_id": sequence_ids,
        "logprobs": logprobs,
        "entropy": entropy if entropy is not None else [None] * len(sequence_ids),
    }
    write_table(run.score_part(leg, part), pa.table(columns, schema=score_schema()), run.note_part)
