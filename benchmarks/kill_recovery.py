"""Kills audits and the verbs after them at random instants and checks that what is left recovers to the last byte.

    python benchmarks/kill_recovery.py --kills 200 [--of audit|verbs] [--rollout transformers] [--seed 0] [--folder FOLDER]

One audit of the embedded model runs undisturbed. `--of audit`: others run with SIGKILL at seeded instants, to the whole process
group, to the parent or to one child, and are resumed until they end. `--of verbs`: measure, simulate, report and export of
copies of the finished run are killed and begun again. Half of the instants are uniform over the time that the command takes,
which is mostly loading; the other half follow within 50 ms on a seeded one of the files that the command writes. Compared
with the undisturbed run: every part byte by byte, the parts' checksums in the manifest, result.json but for when, where and
how it was made, the report (whole), exported configs, and that no temporary file is left. A line of JSON is printed for every
kill and every run, a summary at the end; the status is 1 if a run did not recover.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import shutil
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
    *("--num-prompts", "4", "--samples", "2", "--max-tokens", "16"),
    *("--set", "part_sequences=2", "--set", _LEGS),
)


_VERBS = {
    "measure": (),
    "simulate": (),
    "report": (),
    "export": ("--to", "verl", "--force", "--out", "{run}/verl.yaml"),
}


def audit(out: Path, rollout: str, *, resume: bool) -> list[str]:
    """The audit; resumed, it is told nothing but where."""
    begin = ["audit", "--out", str(out), "--no-report"]
    return [*begin, "--resume"] if resume else [*begin, "--rollout", rollout, *_ARGUMENTS]


def verb_of(verb: str, out: Path) -> list[str]:
    """A verb of a finished run."""
    return [verb, str(out), *(option.format(run=out) for option in _VERBS[verb])]


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Starts a verb as the leader of a process group; what it says goes to the log."""
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "mismatch_probe_cli", *arguments],
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


def files_of(out: Path) -> set[tuple[str, int]]:
    """What is there, by name and time of writing, temporary files included."""
    found = set()
    for folder, _, names in os.walk(out):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                path = Path(folder, name)
                found.add((str(path), path.stat().st_mtime_ns))
    return found


def wait_for_instant(
    process: subprocess.Popen[bytes], out: Path, length: float, num_files: int, generator: random.Random
) -> str | None:
    """Waits until the seeded instant of the next kill.

    Returns:
        How the instant was chosen; None if the process ended before it.
    """
    if generator.random() < 0.5:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=generator.uniform(0.2, 0.9 * length))
        return "time" if process.poll() is None else None
    wanted, delay, seen = generator.randint(1, max(1, num_files)), generator.uniform(0, 0.05), 0
    before = files_of(out)
    while process.poll() is None:
        now = files_of(out)
        seen += len(now - before)
        before = now
        if seen >= wanted:
            time.sleep(delay)
            return "file"
        time.sleep(0.01)
    return None


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


def snapshot(out: Path) -> dict[str, Any]:
    """What a run is compared by."""
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    report, exported = out / "report.html", out / "verl.yaml"
    return {
        "parts": parts(out),
        "checksums": manifest["parts"],
        "engines": without_times(manifest["engines"]),
        "result": result(out),
        "report_is_whole": not report.exists()
        or report.read_text(encoding="utf-8").rstrip().endswith("</html>"),
        "exported": exported.read_text(encoding="utf-8") if exported.exists() else None,
    }


def differences(out: Path, expected: dict[str, Any]) -> list[str]:
    """What of a run is not as in the undisturbed one."""
    try:
        found = snapshot(out)
    except (OSError, ValueError, KeyError) as error:
        return [repr(error)]
    left = [f"{file.name} was left" for file in out.rglob("*.partial")]
    return left + [name for name in expected if found[name] != expected[name]]


