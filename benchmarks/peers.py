"""The statistics side by side with public ones, on the same tokens in one process; sides alternate within a pair.

    python benchmarks/peers.py [--pairs 7] [--sequences 512] [--longest 4096]

Ragged responses, padded [sequences, longest] float32 for verl, as its trainer holds them. Compared:

- verl's compute_offpolicy_metrics (what rollout_corr_helper logs), with `mismatch_probe.live.drift_metrics` on the same padded
  tensors, with `DriftAccumulator.update` on the flat tokens (K1 to K3, chi-squared, sketches of quantiles, worst tokens,
  buckets, by prompt), and with three exponentials and six sums in numpy;
- arviz-stats' Pareto-smoothed importance sampling with `pareto_k`, on the log-weights of 100,000 sequences;
- `mismatch-probe --help` with a typer program of one command.

Printed: median times, tokens a second, and the median of paired ratios.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

_HELLO = (
    "import typer\napp = typer.Typer()\n@app.command()\ndef hello(name: str) -> None:\n    print(name)\napp()"
)


def timed(function: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def paired(pairs: int, first: Callable[[], Any], second: Callable[[], Any]) -> tuple[float, float, float]:
    """Median seconds of both, and the median of second over first."""
    first(), second()
    rows = []
    for at in range(pairs):
        if at % 2:
            later = timed(second)
            rows.append((timed(first), later))
        else:
            rows.append((timed(first), timed(second)))
    table = np.array(rows)
    return (
        float(np.median(table[:, 0])),
        float(np.median(table[:, 1])),
        float(np.median(table[:, 1] / table[:, 0])),
    )


def metrics(pairs: int, sequences: int, longest: int) -> None:
    """Rows of drift metrics."""
    import torch
    from verl.trainer.ppo.rollout_corr_helper import compute_offpolicy_metrics

    from mismatch_probe.live import drift_metrics
    from mismatch_probe.stats import DriftAccumulator

    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(np.log(longest / 5), 0.8, sequences), 16, longest).astype(np.int64)
    mask = np.arange(longest) < lengths[:, None]
    rollout = np.where(mask, -0.4 * generator.standard_exponential(mask.shape), 0.0)
    train = np.where(mask, rollout + 0.03 * generator.standard_normal(mask.shape), 0.0)
    torch_train, torch_rollout = (torch.from_numpy(side.astype(np.float32)) for side in (train, rollout))
    torch_mask = torch.from_numpy(mask.astype(np.float32))
    flat_train, flat_rollout = train[mask], rollout[mask]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    prompts, ids, tokens = np.arange(sequences) // 8, np.arange(sequences), int(mask.sum())

    def verl() -> Any:
        return compute_offpolicy_metrics(torch_train, torch_rollout, torch_mask)

    def live() -> Any:
        return drift_metrics(torch_train, torch_rollout, mask)

    def accumulate() -> Any:
        accumulator = DriftAccumulator(largest_block=256)
        accumulator.update(flat_train, flat_rollout, offsets, prompts, ids)

    def plain() -> Any:
        log_ratio = flat_train - flat_rollout
        ratio = np.exp(log_ratio)
        sums = log_ratio.sum(), (log_ratio * log_ratio).sum(), ratio.sum(), (ratio * ratio).sum()
        return *sums, np.exp(flat_train).sum(), np.exp(flat_rollout).sum()

    print(
        f"{tokens:,} tokens in {sequences} responses of up to {longest}; {tokens / mask.size:.0%} of the padded tensor"
    )
    print("| | million tokens a second | verl's | ratio of times, verl over this |")
    print("|---|---:|---:|---:|")
    rows = {"live.drift_metrics": live, "DriftAccumulator.update": accumulate, "plain numpy pass": plain}
    for name, function in rows.items():
        own, theirs, ratio = paired(pairs, function, verl)
        print(
            f"| {name} | {tokens / own / 1e6:.1f} | {tokens / theirs / 1e6:.1f} | {ratio:.2f} |", flush=True
        )


def pareto(pairs: int) -> None:
    """The row of PSIS."""
    from arviz_stats.base import array_stats

    from mismatch_probe.stats import pareto_k

    log_weight = np.random.default_rng(1).standard_t(6, 100_000)
    own, theirs, ratio = paired(pairs, lambda: pareto_k(log_weight), lambda: array_stats.psislw(-log_weight))
    print(
        f"| pareto_k, 100,000 log-weights | {own * 1e3:.1f} ms | arviz-stats psislw {theirs * 1e3:.1f} ms | {ratio:.2f} |"
    )


def help_page(pairs: int) -> None:
    """The row of --help."""

    def run(*words: str) -> Callable[[], Any]:
        return lambda: subprocess.run([sys.executable, *words, "--help"], check=True, capture_output=True)

    hello, own, ratio = paired(pairs, run("-c", _HELLO), run("-m", "mismatch_probe_cli"))
    print(
        f"| mismatch-probe --help | {own * 1e3:.0f} ms | typer program {hello * 1e3:.0f} ms | {ratio:.2f} |"
    )


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--sequences", type=int, default=512)
    parser.add_argument("--longest", type=int, default=4096)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    metrics(arguments.pairs, arguments.sequences, arguments.longest)
    print()
    print("| | this | the other | the other's time over this one's; for --help the reverse |")
    print("|---|---:|---:|---:|")
    pareto(arguments.pairs)
    help_page(arguments.pairs)


if __name__ == "__main__":
    main()
