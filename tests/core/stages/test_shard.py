"""Shards of one run, as processes and threads that only share a folder: together they are the whole run."""

import importlib
import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from mismatch_probe.config.load import load_config
from mismatch_probe.errors import ConfigError, RunDirectoryError
from mismatch_probe.stages.events import SilentWatcher
from mismatch_probe.stages.measure import measure_run
from mismatch_probe.stages.plan import make_plan
from mismatch_probe.stages.record_score import begin_manifest, begin_shard, record, score
from mismatch_probe.stages.shard import Shard
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe_cli.app import app

PAIR = """
import numpy as np
from mismatch_probe.engines.protocol import EngineCapabilities, EngineFacts, SampledSequence
from mismatch_probe.engines.registry import register_engine
from mismatch_probe.scorers.protocol import ScoredSequence, ScorerCapabilities, ScorerFacts
from mismatch_probe.scorers.registry import register_scorer

class Engine:
    def facts(self):
        return EngineFacts("pocket", "1", "float32", "cpu", "processed_logprobs", {})
    def sample(self, requests, sampling, progress):
        draws = [(r, np.random.default_rng(r.seed)) for r in requests]
        return [
            SampledSequence(
                r.sequence_id, d.integers(3, 9, size=sampling.max_tokens).tolist(),
                -d.random(sampling.max_tokens, dtype=np.float32), "length", None,
            ) for r, d in draws
        ]
    def score_prefill(self, sequences, sampling, progress):
        return [np.full(len(s.response_token_ids), -0.5, np.float32) for s in sequences]
    def close(self):
        pass

class Scorer:
    def facts(self):
        return ScorerFacts("pocket", "1", "float32", "cpu", "none", {})
    def score(self, requests, *, temperature, batching, capture_routing, progress):
        draws = [(r, np.random.default_rng(r.sequence_id)) for r in requests]
        return [
            ScoredSequence(r.sequence_id, -d.random(len(r.response_token_ids), dtype=np.float32), None, None)
            for r, d in draws
        ]
    def close(self):
        pass

@register_engine("pocket", summary="numbers", capabilities=lambda: EngineCapabilities(True, True, False, False))
def engine(spec):
    return Engine()

@register_scorer("pocket", summary="numbers", capabilities=lambda: ScorerCapabilities(True, False, False))
def scorer(spec):
    return Scorer()
"""
PARTS = 5
SETTINGS = (
    "routing=false", "rollout.engine=pocket", "train.scorer=pocket", "part_sequences=2", "sampling.samples=2",
    "sampling.max_tokens=6", f"prompts.num_prompts={PARTS}", 'legs=["rollout/decode", "rollout/prefill", "train/forward"]',
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def pocket(tmp_path_factory):
    """An engine and a scorer of another package, here and in worker processes."""
    packages = tmp_path_factory.mktemp("packages")
    info = packages / "pocket_pair-1.dist-info"
    info.mkdir()
    (packages / "pocket_pair.py").write_text(PAIR)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pocket-pair\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[mismatch_probe.engines]\npocket = pocket_pair\n[mismatch_probe.scorers]\npocket = pocket_pair\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(packages))
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        importlib.import_module("pocket_pair")
        yield


@pytest.fixture(scope="module")
def plan_of(tmp_path_factory, pocket):
    """Plans of the same prompts, which have no answers: a reward would import a tokenizer in every worker."""
    prompts = tmp_path_factory.mktemp("prompts") / "sums.txt"
    prompts.write_text("".join(f"{n}+{n + 1}=\n" for n in range(PARTS)))
    source = f"prompts.source={prompts}"
    return lambda *settings: make_plan(load_config(None, (*SETTINGS, source, *settings)), SilentWatcher())


@pytest.fixture(scope="module")
def plan(plan_of):
    return plan_of()


def record_shard(path, shard, plan):
    run = RunDirectory(path)
    with run.claim(shared=True):
        begin_shard(run, plan, "record", shard)
        record(run, plan, SilentWatcher(), shard=shard)


def score_shard(path, shard, plan):
    run = RunDirectory(path)
    with run.claim(resume=True, shared=True):
        score(run, plan, SilentWatcher(), shard=shard)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, plan):
    """A run that two shards recorded at once."""
    path = tmp_path_factory.mktemp("runs") / "shards"
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda index: record_shard(path, Shard(index, 2), plan), (1, 2)))
    return path


def test_an_engine_that_was_killed_before_it_could_say_what_it_is_is_asked_again(plan, tmp_path):
    """All parts are on disk, and nothing is known of what wrote them: a kill between the last part and the manifest."""
    run = RunDirectory(tmp_path / "run")
    begin_manifest(run, plan, "audit", resume=False)
    record(run, plan, SilentWatcher())
    score(run, plan, SilentWatcher())
    whole, parts = run.read_manifest(), {file: file.read_bytes() for file in run.path.rglob("part-*")}
    assert whole["engines"].keys() == {"rollout", "train"}
    run.write_manifest({**whole, "engines": {}, "stages": {}})
    record(run, plan, SilentWatcher())
    score(run, plan, SilentWatcher())
    again = run.read_manifest()
    assert again["engines"] == whole["engines"] and again["stages"] == whole["stages"]
    assert {file: file.read_bytes() for file in run.path.rglob("part-*")} == parts


