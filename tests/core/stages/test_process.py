"""Worker processes with an engine of a third party, found by its entry point, that misbehaves on purpose."""

import importlib
import os
import sys

import pytest

from mismatch_probe.config.model import SamplingConfig
from mismatch_probe.errors import CaptureError, EngineCrashError
from mismatch_probe.stages.job import JobPrompt, RolloutJob, Task
from mismatch_probe.stages.process import run_worker
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.trace import Trace

ENGINE = """
import os, signal
import numpy as np
from mismatch_probe.engines.protocol import EngineCapabilities, EngineFacts, SampledSequence
from mismatch_probe.engines.registry import register_engine
from mismatch_probe.errors import CaptureError

class Engine:
    def __init__(self, spec):
        self.how = spec.options["how"]
        print('{"event": "done", "facts": {}}', flush=True)  # garbage on stdout must not be taken for an event
    def facts(self):
        return EngineFacts("odd", "1", "float32", "cpu", "processed_logprobs", {})
    def sample(self, requests, sampling, progress):
        if self.how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "raise":
            raise ValueError("kernel panic\\nin two lines")
        if self.how == "refuse":
            raise CaptureError("no scores today", hint="come back tomorrow")
        progress(len(requests), 0)
        return [SampledSequence(r.sequence_id, [7, 2], np.float32([-0.5, -r.sequence_id]), "stop", None) for r in requests]
    def close(self):
        pass

@register_engine("odd", summary="misbehaves", capabilities=lambda: EngineCapabilities(True, False, False, False))
def make(spec):
    return Engine(spec)
"""


@pytest.fixture
def odd_engine(tmp_path, monkeypatch):
    """Installs a distribution with an entry point, as pip would leave it."""
    packages = tmp_path / "packages"
    info = packages / "odd_engine-1.dist-info"
    info.mkdir(parents=True)
    (packages / "odd_engine.py").write_text(ENGINE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-engine\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[mismatch_probe.engines]\nodd = odd_engine\n")
    monkeypatch.syspath_prepend(str(packages))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    # The registry of this process may have read its entry points before.
    importlib.import_module("odd_engine")


def run(tmp_path, how, parts=(0, 1)):
    job = RolloutJob(
        run=tmp_path / "run",
        engine="odd",
        spec={
            "model_path": str(tmp_path), "dtype": "float32", "max_model_len": 8, "routing": False, "num_moe_layers": 0,
            "top_k": 0, "options": {"how": how},
        },
        sampling=SamplingConfig(samples=2),
        prompts=tuple(JobPrompt(prompt_id=f"p{i}", token_ids=(1, 2, 3), answer=None) for i in range(3)),
        prompts_per_part=2,
        reward=None,
        tokenizer_path=None,
        tasks=(Task(leg="rollout/decode", parts=parts),),
    )  # fmt: skip
    events = []
    facts = run_worker(job, tmp_path / "run/logs/rollout.log", events.append)
    return facts, events


@pytest.mark.usefixtures("odd_engine")
def test_a_third_partys_engine_is_found_and_used(tmp_path):
    facts, events = run(tmp_path, "well")
    assert facts["engine"] == "odd"
    assert [event["event"] for event in events if event["event"] != "progress"] == [
        "loading",
        "leg",
        "part",
        "part",
    ]
    rollout = Trace(RunDirectory(tmp_path / "run"), 2).rollout
    assert rollout.sequence_id.tolist() == [0, 1, 2, 3, 4, 5]
    assert rollout.prompt_index.tolist() == [0, 0, 1, 1, 2, 2]
    assert rollout.logprobs[1::2].tolist() == [0, -1, -2, -3, -4, -5]


@pytest.mark.usefixtures("odd_engine")
def test_an_engine_that_dies_is_a_clear_error(tmp_path):
    with pytest.raises(EngineCrashError, match="killed by signal 9") as caught:
        run(tmp_path, "die")
    assert "rollout.log" in (caught.value.hint or "")
    assert not list((tmp_path / "run").rglob("part-*"))


@pytest.mark.usefixtures("odd_engine")
def test_an_engine_that_raises_is_one_line_and_the_rest_is_in_the_log(tmp_path):
    with pytest.raises(EngineCrashError, match="ValueError: kernel panic") as caught:
        run(tmp_path, "raise")
    assert "\n" not in caught.value.message
    assert "in two lines" in (tmp_path / "run/logs/rollout.log").read_text()


@pytest.mark.usefixtures("odd_engine")
def test_our_own_errors_keep_their_kind_and_hint(tmp_path):
    with pytest.raises(CaptureError, match="no scores today") as caught:
        run(tmp_path, "refuse")
    assert caught.value.hint == "come back tomorrow"
