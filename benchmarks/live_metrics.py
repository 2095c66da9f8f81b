"""What watching a training step costs on the host, held against verl's own mismatch metrics of the same tensors.

    python benchmarks/live_metrics.py [--sequences 512] [--tokens 2048] [--pairs 11]

Needs requirements/parity.txt. Both read float32 tensors [sequences, tokens] with a ragged mask, on the CPU, one after the
other in an order that changes from pair to pair; the ratio is the median over pairs of ours / verl's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from mismatch_probe.live import drift_metrics


def made(sequences: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(rollout, train, mask) of one batch."""
    generator = torch.Generator().manual_seed(0)
    rollout = -torch.rand(sequences, tokens, generator=generator)
    train = rollout + 0.02 * torch.randn(sequences, tokens, generator=generator)
    lengths = torch.randint(tokens // 4, tokens + 1, (sequences, 1), generator=generator)
    return rollout, train, (torch.arange(tokens) < lengths).float()


def seconds(run: Callable[[], Any]) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def main() -> None:
    """Times pairs and prints medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sequences", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--pairs", type=int, default=11)
    asked = parser.parse_args()
    from verl.trainer.ppo.rollout_corr_helper import compute_offpolicy_metrics

    torch.set_num_threads(1)
    rollout, train, mask = made(asked.sequences, asked.tokens)
    runs = {
        "ours": lambda: drift_metrics(rollout, train, mask),
        "verl": lambda: compute_offpolicy_metrics(train, rollout, mask),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for pair in range(asked.pairs + 1):
        for name in sorted(runs, reverse=bool(pair % 2)):
            spent = seconds(runs[name])
            if pair:  # the first pair warms up
                times[name].append(spent)
    ratio = statistics.median(a / b for a, b in zip(times["ours"], times["verl"], strict=True))
    count = int(mask.sum())
    for name, values in times.items():
        print(
            f"{name}: {statistics.median(values) * 1e3:.0f} ms, {statistics.median(values) / count * 1e9:.0f} ns a token"
        )
    print(f"ours / verl = {ratio:.2f} (median of {asked.pairs} pairs, {count:,} of {mask.numel():,} tokens)")


if __name__ == "__main__":
    main()
