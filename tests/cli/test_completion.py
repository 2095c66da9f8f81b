"""The shell completes runs, codes and names, as the installed scripts ask for it, and imports nothing heavy for that."""

import os
import subprocess
import sys

import pytest
from cli.test_startup import HEAVY
from typer.main import get_command
from typer.testing import CliRunner

from mismatch_probe_cli import completion
from mismatch_probe_cli.app import app


@pytest.fixture
def place(tmp_path, monkeypatch):
    for run in ("runs/first", "runs/second", "alone", ".hidden/run", "a/b/deep"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "manifest.json").write_text("{}")
    (tmp_path / "runs" / "empty").mkdir()
    (tmp_path / "rust.txt").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "runs"),
    [
        ("", ["alone", "runs/first", "runs/second"]),
        ("ru", ["runs/first", "runs/second"]),
        ("runs/", ["runs/first", "runs/second"]),
        ("./runs/s", ["./runs/second"]),
        ("runs/../al", ["runs/../alone"]),
        (".h", [".hidden/run"]),
        ("a/", ["a/b/deep"]),
        ("runs/empty/", []),
        ("nowhere/", []),
    ],
)
def test_runs_are_found_and_begin_with_what_was_typed(place, typed, runs):
    assert completion.runs(typed) == runs


def test_runs_from_the_root_keep_the_root(place):
    assert completion.runs(f"{place}/al") == [f"{place}/alone"]


def complete(words):
    line = f"mismatch-probe {words}"
    environment = {
        "_MISMATCH_PROBE_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(line.count(" ")),
    }
    return CliRunner().invoke(app, [], env=environment, prog_name="mismatch-probe").stdout.split()


@pytest.mark.parametrize(
    ("words", "some", "none"),
    [
        ("expl", ["explain"], ["export"]),
        ("explain MP30", ["MP301", "MP304"], ["MP201"]),
        ("explain stale", ["stale-weights"], ["MP640"]),
        ("methods vespo", ["vespo", "vespo_lin"], ["cispo"]),
        ("methods --framework s", ["slime", "skyrl"], ["verl"]),
        ("engines v", ["vllm", "vllm-server"], ["transformers"]),
        ("audit --rollout v", ["vllm-server"], ["transformers"]),
        ("audit --train ", ["transformers", "fsdp"], ["llama-cpp"]),
        ("audit tiny", ["tiny-qwen3-moe"], []),
        ("simulate RUN --method tok", ["token_tis"], ["vespo"]),
        ("ablate RUN --knob re", ["refit"], []),
        ("export RUN --to v", ["verl"], ["trl"]),
        ("import --from sl", ["slime"], ["verl"]),
        ("report r", ["runs/first"], ["runs/empty"]),
        ("check al", ["alone"], []),
        ("diff alone runs/s", ["runs/second"], []),
    ],
)
def test_the_shell_gets_what_fits(place, words, some, none):
    found = complete(words)
    assert set(some) <= set(found)
    assert not set(none) & set(found)


def test_every_run_argument_is_completed():
    for name, command in get_command(app).commands.items():
        for parameter in command.params:
            if (parameter.metavar or parameter.name or "").startswith("RUN"):
                assert parameter._custom_shell_complete is not None, (name, parameter.name)


def test_no_completion_imports_anything_heavy(place):
    """All of them in one process: an engine is asked for its name, not imported."""
    code = f"""
import sys
from mismatch_probe_cli import completion
from mismatch_probe_cli.app import app
own = [f for f in vars(completion).values() if getattr(f, "__module__", "") == completion.__name__ and f.__name__[0] != "_"]
found = [len(suggest("")) for suggest in own]
assert len(found) >= 10 and all(found), found
heavy = [name for name in {HEAVY!r} if name in sys.modules]
assert not heavy, heavy
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_each_shell_can_be_shown(shell):
    environment = {**os.environ, "_MISMATCH_PROBE_COMPLETE": f"source_{shell}"}
    shown = CliRunner().invoke(app, [], env=environment, prog_name="mismatch-probe")
    assert "_MISMATCH_PROBE_COMPLETE" in shown.stdout
