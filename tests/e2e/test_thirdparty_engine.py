"""A rollout engine from another package: installed, listed, held to what it declares, and audited with."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from running import run_cli

from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.trace import Trace

PACKAGE = Path(__file__).parents[1] / "packages" / "thirdparty_engine"

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    target = tmp_path_factory.mktemp("site")
    run = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
         "--disable-pip-version-check", "--target", str(target), str(PACKAGE)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    return str(target)


def test_it_is_found_only_where_it_is_installed(installed):
    assert "recompute" not in run_cli("engines").stdout
    listed = run_cli("engines", PYTHONPATH=installed).stdout
    (line,) = [line for line in listed.splitlines() if line.split()[:2] == ["rollout", "recompute"]]
    assert "sampling,forced_decode" in line and "transformers without a cache" in line


def test_what_it_does_not_declare_is_refused_before_anything_starts(installed, tmp_path):
    out = tmp_path / "run"
    legs = 'legs=["rollout/decode", "rollout/prefill", "train/forward"]'
    finished = run_cli(
        "audit", "--rollout", "recompute", "--out", str(out), "--set", legs, PYTHONPATH=installed
    )
    assert finished.status == 2
    assert "rollout/prefill needs prefill_scoring, which recompute does not have" in finished.stderr
    assert "every step of it is a prefill already" in finished.stderr
    assert not (out / "rollout").exists()


def test_an_audit_samples_with_it(installed, tmp_path, dense_model):
    out, prompts = tmp_path / "run", tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"{n}+{n + 1}="}) + "\n" for n in range(8)))
    finished = run_cli(
        "audit", "--no-report", str(dense_model), "--rollout", "recompute", "--prompts", str(prompts), "--samples", "2", "--max-tokens", "24",
        "--out", str(out), "--set", "rollout.dtype=float32",
        "--set", "train.dtype=float32",
        "--set", 'legs=["rollout/decode", "rollout/forced", "train/forward", "train/repeat"]', PYTHONPATH=installed,
    )  # fmt: skip
    assert finished.status in (0, 1, 3), finished.stderr
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["engines"]["rollout"]["details"] == {"package": "thirdparty_engine"}
    trace = Trace(RunDirectory(out), 1)
    assert len(trace.logprobs("rollout/decode")) > 100
    assert (trace.logprobs("rollout/forced") == trace.logprobs("rollout/decode")).all()
    # In float32 both sides compute one function: no cache, no padding and no rounding to hide behind.
    assert abs(trace.logprobs("train/forward") - trace.logprobs("rollout/decode")).max() < 1e-4
