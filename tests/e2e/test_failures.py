"""A full disk, a read-only one, an engine without memory, a second writer: one sentence, and the bytes of an undisturbed run.

Kills at random instants are in benchmarks/kill_recovery.py, which takes an hour.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine
# Prompts as ids: reading a tokenizer is much of what a small audit does.
PROMPTS = Path(__file__).with_name("prompts_as_ids.jsonl")
ARGUMENTS = (
    *("--prompts", str(PROMPTS)),
    *("--rollout", "transformers", "--num-prompts", "4", "--samples", "2", "--max-tokens", "16", "--no-report"),
    *("--set", "part_sequences=2", "--set", "routing=false", "--set", 'legs=["rollout/decode", "train/forward"]'),
)  # fmt: skip
OWN = ("command", "created_at", "run_id")


@dataclass
class Finished:
    status: int
    stderr: str


def command(out, *arguments):
    return [sys.executable, "-m", "mismatch_probe_cli", "audit", "--out", str(out), *arguments]


def audit(out, *arguments, **variables):
    done = subprocess.run(
        command(out, *arguments), capture_output=True, text=True, env={**os.environ, **variables}
    )
    return Finished(done.returncode, done.stderr)


def parts(out):
    return {str(file.relative_to(out)): file.read_bytes() for file in sorted(Path(out).rglob("part-*"))}


def result(out):
    content = json.loads((Path(out) / "result.json").read_text())
    for name in OWN:
        content["provenance"].pop(name)

    def without_times(value):
        if isinstance(value, dict):
            return {k: without_times(item) for k, item in value.items() if not k.endswith("seconds")}
        return [without_times(item) for item in value] if isinstance(value, list) else value

    return without_times(content)


def assert_same(out, whole):
    assert parts(out) == parts(whole)
    assert result(out) == result(whole)
    assert not list(Path(out).rglob("*.partial"))


def assert_clear(finished, *words):
    assert finished.status == 2, finished.stderr
    assert "Traceback" not in finished.stderr
    assert "unexpected" not in finished.stderr
    for word in words:
        assert word in finished.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    finished = audit(out, *ARGUMENTS)
    assert finished.status in (0, 1), finished.stderr
    return out


def planted(folder, source):
    """Variables under which every Python process of the audit runs some lines first."""
    (folder / "sitecustomize.py").write_text(source)
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


@pytest.fixture
def mounted(tmp_path):
    """Runs a script where `$FS` is a small file system of its own; skips where that is not allowed."""
    folder = tmp_path / "fs"
    folder.mkdir()

    def run(script, *, size):
        mount = f"mount -t tmpfs -o size={size} tmpfs {folder}"
        inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
        if (
            shutil.which("unshare") is None
            or subprocess.run([*inside, mount], capture_output=True).returncode
        ):
            pytest.skip("this machine lets nobody mount")
        done = subprocess.run(
            [*inside, f"{mount}; {script}"],
            capture_output=True,
            text=True,
            env={**os.environ, "FS": str(folder)},
        )
        return Finished(done.returncode, done.stderr)

    return run


def quoted(arguments):
    return " ".join(f"'{argument}'" for argument in arguments)


@pytest.mark.parametrize("size", ["16k", pytest.param("32k", marks=pytest.mark.slow), pytest.param("44k", marks=pytest.mark.slow)])  # fmt: skip
def test_a_full_disk(whole, mounted, tmp_path, size):
    first, again = command("PLACE", *ARGUMENTS), command("PLACE", "--resume")
    script = f"""
        {quoted(first)} 2>{tmp_path}/first; echo $? >{tmp_path}/status
        mount -o remount,size=100m $FS
        {quoted(again)} && cp -r $FS/run {tmp_path}/run
    """.replace("'PLACE'", "$FS/run")
    finished = mounted(script, size=size)
    first = Finished(int((tmp_path / "status").read_text()), (tmp_path / "first").read_text())
    assert_clear(first, "No space left on device", "--resume")
    assert finished.status in (0, 1), finished.stderr
    assert_same(tmp_path / "run", whole)


def test_a_read_only_disk(whole, mounted):
    audited = quoted(command("PLACE", *ARGUMENTS)).replace("'PLACE'", "$FS/run")
    assert_clear(
        mounted(f"mount -o remount,ro $FS; {audited}", size="1m"), "cannot write into", "give another --out"
    )
    measured = quoted([sys.executable, "-m", "mismatch_probe_cli", "measure", "PLACE"])
    script = f"cp -r {whole} $FS/run; mount -o remount,ro $FS; {measured}".replace("'PLACE'", "$FS/run")
    assert_clear(mounted(script, size="10m"), "cannot write", "fs/run")


STARVE = """
import os, resource, sys

def starve(event, arguments):
    # Once the second part has its name, nothing more is to be had.
    if event == "os.rename" and str(arguments[1]).endswith(PLACE):
        mapped = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped, mapped))

if "mismatch_probe.stages.worker" in sys.orig_argv:
    sys.addaudithook(starve)
"""


@pytest.mark.parametrize(
    "place",
    [
        "rollout/part-00001.parquet",
        pytest.param("train/forward/part-00000.parquet", marks=pytest.mark.slow),
    ],
)
def test_an_engine_without_memory(whole, tmp_path, place):
    out = tmp_path / "run"
    starved = audit(out, *ARGUMENTS, **planted(tmp_path, STARVE.replace("PLACE", repr(place))))
    assert_clear(starved, "engine process", str(out / "logs"))
    assert (out / "manifest.json").is_file()
    finished = audit(out, "--resume")
    assert finished.status in (0, 1), finished.stderr
    assert_same(out, whole)


def test_two_audits_into_one_directory(whole, tmp_path):
    out = tmp_path / "run"
    first = subprocess.Popen(command(out, *ARGUMENTS), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    while not (out / "manifest.json").exists():
        assert first.poll() is None
        time.sleep(0.05)
    for arguments in (ARGUMENTS, ("--resume",), (*ARGUMENTS, "--force")):
        assert_clear(audit(out, *arguments), str(out))
    assert first.wait() in (0, 1), first.stderr.read()
    assert_same(out, whole)


CLOCK = """
import os, sys, time

real, behind, renamed = time.time, [0.0], []

def turn_back(event, arguments):
    # With every part the clock goes a day back, and so do the times of the files.
    if event == "os.rename" and "part-" in str(arguments[1]):
        behind[0] += 86400.0
        os.utime(arguments[0], (time.time(), time.time()))
        renamed.append(arguments[1])
        if len(renamed) == KILL_AT:
            os.kill(os.getppid(), 9)
            os.kill(os.getpid(), 9)

time.time = lambda: real() - behind[0]
time.time_ns = lambda: int(time.time() * 1e9)
sys.addaudithook(turn_back)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kill_at", [None, 3])
def test_a_clock_that_goes_backwards(whole, tmp_path, kill_at):
    out = tmp_path / "run"
    finished = audit(out, *ARGUMENTS, **planted(tmp_path, CLOCK.replace("KILL_AT", repr(kill_at))))
    if kill_at is None:
        assert finished.status in (0, 1), finished.stderr
    else:
        # Gone on with by a clock that is days ahead of the files.
        assert finished.status == -9
        finished = audit(out, "--resume")
        assert finished.status in (0, 1), finished.stderr
    assert_same(out, whole)
