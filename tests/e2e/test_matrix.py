"""A matrix through the command line: two rollout engines that sample in turn, and who reads what."""

import json
import struct

import pytest
from gguf_model import write_gguf
from running import run_cli

from mismatch_probe.assets.catalog import resolve_model

pytestmark = [pytest.mark.engine, pytest.mark.slow]

CONFIG = """
legs = ["rollout/decode", "train/forward", "train/repeat"]
routing = false
[prompts]
num_prompts = 8
[sampling]
samples = 2
max_tokens = 24
[[matrix.rollout]]
engine = "transformers"
[[matrix.rollout]]
engine = "llama-cpp"
options = {{ gguf = "{gguf}", cache_dtype = "f32" }}
"""


def test_two_engines_sample_in_turn_and_read_each_other(tmp_path):
    gguf = write_gguf(resolve_model("tiny-qwen3-moe").path, tmp_path / "tiny.gguf")
    config, out = tmp_path / "matrix.toml", tmp_path / "run"
    config.write_text(CONFIG.format(gguf=gguf))
    finished = run_cli("audit", "--no-report", "--config", str(config), "--out", str(out))
    assert finished.status in (0, 1), finished.stderr
    assert "read by" in finished.stdout.lower()
    matrix = json.loads((out / "matrix.json").read_text())
    cells = {(cell["source"], cell["reader"]): cell for cell in matrix["cells"]}
    engines = ("rollout/transformers", "rollout/llama-cpp")
    readers = (*engines, "train/transformers")
    assert set(cells) == {(source, reader) for source in engines for reader in readers}
    for (source, reader), cell in cells.items():
        assert cell["status"] == "done", (source, reader)
        # llama.cpp decodes and prefills with different kernels, transformers reads by its scorer's forward.
        assert cell["k3"]["value"] < 0.05
        assert (out / cell["run"] / "result.json").is_file()
        assert not (out / cell["run"] / "report.html").exists()
    # Either side's tokens, not one side's alone.
    assert cells[engines[0], engines[1]]["num_tokens"] != cells[engines[1], engines[0]]["num_tokens"]
    page = (out / "matrix.html").read_text()
    assert "llama-cpp" in page and "<svg" in page
    picture = (out / "matrix.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n" and min(struct.unpack(">II", picture[16:24])) > 300