class Tally:
    """What came of the kills."""

    def __init__(self) -> None:
        self.killed, self.recovered = 0, 0
        self.failed: list[str] = []
        self.stages: dict[str, int] = {}

    def kill(
        self, process: subprocess.Popen[bytes], instant: str, stage: str, generator: random.Random
    ) -> None:
        """Kills and notes it."""
        target = kill(process, generator)
        self.killed += 1
        self.stages[stage] = self.stages.get(stage, 0) + 1
        print(json.dumps({"kill": self.killed, "target": target, "by": instant, "stage": stage}), flush=True)

    def judge(self, out: Path, status: int, expected: dict[str, Any]) -> None:
        """Holds a run that was taken to its end against the undisturbed one."""
        wrong = differences(out, expected) + ([] if status in (0, 1) else [f"status {status}"])
        self.recovered += not wrong
        print(json.dumps({"run": out.name, "status": status, "wrong": wrong}), flush=True)
        if wrong:
            self.failed.append(out.name)
        else:
            shutil.rmtree(out)


def kill_audits(arguments: argparse.Namespace, folder: Path, expected: dict[str, Any], length: float, num_files: int, tally: Tally) -> None:  # fmt: skip
    """Audits that are killed up to `--kills-per-run` times each and resumed."""
    generator, log = random.Random(arguments.seed), folder / "log.txt"
    for number in itertools.count():
        if tally.killed >= arguments.kills:
            return
        out = folder / f"run-{number}"
        for _ in range(min(arguments.kills_per_run, arguments.kills - tally.killed)):
            resume = (out / "manifest.json").is_file()
            process = start(audit(out, arguments.rollout, resume=resume), log)
            instant = wait_for_instant(process, out, length, num_files, generator)
            if instant is None:
                break
            tally.kill(process, instant, stage_of(out), generator)
        resume = (out / "manifest.json").is_file()
        tally.judge(out, start(audit(out, arguments.rollout, resume=resume), log).wait(), expected)


def kill_verbs(arguments: argparse.Namespace, folder: Path, whole: Path, tally: Tally) -> None:
    """Verbs on copies of the finished run, each killed and begun again."""
    generator, log = random.Random(arguments.seed), folder / "log.txt"
    known: dict[str, tuple[float, int, dict[str, Any], Path]] = {}
    before = whole
    for verb in _VERBS:
        out = folder / f"whole-{verb}"
        shutil.copytree(before, out)
        held, begun = files_of(out), time.monotonic()
        if start(verb_of(verb, out), log).wait() not in (0, 1):
            raise SystemExit(f"{verb} failed undisturbed: {log}")
        known[verb] = (time.monotonic() - begun, len(files_of(out) - held), snapshot(out), before)
        before = out
    for number in itertools.count():
        if tally.killed >= arguments.kills:
            return
        verb = list(_VERBS)[number % len(_VERBS)]
        length, num_files, expected, origin = known[verb]
        out = folder / f"{verb}-{number}"
        shutil.copytree(origin, out)
        for _ in range(2):
            process = start(verb_of(verb, out), log)
            instant = wait_for_instant(process, out, length, num_files, generator)
            if instant is None:
                break
            tally.kill(process, instant, verb, generator)
        tally.judge(out, start(verb_of(verb, out), log).wait(), expected)


def main() -> int:
    """Runs the kills."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--kills-per-run", type=int, default=8)
    parser.add_argument("--of", choices=("audit", "verbs"), default="audit")
    parser.add_argument("--rollout", default="transformers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        whole, log, tally = folder / "whole", folder / "log.txt", Tally()
        begun = time.monotonic()
        if start(audit(whole, arguments.rollout, resume=False), log).wait() not in (0, 1):
            print(log.read_text(encoding="utf-8"), file=sys.stderr)
            return 1
        length = time.monotonic() - begun
        if arguments.of == "audit":
            # A part is seen under its temporary name as well.
            kill_audits(arguments, folder, snapshot(whole), length, 2 * len(parts(whole)), tally)
        else:
            kill_verbs(arguments, folder, whole, tally)
        print(json.dumps({"kills": tally.killed, "runs": tally.recovered + len(tally.failed), "recovered": tally.recovered, "failed": tally.failed, "stages": tally.stages, "undisturbed_s": round(length, 1)}))  # fmt: skip
        return 1 if tally.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
