"""Real runs of the command line on real engines, made once a session and shared."""

import dataclasses
import fcntl
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from running import Finished, run_cli


@dataclass(frozen=True)
class Audited:
    """A run directory and the command that made it."""

    path: Path
    finished: Finished

    @property
    def result(self) -> dict[str, Any]:
        """result.json."""
        return json.loads((self.path / "result.json").read_text())

    def copy_to(self, folder: Path) -> Path:
        """A copy that a test may spoil."""
        shutil.copytree(self.path, folder)
        return folder


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Audited:
    """The embedded model through both engines, every leg, two parts on disk. Made once; each worker has a copy."""
    own = tmp_path_factory.mktemp("runs") / "embedded"
    together = tmp_path_factory.getbasetemp()
    master = (together.parent if "PYTEST_XDIST_WORKER" in os.environ else together) / "embedded"
    said = master.with_suffix(".json")
    with master.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.is_file():
            legs = ["rollout/decode", "rollout/prefill", "rollout/forced", "rollout/refit", "train/forward", "train/replay",
                    "train/reference", "train/repeat"]  # fmt: skip
            finished = run_cli(
                "audit", "--out", str(master), "--num-prompts", "32", "--set", f"legs={json.dumps(legs)}",
            )  # fmt: skip
            said.write_text(json.dumps(dataclasses.asdict(finished)))
    finished = Finished(**json.loads(said.read_text()))
    assert finished.status in (0, 1), finished.stderr
    shutil.copytree(master, own)
    return Audited(own, finished)


@pytest.fixture(scope="session")
def dense_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense checkpoint with random weights and the embedded model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    from mismatch_probe.assets.catalog import resolve_model

    folder = tmp_path_factory.mktemp("models") / "dense"
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=256, initializer_range=0.1, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(resolve_model("tiny-qwen3-moe").path).save_pretrained(folder)
    return folder
