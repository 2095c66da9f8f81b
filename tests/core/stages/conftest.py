"""An engine of a third party, found by its entry point, that misbehaves on purpose."""

import importlib
import os
import sys

import pytest

from mismatch_probe.config.model import SamplingConfig
from mismatch_probe.stages.job import JobPrompt, RolloutJob, Task

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

def warm():
    print("imported ahead", flush=True)
    how = os.environ.get("ODD_WARM")
    if how == "die":
        os._exit(7)
    if how == "raise":
        raise RuntimeError("a package is broken")

able = EngineCapabilities(True, False, False, False)

@register_engine("odd", summary="misbehaves", capabilities=lambda: able, warm=warm)
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


@pytest.fixture
def odd_job(tmp_path):
    """Makes the job of that engine: three prompts in two parts, each sampled twice."""

    def make(how, run="run"):
        return RolloutJob(
            run=tmp_path / run,
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
            tasks=(Task(leg="rollout/decode", parts=(0, 1)),),
        )  # fmt: skip

    return make
