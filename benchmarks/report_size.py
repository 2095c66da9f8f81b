"""Seconds and bytes of `report` for runs of growing length.

    python -m benchmarks.report_size [--repeats 5]

Writes synthetic runs of 1e4, 1e5 and 1e6 tokens, measures them, and draws each report in a process of its own: seconds of the
whole command, seconds beyond imports (what is left after a process that imports the same modules), bytes of the page, peak
memory. Medians; prints the table of docs/report.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.synthetic_run import Planted, write_run
from mismatch_probe.stages.measure import measure_run

LENGTHS = {10_240: 80, 102_400: 400, 1_048_576: 2048}
_IMPORTS = (
    "import matplotlib.figure, matplotlib.backends.backend_agg, matplotlib.backends.backend_svg, PIL.PngImagePlugin, jinja2,"
    "rich.console, rich.table, pyarrow.parquet, pandas;"
    "import mismatch_probe_cli.app, mismatch_probe_reports, mismatch_probe.export, mismatch_probe.stages.token_explorer"
)
_REPORT = (
    "import json, re, sys, time; import contextlib, io, pathlib;"
    f"{_IMPORTS};"
    "begin = time.perf_counter(); sys.argv = ['mismatch-probe', 'report', sys.argv[1]];"
    "from mismatch_probe_cli.app import app\n"
    "with contextlib.redirect_stdout(io.StringIO()): app(sys.argv[1:], standalone_mode=False)\n"
    "print(json.dumps([time.perf_counter() - begin, int(re.search('VmHWM:\\\\s+(\\\\d+)', "
    "pathlib.Path('/proc/self/status').read_text())[1]) / 1024]))"
)


def report_once(run: Path) -> tuple[float, float, float]:
    """Seconds of the process, seconds beyond imports, peak MiB."""
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _REPORT, str(run)], capture_output=True, text=True, check=True
    )
    beyond, memory = json.loads(done.stdout.splitlines()[-1])
    return time.perf_counter() - begin, beyond, memory


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--run", type=Path, nargs="*", default=[], help="more runs, with their reports")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for tokens, length in LENGTHS.items():
            run = write_run(Path(folder) / str(tokens), Planted(2e-4, length, prompts=tokens // (4 * length)))
            measure_run(run)
            runs.append((f"synthetic, {tokens:,} tokens", run.path))
        runs += [(path.name, path) for path in options.run]
        print(
            "| run | seconds beyond imports | whole command | page, kB | peak, MiB |\n|---|---:|---:|---:|---:|"
        )
        for name, path in runs:
            rows = [report_once(path) for _ in range(options.repeats)]
            whole, beyond, memory = (statistics.median(column) for column in zip(*rows, strict=True))
            size = (path / "report.html").stat().st_size / 1000
            print(f"| {name} | {beyond:.1f} | {whole:.1f} | {size:.0f} | {memory:.0f} |", flush=True)


if __name__ == "__main__":
    main()