@given(count=st.integers(1, 9), parts=st.integers(0, 40))
def test_every_part_is_of_exactly_one_shard(count, parts):
    shards = [Shard.parse(f"{index}/{count}") for index in range(1, count + 1)]
    for part in range(parts):
        assert [shard for shard in shards if shard.holds(part)] == [Shard.of_part(part, count)]


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", "1", "1/", "a/b", "-1/4", "1/4/2", "1.0/4"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(ConfigError, match="--shard"):
        Shard.parse(text)


def test_shards_at_once_make_the_run_that_one_process_makes(recorded, tmp_path, plan):
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda index: score_shard(recorded, Shard(index, 2), plan), (1, 2)))
    whole = RunDirectory(tmp_path / "whole")
    with whole.claim():
        begin_manifest(whole, plan, "record", resume=False)
        record(whole, plan, SilentWatcher())
        score(whole, plan, SilentWatcher())
    run = RunDirectory(recorded)
    parts = {str(file.relative_to(recorded)): file.read_bytes() for file in recorded.rglob("part-*")}
    assert parts == {str(f.relative_to(whole.path)): f.read_bytes() for f in whole.path.rglob("part-*")}
    assert len(parts) == 3 * PARTS
    mine, theirs = run.read_manifest(), whole.read_manifest()
    assert mine["shards"] == {"record": 2, "score": 2} and "shards" not in theirs
    for name in ("stages", "engines", "responses_sha256", "legs", "num_parts", "prompts"):
        assert mine[name] == theirs[name], name
    one, other = measure_run(run), measure_run(whole)
    for result in (one, other):
        for name in ("command", "created_at", "run_id"):
            del result["provenance"][name]
    assert one == other


def test_what_a_missing_shard_leaves_out_is_named(tmp_path, plan):
    path = tmp_path / "run"
    record_shard(path, Shard(1, 3), plan)
    run = RunDirectory(path)
    assert run.read_manifest()["stages"] == {}
    with pytest.raises(
        RunDirectoryError, match="record is not complete: parts 1, 2, 4 of 5 missing, of shard 2/3, 3/3"
    ):
        measure_run(run)
    with pytest.raises(RunDirectoryError, match="no rollout of parts 1, 4"):
        score_shard(path, Shard(2, 3), plan)
    score_shard(path, Shard(1, 3), plan)
    assert sorted(file.name for file in (path / "scores/train/forward").iterdir()) == [
        "part-00000.parquet",
        "part-00003.parquet",
    ]
    record_shard(path, Shard(2, 3), plan)
    record_shard(path, Shard(3, 3), plan)
    with pytest.raises(RunDirectoryError, match="score is not complete: parts 1, 2, 4") as caught:
        measure_run(run)
    assert "score --shard 2/3" in caught.value.hint


def test_a_shard_of_another_run_or_another_number_is_refused(recorded, plan, plan_of):
    with pytest.raises(RunDirectoryError, match="of another run than the shards before it: sampling differ"):
        record_shard(recorded, Shard(1, 2), plan_of("sampling.temperature=0.5"))
    with pytest.raises(RunDirectoryError, match="begun in 2 shards, not in 3"):
        record_shard(recorded, Shard(3, 3), plan)


def test_a_shard_that_is_done_is_not_done_again_and_engines_that_differ_are_noted(tmp_path, plan):
    path = tmp_path / "copy"
    record_shard(path, Shard(1, 2), plan)
    run = RunDirectory(path)
    before = {file: file.stat().st_mtime_ns for file in path.rglob("part-*")}
    with run.edit_manifest() as manifest:
        manifest["engines"]["rollout"]["version"] = "0.9"
    record_shard(path, Shard(1, 2), plan)
    assert {file: file.stat().st_mtime_ns for file in path.rglob("part-*")} == before
    record_shard(path, Shard(2, 2), plan)
    assert run.read_manifest()["engines"]["rollout"]["details"] == {"differs": ["version"]}


def test_shards_share_a_run_and_nobody_else_gets_in(tmp_path):
    run = RunDirectory(tmp_path / "run")
    with run.claim(shared=True):
        partial = run.path / "manifest.json.1-ab.partial"
        partial.touch()
        with run.claim(shared=True):
            run.write_manifest({})
        assert partial.exists()
        with pytest.raises(RunDirectoryError, match="in use"), run.claim(resume=True):
            raise AssertionError("claimed")
    with run.claim(resume=True), pytest.raises(RunDirectoryError, match="in use"), run.claim(shared=True):
        raise AssertionError("claimed")
    assert not partial.exists()


def test_no_edit_of_the_manifest_is_lost(recorded, tmp_path):
    run = RunDirectory(tmp_path)
    run.write_manifest({**RunDirectory(recorded).read_manifest(), "count": 0})

    def add():
        for _ in range(20):
            with run.edit_manifest() as manifest:
                manifest["count"] += 1

    threads = [threading.Thread(target=add) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert json.loads(run.manifest_path.read_text())["count"] == 60


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("audit", "--shard", "1/2"), "record --shard 1/2"),
        (("record", "--shard", "1/2", "--force"), "other shards"),
        (("record", "--shard", "1/2", "--ray", "2"), "--ray 0"),
        (("record", "--shard", "3/2"), "shards go from 1/2 to 2/2"),
    ],
)
def test_what_a_shard_cannot_be_asked_for(arguments, says, tmp_path):
    finished = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "run")])
    assert isinstance(finished.exception, ConfigError) and says in str(finished.exception)
    assert not (tmp_path / "run").exists()
