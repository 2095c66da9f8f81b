"""Runs the readers of tests/fuzz on changed inputs, many of them.

    PYTHONPATH=tests python benchmarks/fuzz_readers.py --executions 1_000_000 [--seed 0] [--targets config pickle ...]
    PYTHONPATH=tests python benchmarks/fuzz_readers.py --atheris result [-runs=100000 ...]

The first form changes the corpus at random, with no eye on coverage; executions are shared between targets, each for at most --seconds. The second
needs `pip install atheris` and follows coverage; what it is given after the target goes to libFuzzer. An input may take
2 GiB above what the libraries take, and 20 seconds. What comes out that is no error of this project is written to fuzz-findings/ and ends the
target. A line of JSON a target is printed; the status is 1 if anything was found.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from fuzz.mutate import mutate
from fuzz.targets import CORPUS, TARGETS, seeds

FINDINGS = Path("fuzz-findings")
MEMORY = 2 << 30
SECONDS = 20


def bounded(name: str) -> None:
    """No more memory than this above what the target's libraries take."""
    for data in seeds(name):
        TARGETS[name](data)
    mapped = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, resource.RLIM_INFINITY))


def watched() -> None:
    """No input without an end."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"an input took more than {SECONDS} s")

    signal.signal(signal.SIGALRM, late)


def keep(name: str, data: bytes) -> str:
    """Writes an input that broke a target."""
    FINDINGS.mkdir(exist_ok=True)
    path = FINDINGS / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return str(path)


def fuzz(name: str, executions: int, seconds: float, seed: int) -> dict[str, Any]:
    """Runs one target until it has been executed so often, or so long."""
    generator, corpus = random.Random(f"{name} {seed}"), seeds(name)
    bounded(name)
    run, started, done, slowest = TARGETS[name], time.monotonic(), 0, 0.0
    while done < executions and time.monotonic() - started < seconds:
        data = mutate(generator.choice(corpus), corpus, generator)
        begun = time.monotonic()
        signal.alarm(SECONDS)
        try:
            run(data)
        except BaseException:
            signal.alarm(0)
            return {
                "target": name,
                "executions": done,
                "found": keep(name, data),
                "error": traceback.format_exc()[-2000:],
            }
        signal.alarm(0)
        slowest = max(slowest, time.monotonic() - begun)
        done += 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {
        "target": name,
        "executions": done,
        "seconds": round(time.monotonic() - started),
        "slowest_s": round(slowest, 2),
        "peak_mib": peak,
    }


def guided(name: str, arguments: list[str]) -> None:
    """Atheris on one target; this does not return."""
    import atheris

    with atheris.instrument_imports(include=["mismatch_probe", "mismatch_probe_reports"]):
        TARGETS[name](seeds(name)[0])
    bounded(name)
    atheris.Setup([sys.argv[0], str(CORPUS / name), "-max_len=262144", *arguments], TARGETS[name])
    atheris.Fuzz()


def main() -> int:
    """Runs what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--executions", type=lambda text: int(text.replace("_", "")), default=100_000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of each target at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", nargs="+", choices=sorted(TARGETS), default=sorted(TARGETS))
    parser.add_argument("--atheris", choices=sorted(TARGETS))
    arguments, rest = parser.parse_known_args()
    if arguments.atheris:
        # libFuzzer has the alarm to itself: -timeout=20.
        guided(arguments.atheris, rest)
    watched()
    share = arguments.executions // len(arguments.targets)
    total, found = 0, False
    for name in arguments.targets:
        outcome = fuzz(name, share, arguments.seconds, arguments.seed)
        total += outcome["executions"]
        found |= "found" in outcome
        print(json.dumps(outcome), flush=True)
    print(json.dumps({"executions": total, "found": found}))
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
