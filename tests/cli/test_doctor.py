"""`doctor` on a pair, in this process: no engine is started."""

import json
import shutil
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from mismatch_probe.assets.catalog import resolve_model
from mismatch_probe_cli.app import app

ADDRESS = ("--set", "rollout.options.url=http://host")


def doctor(*arguments):
    finished = CliRunner().invoke(app, ["doctor", *arguments], terminal_width=200)
    return finished.exit_code, finished.stdout


@pytest.fixture(scope="module")
def other_checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "other"
    shutil.copytree(resolve_model("tiny-qwen3-moe").path, folder)
    config = json.loads((folder / "config.json").read_text())
    config["rms_norm_eps"] = 0.5
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_every_engine_says_what_it_can_and_why_it_cannot():
    status, text = doctor()
    assert status == 0
    for name in ("vllm", "vllm-server", "openai-server", "transformers", "rollout-engine"):
        assert any(name in line and " can " in line for line in text.splitlines())
    assert "not routing: a completions server returns no experts" in text
    assert "legs " not in text
    assert [line.split()[1] for line in text.splitlines() if line.startswith("ray ")] == [version("ray")]


def test_a_pair_shows_its_legs_and_what_the_defaults_lose():
    status, text = doctor("--rollout", "openai-server", *ADDRESS, "--set", "sampling.temperature=0.7")
    assert status == 0
    (legs,) = [line for line in text.splitlines() if line.startswith("legs")]
    assert legs.split(maxsplit=1)[1] == "rollout/decode, train/forward, train/reference, train/repeat"
    assert (
        "rollout/prefill needs prefill scoring under temperature, which openai-server does not have" in text
    )
    assert all(
        any(line.startswith(name) for line in text.splitlines())
        for name in ("dtype", "rope", "chat template")
    )


def test_a_pair_that_cannot_give_what_is_asked_is_status_2():
    status, text = doctor(
        "--rollout", "openai-server", *ADDRESS, "--set", 'legs=["rollout/decode", "rollout/forced"]'
    )
    assert status == 2
    assert "CANNOT           rollout/forced needs forced_decode" in text
    assert "something is broken" in text
    status, text = doctor("--rollout", "openai-server")
    assert status == 2
    assert "openai-server needs an address" in text


def test_two_checkpoints_are_told_apart_by_aspect(other_checkpoint):
    _, text = doctor("--train-model", other_checkpoint, "--set", "train.dtype=float32")
    lines = text.splitlines()
    norms = next(at for at, line in enumerate(lines) if line.startswith("norms"))
    assert "DIFFERS" in lines[norms]
    assert "rms_norm_eps" in lines[norms + 1]
    assert "weights in use: rollout bfloat16, train float32" in text
    assert next(line for line in lines if line.startswith("rope")).endswith("the same")
