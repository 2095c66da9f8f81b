"""Real SGLang on the CPU, in its own environment: in process against transformers, and behind its server."""

import json
from pathlib import Path

import numpy as np
import pytest
from running import run_cli

from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.trace import Trace

pytestmark = pytest.mark.engine

PYTHON = Path(__file__).parents[2] / ".venv-sglang" / "bin" / "python"
OPTION = ("--set", f"rollout.options.python={PYTHON}")


def test_the_environment_is_there():
    assert PYTHON.is_file(), "make sglang builds it; make test does so first"


def test_sglang_against_transformers_with_its_own_routes(tmp_path):
    legs = ["rollout/decode", "rollout/prefill", "train/forward", "train/replay", "train/repeat"]
    finished = run_cli(
        "audit", "--no-report", "--rollout", "sglang", *OPTION, "--num-prompts", "8", "--out", str(tmp_path / "run"),
        "--set", f"legs={json.dumps(legs)}", "--set", "train.options.layer_replay=0",
    )  # fmt: skip
    assert finished.status in (0, 1), finished.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    rollout = json.loads((tmp_path / "run" / "manifest.json").read_text())["engines"]["rollout"]
    assert (rollout["engine"], rollout["version"], rollout["device"]) == ("sglang", "0.5.23", "cpu")
    # One run holds no absolute path of the machine that made it.
    assert str(PYTHON.parent) not in json.dumps(rollout)
    steps = {(row["from"], row["to"]): row for row in result["legs"]["steps"]}
    assert steps["rollout/decode", "train/forward"]["k3"]["value"] < 0.02
    assert steps["rollout/prefill", "train/forward"]["k3"]["value"] < 0.02
    assert result["routing"]["set_agreement"]["value"] > 0.9
    assert result["routing"]["replay"]["explained"]["value"] > 0.3
    assert result["routing"]["replay"]["self_replay"]["exact"] is True


@pytest.mark.slow
def test_sglangs_server_samples_at_a_temperature(tmp_path):
    finished = run_cli(
        "audit", "--no-report", "--rollout", "sglang-server", *OPTION, "--num-prompts", "4", "--set", "sampling.temperature=0.7",
        "--out", str(tmp_path / "run"), "--set", 'legs=["rollout/decode", "train/forward"]',
    )  # fmt: skip
    assert finished.status in (0, 1), finished.stderr
    trace = Trace(RunDirectory(tmp_path / "run"), 1)
    # The same distribution: log-probabilities of another temperature would be far apart.
    assert np.abs(trace.logprobs("train/forward") - trace.logprobs("rollout/decode")).mean() < 0.03
    assert trace.routes("rollout/decode")[0].shape[1:] == (4, 4)


def test_what_sglang_cannot_give_is_refused_before_it_is_started(tmp_path):
    for asked, missing in (
        ("sampling.top_p=0.9", "top_p"),
        ('legs=["rollout/decode","rollout/forced"]', "forced"),
    ):
        refused = run_cli(
            "audit", "--rollout", "sglang", *OPTION, "--set", asked, "--out", str(tmp_path / "run")
        )
        assert refused.status == 2 and missing in refused.stderr, refused.stderr
    assert not (tmp_path / "run").exists()
