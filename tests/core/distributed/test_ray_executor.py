"""Real actors of a local Ray, with a third party's engine that kills itself or its actor where a part says so."""

import importlib
import os
import sys

import pytest

from mismatch_probe.config.model import RayConfig, SamplingConfig
from mismatch_probe.distributed.ray_executor import RayExecutor, gpus_needed
from mismatch_probe.errors import CaptureError, ConfigError, EngineUnavailableError, RunDirectoryError
from mismatch_probe.stages.job import JobPrompt, RolloutJob, ScoreJob, Task
from mismatch_probe.stages.process import run_worker

ENGINE = """
import os, signal
from pathlib import Path
import numpy as np
from mismatch_probe.engines.protocol import EngineCapabilities, EngineFacts, SampledSequence
from mismatch_probe.engines.registry import register_engine
from mismatch_probe.errors import CaptureError

class Engine:
    def __init__(self, spec):
        self.faults = spec.options["faults"]
        self.marks = spec.model_path
    def facts(self):
        return EngineFacts("mortal", "1", "float32", "cpu", "processed_logprobs", {})
    def sample(self, requests, sampling, progress):
        first = requests[0].sequence_id
        fault = self.faults.get(str(first))
        mark = self.marks / f"fault-{first}"
        if fault is not None and not mark.exists():
            mark.touch()
            if fault == "refuse":
                raise CaptureError("no scores today", hint="come back tomorrow")
            os.kill(os.getppid() if fault == "actor" else os.getpid(), signal.SIGKILL)
            signal.pause()
        progress(len(requests), 0)
        draws = [np.random.default_rng(r.seed) for r in requests]
        return [
            SampledSequence(r.sequence_id, [int(d.integers(3, 9)), 2], -d.random(2, dtype=np.float32), "stop", None)
            for r, d in zip(requests, draws, strict=True)
        ]
    def score_prefill(self, sequences, sampling, progress):
        return [np.float32([-s.sequence_id, -s.response_token_ids[0]]) for s in sequences]
    def close(self):
        pass

@register_engine("mortal", summary="dies", capabilities=lambda: EngineCapabilities(True, True, False, False))
def make(spec):
    return Engine(spec)
"""
PARTS = 5


@pytest.fixture(scope="module")
def execute(tmp_path_factory):
    """A local Ray of two actors that find the engine by its entry point."""
    packages = tmp_path_factory.mktemp("packages")
    info = packages / "mortal_engine-1.dist-info"
    info.mkdir()
    (packages / "mortal_engine.py").write_text(ENGINE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mortal-engine\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[mismatch_probe.engines]\nmortal = mortal_engine\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(packages))
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        importlib.import_module("mortal_engine")
        executor = RayExecutor(RayConfig(workers=2))
        yield executor
        executor.close()


def job_in(folder, **faults):
    run = folder / "run"
    run.mkdir(parents=True, exist_ok=True)
    (run / "manifest.json").write_text("{}")
    parts = tuple(range(PARTS))
    return RolloutJob(
        run=run,
        engine="mortal",
        spec={
            "model_path": str(folder), "dtype": "float32", "max_model_len": 8, "routing": False, "num_moe_layers": 0,
            "top_k": 0, "options": {"faults": {name[1:]: fault for name, fault in faults.items()}},
        },
        sampling=SamplingConfig(samples=2),
        prompts=tuple(JobPrompt(prompt_id=f"p{i}", token_ids=(1, 2, 3), answer=None) for i in range(PARTS)),
        prompts_per_part=1,
        reward=None,
        tokenizer_path=None,
        tasks=(Task(leg="rollout/decode", parts=parts), Task(leg="rollout/prefill", parts=parts)),
    )  # fmt: skip


def parts_of(job):
    return {str(path.relative_to(job.run)): path.read_bytes() for path in job.run.rglob("part-*")}


def test_a_killed_actor_and_a_killed_engine_change_no_byte(execute, tmp_path):
    alone = job_in(tmp_path / "alone")
    run_worker(alone, alone.run / "logs/rollout.log", lambda event: None)
    job, events = job_in(tmp_path / "crew", s2="actor", s6="engine"), []
    facts = execute(job, job.run / "logs/rollout.log", events.append)
    assert parts_of(job) == parts_of(alone) and len(parts_of(job)) == 2 * PARTS
    assert facts["engine"] == "mortal" and facts["details"]["crew"] in (1, 2)
    told = [event["text"] for event in events if event["event"] == "message"]
    assert "a Ray actor was lost: rollout/decode part 1 is done again" in told
    assert any("signal 9" in text and text.endswith("rollout/decode part 3 is done again") for text in told)
    assert sum(text.startswith("worker ") for text in told) >= 3
    sequences = [event["sequences"] for event in events if event["event"] == "progress"]
    assert sum(sequences) == 2 * PARTS
    assert {path.name for path in (job.run / "logs").iterdir()} == {"rollout-1.log", "rollout-2.log"}


def test_an_engines_own_error_arrives_whole(execute, tmp_path):
    job = job_in(tmp_path, s0="refuse")
    with pytest.raises(CaptureError, match="no scores today") as caught:
        execute(job, job.run / "logs/rollout.log", lambda event: None)
    assert caught.value.hint == "come back tomorrow"


def test_a_run_that_a_node_does_not_see_is_refused(execute, tmp_path):
    job = job_in(tmp_path)
    (job.run / "manifest.json").unlink()
    with pytest.raises(RunDirectoryError, match="not there on the node"):
        execute(job, job.run / "logs/rollout.log", lambda event: None)


def test_actors_that_do_not_fit_are_refused_before_they_wait_for_ever(execute, tmp_path):
    job = job_in(tmp_path)
    execute(
        job.model_copy(update={"tasks": (Task(leg="rollout/decode", parts=(0,)),)}), tmp_path / "l.log", print
    )
    greedy = RayExecutor(RayConfig(workers=2, gpus_per_worker=2))
    with pytest.raises(ConfigError, match="2 workers of 2 GPUs each do not fit into Ray's 0 GPUs"):
        greedy(job, tmp_path / "l.log", lambda event: None)


def test_gpus_follow_from_the_engines_own_parallelism():
    spec = {"options": {"tensor_parallel_size": 2, "pipeline_parallel_size": 3}}
    rollout = RolloutJob.model_construct(spec=spec)
    assert gpus_needed(rollout) == 6
    assert gpus_needed(RolloutJob.model_construct(spec={"options": {"tp_size": 4, "mem_fraction": 0.5}})) == 4
    assert gpus_needed(ScoreJob.model_construct(spec={"options": {"world_size": 8}})) == 8
    assert gpus_needed(ScoreJob.model_construct(spec={"options": {}})) == 1


@pytest.mark.parametrize(
    ("address", "error", "says"),
    [
        ("127.0.0.1:1", EngineUnavailableError, "nothing answers at ray.address=127.0.0.1:1"),
        ("head:port", EngineUnavailableError, "nothing answers"),
        ("ray://127.0.0.1:10001", ConfigError, "outside the cluster"),
    ],
)
def test_an_address_that_cannot_be_is_refused_at_once(tmp_path, address, error, says):
    job = job_in(tmp_path)
    with pytest.raises(error, match=says):
        RayExecutor(RayConfig(workers=2, address=address))(job, tmp_path / "l.log", lambda event: None)


def test_ray_settings_without_workers_are_not_ignored():
    with pytest.raises(ValueError, match=r"ray\.workers is not set"):
        RayConfig(address="auto")
    assert RayConfig(workers=0, address="auto").workers == 0
