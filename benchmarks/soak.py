"""Audits in a loop, in one process, and what is left of them: memory, file handles, threads, processes, temporary files.

    python benchmarks/soak.py [--minutes 60] [--vllm-every 10] [--json FILE]

Each round runs `audit --force` of the embedded model into the same directory through the command line's own entry point, with
its report, then `measure`, `simulate` and `export`; every tenth round with vLLM, the others with transformers on both sides.
After each the process is looked at. The status is 1 if handles, threads, processes or temporary files grew after the
warm-up (the first fifth of the rounds), or resident memory by more than 2 MB a round by Theil and Sen's slope over the rounds
after it.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

GROWTH_BYTES = 2e6
_LEGS = 'legs=["rollout/decode", "rollout/prefill", "train/forward", "train/repeat"]'


def call(*arguments: str) -> int:
    """The command line in this process; what it prints is dropped."""
    from mismatch_probe_cli.app import main as entry

    before = sys.argv
    sys.argv = ["mismatch-probe", *arguments]
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                entry()
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else 0
            else:
                status = 0
    finally:
        sys.argv = before
    if status not in (0, 1):
        raise SystemExit(f"{' '.join(arguments)} ended with {status}:\n{said.getvalue()[-2000:]}")
    return status


def descendants(root: int) -> int:
    """How many processes descend from one."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
    found, new = {root}, {root}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return len(found) - 1


def look(temporary: Path, out: Path) -> dict[str, int]:
    """This process and its folders as they are now."""
    gc.collect()
    own = Path("/proc/self")
    status = dict(line.split(":", 1) for line in (own / "status").read_text().splitlines())
    return {
        "rss": int(status["VmRSS"].split()[0]) * 1024,
        "handles": len(list((own / "fd").iterdir())),
        "threads": int(status["Threads"]),
        "processes": descendants(os.getpid()),
        "temporary": sum(1 for _ in temporary.rglob("*")) + sum(1 for _ in out.rglob("*.partial")),
        # Segments and semaphores are files; folders there are somebody's temporary ones.
        "shared_memory": sum(entry.is_file() for entry in Path("/dev/shm").iterdir()),
    }


def slope(values: list[int]) -> float:
    """Theil and Sen's slope, a round."""
    from scipy.stats import theilslopes

    return float(theilslopes(np.asarray(values, dtype=np.float64)).slope)


def main() -> int:
    """Runs the loop."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--vllm-every", type=int, default=10)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        temporary, out = Path(folder) / "tmp", Path(folder) / "run"
        temporary.mkdir()
        # Ours and that of every process started from here.
        os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
        end = time.monotonic() + 60 * arguments.minutes
        while time.monotonic() < end:
            rollout = "vllm" if len(rounds) % arguments.vllm_every == 1 else "transformers"
            begun = time.monotonic()
            call(
                *("audit", "--out", str(out), "--force", "--rollout", rollout, "--num-prompts", "4"),
                *("--samples", "2", "--max-tokens", "24", "--set", "part_sequences=2", "--set", _LEGS),
            )
            for verb in (
                ("measure",),
                ("simulate",),
                ("export", "--to", "verl", "--out", f"{out}/verl.yaml", "--force"),
            ):
                call(verb[0], str(out), *verb[1:])
            rounds.append(
                {"rollout": rollout, "seconds": round(time.monotonic() - begun, 1), **look(temporary, out)}
            )
            print(json.dumps(rounds[-1]), flush=True)
    later = rounds[max(1, len(rounds) // 5) :]
    grown = [
        name
        for name in ("handles", "threads", "processes", "temporary", "shared_memory")
        if max(row[name] for row in later) > max(row[name] for row in rounds[: len(rounds) - len(later)])
    ]
    growth = slope([row["rss"] for row in later]) if len(later) > 2 else float("nan")
    if not growth <= GROWTH_BYTES:
        grown.append("memory")
    summary = {
        "rounds": len(rounds),
        "with_vllm": sum(row["rollout"] == "vllm" for row in rounds),
        "minutes": arguments.minutes,
        "first": rounds[0],
        "last": rounds[-1],
        "rss_bytes_a_round": growth,
        "grown": grown,
    }
    print(json.dumps(summary, indent=1))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({**summary, "each": rounds}, indent=1) + "\n", encoding="utf-8")
    return 1 if grown else 0


if __name__ == "__main__":
    raise SystemExit(main())
