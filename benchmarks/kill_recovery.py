"""Kills audits at random instants and checks that `--resume` ends with the bytes of an undisturbed run.

    python benchmarks/kill_recovery.py --kills 200 [--rollout transformers] [--seed 0] [--folder FOLDER]

One audit of the embedded model runs undisturbed. Then others run with SIGKILL at seeded instants spread over all their stages, to
the whole process group or to one of its processes, and are resumed until they end. Compared with the undisturbed one: every
part on disk byte by byte, result.json but for when, where and how it was made, and that no temporary file is left. A line of
JSON is printed for every kill and every run, a summary at the end; the status is 1 if a run did not recover.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# What a resumed run may say differently of itself: the command, the moment, and what depends on them.
_OWN = ("command", "created_at", "run_id")
_LEGS = 'legs=["rollout/decode", "rollout/prefill", "train/forward", "train/repeat"]'
_ARGUMENTS = (
    *("--num-prompts", "8", "--samples", "2", "--max-tokens", "24"),
    *("--set", "part_sequences=4", "--set", _LEGS),
)


def command(out: Path, rollout: str, *, resume: bool) -> list[str]:
    """The audit; resumed, it is told nothing but where."""
    start = [sys.executable, "-m", "mismatch_probe_cli", "audit", "--out", str(out), "--no-report"]
    return [*start, "--resume"] if resume else [*start, "--rollout", rollout, *_ARGUMENTS]


def start(out: Path, rollout: str, *, resume: bool, log: Path) -> subprocess.Popen[bytes]:
    """Starts an audit as the leader of a process group; what it says goes to the log."""
    with log.open("ab") as file:
        return subprocess.Popen(
            command(out, rollout, resume=resume),
            stdout=subprocess.DEVNULL,
            stderr=file,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


def group_of(leader: int) -> list[int]:
    """The processes of a group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.getpgid(int(entry.name)) == leader:
                    found.append(int(entry.name))
            except ProcessLookupError:
                continue
    return found


def kill(process: subprocess.Popen[bytes], generator: random.Random) -> str:
    """SIGKILL to all, to the parent alone, or to one child, which the audit has to survive or to report."""
    target = generator.choice(("group", "group", "parent", "child"))
    children = [pid for pid in group_of(process.pid) if pid != process.pid]
    if target == "child" and children:
        os.kill(generator.choice(children), signal.SIGKILL)
        # What the audit makes of it: an error, or waiting without an end, which the kill below ends and the resume judges.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=300)
    elif target == "parent":
        process.kill()
        process.wait(timeout=60)
    else:
        target = "group"
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=60)
    return target


def stage_of(out: Path) -> str:
    """How far the run on disk has come."""
    try:
        manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "before the manifest"
    waiting = [name for name in ("record", "score", "measure") if manifest["stages"].get(name) != "done"]
    return waiting[0] if waiting else "after measure"


def parts(out: Path) -> dict[str, bytes]:
    """All parts by their place."""
    return {str(file.relative_to(out)): file.read_bytes() for file in sorted(out.rglob("part-*"))}


def result(out: Path) -> Any:
    """result.json without what a run says of itself alone."""
    content = json.loads((out / "result.json").read_text(encoding="utf-8"))
    for name in _OWN:
        content["provenance"].pop(name)
    return without_times(content)


def without_times(value: Any) -> Any:
    """The same without durations."""
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if not key.endswith("seconds")}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def main() -> int:
    """Runs the kills."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--kills-per-run", type=int, default=8)
    parser.add_argument("--rollout", default="transformers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    generator = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        whole, log = folder / "whole", folder / "log.txt"
        begun = time.monotonic()
        if start(whole, arguments.rollout, resume=False, log=log).wait() not in (0, 1):
            print(log.read_text(encoding="utf-8"), file=sys.stderr)
            return 1
        length = time.monotonic() - begun
        expected, outcome = parts(whole), result(whole)
        killed, recovered, failed, stages = 0, 0, [], {}
        for number in itertools.count():
            if killed >= arguments.kills:
                break
            out = folder / f"run-{number}"
            for _ in range(min(arguments.kills_per_run, arguments.kills - killed)):
                process = start(out, arguments.rollout, resume=(out / "manifest.json").is_file(), log=log)
                try:
                    # Later stages are reached in the later ones of a run's kills.
                    process.wait(timeout=generator.uniform(0.2, 0.8 * length))
                except subprocess.TimeoutExpired:
                    target, stage = kill(process, generator), stage_of(out)
                    killed += 1
                    stages[stage] = stages.get(stage, 0) + 1
                    print(json.dumps({"kill": killed, "target": target, "stage": stage}), flush=True)
                else:
                    break
            begun_again = (out / "manifest.json").is_file()
            status = start(out, arguments.rollout, resume=begun_again, log=log).wait()
            left = [str(file) for file in out.rglob("*.partial")]
            same = status in (0, 1) and parts(out) == expected and result(out) == outcome and not left
            recovered += same
            if not same:
                failed.append(out.name)
            print(
                json.dumps({"run": out.name, "status": status, "recovered": same, "left": left}), flush=True
            )
            if same:
                subprocess.run(["rm", "-rf", str(out)], check=True)
        print(json.dumps({"kills": killed, "runs": recovered + len(failed), "recovered": recovered, "failed": failed, "stages": stages, "undisturbed_s": round(length, 1)}))  # fmt: skip
        return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
