"""Truncated sampling on real vLLM: read over the recorded ids, the bias of the cut support is gone."""

import json
from itertools import pairwise

import numpy as np
import pytest
from running import run_cli

from mismatch_probe.trace.keep_sets import read_keep_sets
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.trace import Trace

pytestmark = pytest.mark.engine


def test_the_trainer_is_read_over_what_vllm_could_have_drawn(tmp_path):
    path = tmp_path / "run"
    finished = run_cli(
        "audit", "--no-report", "--out", str(path), "--num-prompts", "12", "--set", "sampling.top_p=0.9", "--set", "sampling.top_k=20",
        "--set", 'legs=["rollout/decode", "train/forward", "train/repeat"]',
    )  # fmt: skip
    assert finished.status in (0, 1), finished.stderr
    assert json.loads((path / "manifest.json").read_text())["keep_sets"] is True
    run = RunDirectory(path)
    trace = Trace(run, 1)
    bounds = trace.rollout.offsets
    responses = [trace.rollout.response_tokens[a:b].tolist() for a, b in pairwise(bounds)]
    kept = read_keep_sets(run.keep_set_part(0), trace.rollout.sequence_id.tolist(), responses)
    sizes = np.concatenate([np.diff(own.offsets) for own in kept])
    assert sizes.min() == 1 and sizes.max() <= 20
    # A set of one id is certain on both sides; the cut mass would make every such token negative.
    log_ratio = trace.logprobs("train/forward") - trace.logprobs("rollout/decode")
    assert np.abs(log_ratio[sizes == 1]).max() == 0
    checks = json.loads((path / "result.json").read_text())["data_quality"]["checks"]
    states = {check["code"]: check["status"] for check in checks}
    assert states["MP107"] == "pass" and states["MP111"] == "pass"
