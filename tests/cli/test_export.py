"""`export` to a file, and into a config that a user has."""

import json
import os
import pty
import re
import subprocess
import sys

import pytest
import yaml
from core.export.conftest import build
from running import run_cli

from benchmarks.synthetic_run import Planted, write_run
from mismatch_probe.export import available_exporters

CONFIG = "algorithm:\n  gamma: 1.0  # as before\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "first"
    write_run(path, Planted(5e-3, 30, prompts=12, seed=1))
    (path / "result.json").write_text(json.dumps(build(noise=0.1)))
    return str(path)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "ppo_trainer.yaml"
    path.write_text(CONFIG)
    path.chmod(0o640)
    return path


def test_the_help_names_every_framework():
    said = run_cli("export", "--help").stdout
    assert all(name in said for name in available_exporters())


def test_merge_shows_the_diff_and_writes_nothing_that_nobody_agreed_to(run, config):
    done = run_cli("export", run, "--to", "verl", "--merge", str(config))
    assert done.status == 2 and "--yes" in done.stderr
    assert config.read_text() == CONFIG
    added = [line for line in done.stdout.splitlines() if line.startswith("+")]
    assert any("rollout_is_threshold" in line for line in added)
    assert not [line for line in done.stdout.splitlines()[2:] if line.startswith("-")]


def test_merge_with_yes_writes_once(run, config):
    assert run_cli("export", run, "--to", "verl", "--merge", str(config), "--yes").status == 0
    text = config.read_text()
    assert text.startswith(CONFIG) and config.stat().st_mode & 0o777 == 0o640
    assert yaml.safe_load(text)["actor_rollout_ref"]["rollout"]["calculate_log_probs"] is True
    again = run_cli("export", run, "--to", "verl", "--merge", str(config))
    assert again.status == 0 and "has all of it already" in again.stderr and not again.stdout


@pytest.mark.parametrize(("answer", "written"), [("n", False), ("y", True)])
def test_on_a_terminal_merge_asks(run, config, answer, written):
    keys, terminal = pty.openpty()
    command = [sys.executable, "-m", "mismatch_probe_cli"]
    process = subprocess.Popen(
        [*command, "export", run, "--to", "verl", "--merge", str(config)],
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.write(keys, f"{answer}\n".encode())
    out, err = process.communicate(timeout=60)
    os.close(keys)
    os.close(terminal)
    assert process.returncode == 0, err
    assert "Write this to" in err and "+algorithm" not in out and "+  rollout_correction" in out
    assert (config.read_text() != CONFIG) is written


def test_what_does_not_go_together_is_status_2(run, config, tmp_path):
    for arguments in (
        ("--to", "verl", "--merge", str(config), "--out", str(tmp_path / "x.yaml")),
        ("--to", "slime", "--merge", str(config), "--yes"),
        ("--to", "verl", "--merge", str(tmp_path / "none.yaml"), "--yes"),
        ("--to", "openrlhf", "--method", "seq_mis"),
        ("--to", "drift-profile", "--method", "icepop"),
    ):
        done = run_cli("export", run, *arguments)
        assert done.status == 2, arguments
        assert "Traceback" not in done.stderr
    assert config.read_text() == CONFIG


def test_method_and_out(run, tmp_path):
    out = tmp_path / "icepop.sh"
    assert run_cli("export", run, "--to", "openrlhf", "--method", "icepop", "--out", str(out)).status == 0
    assert "--algo.advantage.is_correction_mode mask" in out.read_text()
    assert re.search(r"On this run it keeps [\d.]+ %", out.read_text())
