"""Drift measured part by part: the same bits however the parts are shared out, and the numbers of the whole run."""

import json

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from mismatch_probe.config.model import RayConfig
from mismatch_probe.distributed.ray_executor import RayExecutor
from mismatch_probe.errors import InconclusiveError, RunDirectoryError
from mismatch_probe.result import to_json
from mismatch_probe.stages.part_drift import call_here, measure_parts
from mismatch_probe.stages.rollout_work import write_scores
from mismatch_probe.stats.sequence_summary import summarise_sequences
from mismatch_probe.stats.token_summary import summarise_tokens
from mismatch_probe.trace.parts import read_json, write_table
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.schema import SCHEMA_VERSION, rollout_schema
from mismatch_probe.trace.trace import Trace
from mismatch_probe_cli.app import app

PARTS, PER_PART = 7, 6


def write_part(run, part, rng, *, masked=False):
    ids = [part * PER_PART + row for row in range(PER_PART)]
    lengths = rng.integers(3, 40, size=PER_PART)
    rollout = [-rng.gamma(0.5, 1.0, size=length).astype(np.float32) for length in lengths]
    train = [values + rng.standard_t(3, size=len(values)).astype(np.float32) * 0.02 for values in rollout]
    table = {
        "sequence_id": ids,
        "prompt_id": [f"p{row // 2}" for row in ids],
        "sample_index": [row % 2 for row in ids],
        "prompt_token_ids": [[1, 2]] * PER_PART,
        "response_token_ids": [rng.integers(3, 9, size=length).tolist() for length in lengths],
        "rollout_logprobs": rollout,
        "finish_reason": ["stop"] * PER_PART,
        "advantage": rng.normal(size=PER_PART).tolist(),
        "reward": [None] * PER_PART,
        "weight_version": [None] * PER_PART,
        "old_logprobs": [None] * PER_PART,
        "loss_mask": [[not masked] * length for length in lengths],
    }
    write_table(run.rollout_part(part), pa.table(table, schema=rollout_schema()))
    entropy = [np.abs(values) for values in train]
    write_scores(run, "train/forward", part, ids, train, entropy)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Seven parts; of one no token counts."""
    run = RunDirectory(tmp_path_factory.mktemp("runs") / "parts")
    rng = np.random.default_rng(5)
    for part in range(PARTS):
        write_part(run, part, rng, masked=part == 3)
    run.write_manifest(
        {
            "schema_version": SCHEMA_VERSION, "run_id": "r", "num_parts": PARTS, "legs": ["rollout/decode", "train/forward"],
            "config": {"out": str(run.path)}, "config_set": ["out"], "stages": {},
        }
    )  # fmt: skip
    return run


@pytest.fixture(scope="module")
def drift(run):
    return measure_parts(run)


def test_the_numbers_are_those_of_the_whole_run(run, drift):
    trace = Trace(run, PARTS)
    rollout, train = trace.rollout, trace.logprobs("train/forward")
    kept = rollout.lengths > 0
    tokens = summarise_tokens(
        train - rollout.logprobs,
        rollout_logprobs=rollout.logprobs,
        train_logprobs=train,
        offsets=rollout.offsets,
        clusters=rollout.prompt_index,
        entropy=trace.entropy("train/forward"),
    )
    whole = to_json(tokens)
    for name in ("k1", "k2", "k3", "mean_log_ratio", "mean_abs_log_ratio", "chi2", "mean_ratio"):
        for key in ("value", "ci_low", "ci_high"):
            assert drift["token"][name][key] == pytest.approx(whole[name][key], rel=1e-9, abs=1e-14), (
                name,
                key,
            )
    assert drift["token"]["num_tokens"] == whole["num_tokens"] == int(rollout.offsets[-1])
    offsets = np.concatenate([[0], np.cumsum(rollout.lengths[kept])])
    sequences = to_json(
        summarise_sequences(
            train - rollout.logprobs,
            offsets,
            rollout.prompt_index[kept],
            advantages=rollout.advantage[kept],
            train_logprobs=train,
        )
    )
    assert drift["sequence"]["num_sequences"] == sequences["num_sequences"] == (PARTS - 1) * PER_PART
    assert json.loads(run.drift_path.read_text()) == drift


@pytest.mark.parametrize("workers", [2, 3, 7, 50])
def test_any_number_of_ranges_gives_the_same_bits(run, drift, workers):
    ranges = []

    def backwards(function, arguments):
        ranges.append([parts for _, parts, *_ in arguments])
        return call_here(function, arguments[::-1])[::-1]

    assert measure_parts(run, backwards, workers) == drift
    assert [part for parts in ranges[-1] for part in parts] == list(range(PARTS))
    assert len(ranges[-1]) == min(workers, PARTS)


@pytest.mark.slow
def test_ray_tasks_give_the_same_bits(run, drift):
    executor = RayExecutor(RayConfig(workers=2))
    try:
        assert measure_parts(run, executor.spread, 2) == drift
        with pytest.raises(RunDirectoryError, match="does not exist"):
            executor.spread(read_json, [(run.path / "nothing",)])
    finally:
        executor.close()


def test_the_command_says_the_drift_and_where_it_is(run, drift):
    finished = CliRunner().invoke(app, ["measure", str(run.path), "--by-part"])
    assert finished.exit_code == 0, finished.output
    assert f"{drift['token']['num_tokens']} tokens" in finished.output and "drift.json" in finished.output
    assert f"{drift['token']['k3']['value']:.4g}" in finished.output


def test_a_part_that_was_not_scored_is_named(run, tmp_path):
    other = RunDirectory(tmp_path)
    rng = np.random.default_rng(1)
    for part in range(2):
        write_part(other, part, rng)
    other.write_manifest({**run.read_manifest(), "num_parts": 2})
    other.score_part("train/forward", 1).unlink()
    with pytest.raises(InconclusiveError, match="part 1 missing"):
        measure_parts(other)
