"""What measuring costs as a trace grows: 1e4 to 1e8 tokens, 1 to 48 layers of routing; time, memory and a picture.

    python benchmarks/growth.py [--largest 100_000_000] [--json FILE] [--png FILE]

Every size is a process of its own, and time is its processor time, which other work on the machine moves little. Three
curves:

    accumulator     `DriftAccumulator.update` and both summaries over parts made in memory (benchmarks/streaming.py)
    by-part         `mismatch-probe measure RUN --by-part` on run directories as audits write them, whole process, to 1e7 tokens
    routing         `RoutingAccumulator.update` over 262,144 tokens, top-8 of 128 experts (benchmarks/routing.py)

Memory is the peak resident set of the process, imports included. Straight means that a line of slope 1 between the two
largest sizes of a log-log plot fits: the printed slope is that of time less the time of the smallest size.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SIZES = (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
ON_DISK = 10_000_000
LAYERS = (1, 4, 12, 24, 48)
ROUTED, ROUTED_PART = 262_144, 8192


def accumulate(tokens: int) -> dict[str, float]:
    """The accumulator over a synthetic trace."""
    from streaming import parts

    from mismatch_probe.stats import DriftAccumulator

    accumulator, seconds = DriftAccumulator(largest_block=256), 0.0
    for part in parts(tokens, 500_000):
        begun = time.process_time()
        accumulator.update(part.train, part.rollout, part.offsets, part.clusters, part.ids)
        seconds += time.process_time() - begun
    begun = time.process_time()
    accumulator.tokens()
    accumulator.sequences()
    return {"seconds": seconds, "summaries_s": time.process_time() - begun}


def route(layers: int) -> dict[str, float]:
    """Routing over synthetic routes."""
    from routing import EXPERTS, TOP_K, make_part

    from mismatch_probe.routing.accumulate import RoutingAccumulator

    rng, seconds = np.random.default_rng(0), 0.0
    routing = RoutingAccumulator(num_layers=layers, num_experts=EXPERTS, top_k=TOP_K)
    for _ in range(ROUTED // ROUTED_PART):
        part = make_part(rng, ROUTED_PART, 0.1, 0.25, layers)
        begun = time.process_time()
        routing.update(part)
        seconds += time.process_time() - begun
    return {"seconds": seconds}


def child(kind: str, size: int) -> dict[str, float]:
    """One size in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--child", kind, str(size)], check=True, capture_output=True, text=True)  # fmt: skip
    return {"size": size, **json.loads(done.stdout)}


def by_part(tokens: int, folder: Path) -> dict[str, float]:
    """The verb on a run directory of that size; its own processor time and memory."""
    from synthetic_run import Planted, write_run

    length, samples = min(1000, tokens // 64), 4
    run = write_run(folder / str(tokens), Planted(length=length, prompts=tokens // length // samples))
    process = subprocess.Popen(
        [sys.executable, "-m", "mismatch_probe_cli", "measure", str(run.path), "--by-part"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 1, 3):
        raise SystemExit(f"measure --by-part of {tokens} tokens ended with {process.returncode}")
    return {"size": tokens, "seconds": used.ru_utime + used.ru_stime, "peak_mib": used.ru_maxrss / 1024}


def slope(rows: list[dict[str, float]]) -> float:
    """Of the two largest sizes in a log-log plot, without what the smallest costs."""
    first, before, last = rows[0], rows[-2], rows[-1]
    times = [row["seconds"] - first["seconds"] for row in (before, last)]
    return math.log(times[1] / times[0]) / math.log(last["size"] / before["size"])


def draw(found: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Time and memory against tokens and against layers."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9, 6), constrained_layout=True)
    marks = {"accumulator": "o", "by-part": "s", "routing": "o"}
    for column, (names, what) in enumerate(
        ((("accumulator", "by-part"), "tokens"), (("routing",), "MoE layers"))
    ):
        for row, (key, label) in enumerate(
            (("seconds", "processor time, s"), ("peak_mib", "peak memory, MiB"))
        ):
            panel = axes[row][column]
            for name in names:
                points = found[name]
                panel.plot(
                    [p["size"] for p in points], [p[key] for p in points], marker=marks[name], label=name
                )
            if column == 0:
                panel.set_xscale("log")
                if key == "seconds":
                    panel.set_yscale("log")
            if key == "peak_mib":
                panel.axhline(1024, color="0.4", linestyle="--", linewidth=1)
                panel.annotate(
                    "1 GiB", (1, 1024), xycoords=("axes fraction", "data"), ha="right", va="bottom"
                )
                panel.set_ylim(0, 1200)
            else:
                panel.set_ylim(bottom=None if column == 0 else 0)
            panel.set_xlabel(what)
            panel.set_ylabel(label)
            panel.grid(visible=True, alpha=0.3)
            if len(names) > 1:
                panel.legend(frameon=False)
    axes[0][0].set_title("measuring drift")
    axes[0][1].set_title(f"comparing routes of {ROUTED:,} tokens")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Runs all sizes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--largest", type=lambda text: int(text.replace("_", "")), default=SIZES[-1])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--png", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        kind, size = arguments.child[0], int(arguments.child[1])
        used: dict[str, Any] = (accumulate if kind == "accumulator" else route)(size)
        print(json.dumps({**used, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
        return
    found: dict[str, list[dict[str, float]]] = {"accumulator": [], "by-part": [], "routing": []}
    sizes = [size for size in SIZES if size <= arguments.largest]
    with tempfile.TemporaryDirectory() as folder:
        for name, points, work in (
            ("accumulator", sizes, lambda size: child("accumulator", size)),
            (
                "by-part",
                [size for size in sizes if size <= ON_DISK],
                lambda size: by_part(size, Path(folder)),
            ),
            ("routing", LAYERS, lambda layers: child("routing", layers)),
        ):
            for size in points:
                found[name].append(work(size))
                print(name, json.dumps(found[name][-1]), flush=True)
    summary = {
        **found,
        "slope_of_time": {name: round(slope(rows), 3) for name, rows in found.items() if len(rows) > 2},
        "peak_mib": {name: round(max(row["peak_mib"] for row in rows)) for name, rows in found.items()},
    }
    print(json.dumps({key: summary[key] for key in ("slope_of_time", "peak_mib")}))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    if arguments.png is not None:
        draw(found, arguments.png)


if __name__ == "__main__":
    main()
