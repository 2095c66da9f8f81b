"""llama.cpp on a GGUF copy of the embedded model against transformers, through the command line."""

import json

import pytest
from gguf_model import write_gguf
from running import run_cli

from mismatch_probe.assets.catalog import resolve_model

pytestmark = pytest.mark.engine

LEGS = ["rollout/decode", "rollout/prefill", "rollout/forced", "train/forward", "train/repeat"]


def test_a_float32_gguf_against_transformers_in_float32(tmp_path):
    gguf = write_gguf(resolve_model("tiny-qwen3-moe").path, tmp_path / "tiny.gguf")
    finished = run_cli(
        "audit", "--no-report", "--rollout", "llama-cpp", "--set", f"rollout.options.gguf={gguf}", "--set", "train.dtype=float32",
        "--set", "rollout.options.cache_dtype=f32", "--num-prompts", "8", "--samples", "2", "--out", str(tmp_path / "run"),
        "--set", f"legs={json.dumps(LEGS)}",
    )  # fmt: skip
    # Decode and prefill differ by more than float32 rounds, and that is a finding.
    assert finished.status in (0, 1), finished.stderr
    assert "llama.cpp does not hand out the experts" in finished.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    steps = {(row["from"], row["to"]): row for row in result["legs"]["steps"]}
    assert steps["rollout/decode", "rollout/forced"]["exact"] is True
    assert steps["rollout/decode", "train/forward"]["k3"]["value"] < 1e-5
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["engines"]["rollout"]["dtype"] == "F32"
    # The file's name says enough: a run directory is handed around.
    assert manifest["engines"]["rollout"]["options"]["gguf"] == "tiny.gguf"


def test_a_gguf_of_another_model_is_refused_before_anything_starts(tmp_path):
    gguf = write_gguf(resolve_model("tiny-qwen3-moe").path, tmp_path / "tiny.gguf", rope_theta=5e5)
    pair = ("--rollout", "llama-cpp", "--set", f"rollout.options.gguf={gguf}")
    refused = run_cli("audit", *pair, "--out", str(tmp_path / "run"))
    assert refused.status == 2 and "rope.freq_base is 500000" in refused.stderr
    assert not (tmp_path / "run").exists()
    shown = run_cli("doctor", *pair)
    assert "differs        gguf rope.freq_base: rollout 500000, train 10000" in shown.stdout
