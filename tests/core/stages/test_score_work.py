"""A score job in one process: the legs, the study of replay, and picking up what is missing."""

import os
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pytest

from mismatch_probe.assets.catalog import resolve_model
from mismatch_probe.assets.model_facts import read_model_facts
from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.scorers.protocol import ScorerSpec
from mismatch_probe.stages.job import ReplayPlan, ScoreJob, Task
from mismatch_probe.stages.replay_study import STUDY
from mismatch_probe.stages.score_work import run_score_job
from mismatch_probe.stages.worker import EventWriter
from mismatch_probe.trace.parts import read_routing_part, read_table, write_routing, write_table
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.schema import replay_schema, rollout_schema
from mismatch_probe.trace.trace import Trace

MODEL = resolve_model("tiny-qwen3-moe")
FACTS = read_model_facts(MODEL.path)
RNG = np.random.default_rng(0)


def events():
    return EventWriter(os.open(os.devnull, os.O_WRONLY))


@pytest.fixture
def run(tmp_path):
    """Two parts of two sequences with random ids and random distinct experts."""
    run = RunDirectory(tmp_path)
    for part in range(2):
        ids = [2 * part, 2 * part + 1]
        lengths = [(3, 5), (4, 6)]
        routes = [
            np.argsort(RNG.random((p + r - 1, FACTS.num_moe_layers, FACTS.num_experts)), axis=-1)[
                ..., : FACTS.top_k
            ]
            for p, r in lengths
        ]
        write_routing(
            run.routing_part("rollout/decode", part), [route.astype(np.int16) for route in routes], ids
        )
        columns = {
            "sequence_id": ids, "prompt_id": [str(index) for index in ids], "sample_index": [0, 0],
            "prompt_token_ids": [RNG.integers(4, 40, p).tolist() for p, _ in lengths],
            "response_token_ids": [RNG.integers(4, 40, r).tolist() for _, r in lengths],
            "rollout_logprobs": [[-1.0] * r for _, r in lengths], "finish_reason": ["length"] * 2,
            **dict.fromkeys(("advantage", "reward", "weight_version", "old_logprobs", "loss_mask"), [None] * 2),
        }  # fmt: skip
        write_table(run.rollout_part(part), pa.table(columns, schema=rollout_schema()))
    return run


def job_of(run, *tasks, replay=None):
    spec = asdict(ScorerSpec(MODEL.path, "float32", FACTS.num_moe_layers, FACTS.top_k, {}))
    return ScoreJob(
        run=run.path,
        scorer="transformers",
        spec={**spec, "model_path": str(MODEL.path)},
        temperature=1.0,
        routing=True,
        tasks=tasks,
        replay=replay,
    )


def test_the_study_is_written_by_part_and_only_where_it_was_asked_for(run):
    plan = ReplayPlan(sequences=(1, 3), by_layer=True)
    run_score_job(job_of(run, Task(leg=STUDY, parts=(1,)), replay=plan), events())
    assert run.replay_part(1).is_file() and not run.replay_part(0).exists()
    assert Trace(run, 2).replay_cases() == {}
    run_score_job(job_of(run, Task(leg=STUDY, parts=(0,)), replay=plan), events())
    cases = Trace(run, 2).replay_cases()
    layers = range(FACTS.num_moe_layers)
    assert set(cases) == {
        "own", "self", "repeat", "recorded", "rollout",
        *(f"only/{layer}" for layer in layers), *(f"without/{layer}" for layer in layers),
    }  # fmt: skip
    assert {tuple(sorted(scores)) for scores in cases.values()} == {(1, 3)}
    for sequence in (1, 3):
        assert np.array_equal(cases["self"][sequence], cases["own"][sequence])
        assert not np.array_equal(cases["rollout"][sequence], cases["own"][sequence])


def test_a_part_without_a_chosen_sequence_is_there_and_empty(run):
    plan = ReplayPlan(sequences=(3,), by_layer=False)
    run_score_job(job_of(run, Task(leg=STUDY, parts=(0, 1)), replay=plan), events())
    assert read_table(run.replay_part(0), replay_schema()).num_rows == 0
    assert list(Trace(run, 2).replay_cases()["own"]) == [3]


def test_a_study_without_sequences_is_an_error(run):
    with pytest.raises(ConfigError, match="no sequences"):
        run_score_job(job_of(run, Task(leg=STUDY, parts=(0,))), events())


def test_the_forward_keeps_margins_and_gates_only_where_the_rollout_has_them(run):
    recorded = read_routing_part(run.routing_part("rollout/decode", 1))
    gates = np.full(recorded.experts.shape, 0.25, np.float32)
    end = recorded.offsets[1]
    write_routing(
        run.routing_part("rollout/decode", 1),
        [recorded.experts[:end], recorded.experts[end:]],
        [2, 3],
        gates=[gates[:end], gates[end:]],
    )
    run_score_job(job_of(run, Task(leg="train/forward", parts=(0, 1))), events())
    first, second = (read_routing_part(run.routing_part("train/forward", part)) for part in range(2))
    assert first.gates is None and second.gates.shape == second.experts.shape
    for part in (first, second):
        assert part.margins.shape == part.experts.shape[:2] and (part.margins >= 0).all()
    np.testing.assert_allclose(second.gates.sum(axis=-1), 1.0, atol=2e-3)


def test_routes_are_read_part_by_part_and_gaps_are_refused(run):
    trace = Trace(run, 2)
    parts = list(trace.route_parts("rollout/decode"))
    whole, _ = trace.routes("rollout/decode")
    assert np.array_equal(np.concatenate([part.experts for part in parts]), whole)
    part = read_routing_part(run.routing_part("rollout/decode", 1))
    write_routing(run.routing_part("rollout/decode", 1), [part.experts[: part.offsets[1]]], [2])
    with pytest.raises(InconclusiveError, match="cover"):
        list(Trace(run, 2).route_parts("rollout/decode"))
