"""Two vLLM replicas in actors of a local Ray, one of them killed: the result is that of one undisturbed process."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from running import run_cli

# Threads change how a CPU adds: the same number here and there.
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
ARGUMENTS = (
    "--num-prompts", "8", "--set", "part_sequences=8", "--set", "sampling.samples=4",
    "--set", 'legs=["rollout/decode", "rollout/prefill", "train/forward", "train/replay"]',
)  # fmt: skip


def parts_of(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("part-*")}


def result_of(path):
    result = json.loads((path / "result.json").read_text())
    provenance = result["provenance"]
    for name in ("command", "created_at", "run_id"):
        del provenance[name]
    for side in ("rollout", "train"):
        provenance[side]["details"].pop("crew", None)
    return result


def killed_run(path):
    """Kills the first actor once a part is on disk; returns what the run said."""
    run = subprocess.Popen(
        [sys.executable, "-m", "mismatch_probe_cli", "audit", "--out", str(path), "--ray", "2", *ARGUMENTS],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **ENVIRONMENT},
    )
    said = []
    for line in run.stderr:
        said.append(line)
        actor = re.match(r"worker 1: node \S+, process (\d+)", line)
        if actor is not None and not list(path.glob("scores")):
            while not list(path.glob("rollout/part-*.parquet")):
                assert run.poll() is None, "".join(said)
                time.sleep(0.01)
            os.kill(int(actor[1]), signal.SIGKILL)
    assert run.wait() in (0, 1), "".join(said)
    return "".join(said)


@pytest.mark.engine
def test_killing_an_actor_changes_nothing_in_the_result(tmp_path):
    alone, crew = tmp_path / "alone", tmp_path / "crew"
    assert run_cli("audit", "--out", str(alone), *ARGUMENTS, **ENVIRONMENT).status in (0, 1)
    said = killed_run(crew)
    assert re.search(r"a Ray actor was lost: rollout/decode part \d is done again", said), said
    assert parts_of(crew) == parts_of(alone) and len(parts_of(alone)) > 4 * 4
    assert result_of(crew) == result_of(alone)
    assert json.loads((crew / "result.json").read_text())["provenance"]["train"]["details"]["crew"] == 2
    assert not list(crew.rglob("*.partial"))
