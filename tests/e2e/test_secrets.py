"""Keys planted in the environment, in options and in what a model's engine prints: in no file of a run, no output and no child's command line."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mismatch_probe.assets.catalog import resolve_model

pytestmark = pytest.mark.engine
KEYS = {
    name: f"PLANTED-{number}-{name.lower()}-c0ffee"
    for number, name in enumerate(("HF_TOKEN", "OPENAI_API_KEY", "VLLM_API_KEY", "WANDB_API_KEY", "MISMATCH_PROBE_API_KEY"))
}  # fmt: skip
OPTION = "PLANTED-option-hf_token-c0ffee"
# The engine prints all its environment, as some do when they fail.
LOUD = """
import os, sys
if "mismatch_probe.stages.worker" in sys.orig_argv:
    print(dict(os.environ), flush=True)
"""


class Watched:
    """Command lines of every process that this user runs, while it is watched."""

    def __init__(self):
        self.seen = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self):
        while not self._stop.is_set():
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit():
                    try:
                        self.seen.add((entry / "cmdline").read_bytes())
                    except OSError:
                        continue
            time.sleep(0.1)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


def written(run):
    """Every byte of a run, compressed columns read out."""
    for path in sorted(run.rglob("*")):
        if path.is_file():
            yield path, path.read_bytes()
            if path.suffix == ".parquet":
                yield path, str(pq.read_table(path).to_pydict()).encode()


def assert_nowhere(run, *outputs):
    for path, data in written(run):
        assert b"PLANTED" not in data, path
    for output in outputs:
        assert "PLANTED" not in output


def run_with_keys(folder, *arguments):
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(LOUD)
    paths = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    with Watched() as watched:
        done = subprocess.run(
            [sys.executable, "-m", "mismatch_probe_cli", *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, **KEYS, "PYTHONPATH": paths},
        )
    return done, watched.seen


def test_no_secret_is_written(tmp_path):
    config, run = tmp_path / "probe.toml", tmp_path / "run"
    config.write_text(f'[rollout.options]\nhf_token = "{OPTION}"\n')
    done, seen = run_with_keys(
        tmp_path / "plant",
        *("audit", "--config", str(config), "--out", str(run), "--num-prompts", "4", "--samples", "2"),
        *("--max-tokens", "16", "--set", 'legs=["rollout/decode", "train/forward"]'),
    )
    assert done.returncode in (0, 1), done.stderr
    assert_nowhere(run, done.stdout, done.stderr)
    assert any(b"mismatch_probe.stages.worker" in line for line in seen)
    assert not any(b"PLANTED" in line for line in seen)
    assert b"<redacted>" in (run / "logs/rollout.log").read_bytes(), "the plant was not loud"
    assert '"hf_token": "<redacted>"' in (run / "manifest.json").read_text()

    # What was not kept has to be given again.
    again, _ = run_with_keys(tmp_path / "plant", "audit", "--out", str(run), "--resume")
    assert again.returncode == 2
    assert "rollout.options.hf_token" in again.stderr
    assert "--set" in again.stderr
    resumed, _ = run_with_keys(
        tmp_path / "plant",
        *(
            "audit",
            "--out",
            str(run),
            "--resume",
            "--set",
            f"rollout.options.hf_token={OPTION}",
            "--no-report",
        ),
    )
    assert resumed.returncode in (0, 1), resumed.stderr
    assert_nowhere(run, resumed.stdout, resumed.stderr)


def test_an_engine_that_fails_does_not_tell(tmp_path):
    run = tmp_path / "run"
    done, _ = run_with_keys(
        tmp_path / "plant",
        *("audit", "--out", str(run), "--num-prompts", "2", "--samples", "1", "--max-tokens", "4"),
        *("--set", f"rollout.options.api_key={OPTION}", "--set", "rollout.options.no_such_argument=1"),
    )
    assert done.returncode == 2
    assert_nowhere(run, done.stdout, done.stderr)


@pytest.fixture
def wicked(tmp_path):
    """A checkpoint that brings code, which leaves a mark when it is run."""
    folder, mark = tmp_path / "wicked", tmp_path / "code-was-run"
    shutil.copytree(resolve_model("tiny-qwen3-moe").path, folder)
    code = f"open({str(mark)!r}, 'w').close()\nfrom transformers import Qwen3MoeConfig as Wicked\n"
    (folder / "wicked.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "wicked", "auto_map": {"AutoConfig": "wicked.Wicked"}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, mark


def test_code_of_a_checkpoint_is_not_run(wicked, tmp_path):
    folder, mark = wicked
    arguments = ("audit", "--model", str(folder), "--num-prompts", "2", "--samples", "1", "--max-tokens", "4")
    for rollout in ("vllm", "transformers"):
        run = tmp_path / rollout
        done = subprocess.run(
            [sys.executable, "-m", "mismatch_probe_cli", *arguments, "--rollout", rollout, "--out", str(run)],
            capture_output=True,
            text=True,
        )
        assert done.returncode in (2, 3), done.stderr
        assert "Traceback" not in done.stderr
        assert "unexpected" not in done.stderr
        assert not mark.exists()
        if (run / "manifest.json").is_file():
            assert json.loads((run / "manifest.json").read_text())["config"]["trust_remote_code"] is False
