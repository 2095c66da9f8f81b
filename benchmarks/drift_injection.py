"""How often injecting a drift profile and measuring again lands in the intervals of the run it was measured on.

    python benchmarks/drift_injection.py --run runs/embedded --repeats 400
    python benchmarks/drift_injection.py --planted heavy-tail --repeats 200

`--run` measures one profile of a real run and injects it with as many seeds. `--planted` draws runs from a known law, five
injections each, so that the luck of one run does not decide. Printed is, for each quantity, how often the value measured
again lies in the profile's return interval and in the confidence interval of the run, how much wider the former is in the
median, and by how much the value differs in the median.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mismatch_probe.drift import DriftProfile, inside
from mismatch_probe.drift.from_run import profile_of_arrays
from mismatch_probe.drift.log_odds import log_odds, logprobs_of
from mismatch_probe.drift.profile import Provenance
from mismatch_probe.drift.reading import drift_values
from mismatch_probe.stats.estimate import Estimate
from mismatch_probe.stats.layout import BoolArray, FloatArray, SequenceLayout
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.trace import Trace

PER_RUN = 5


@dataclass(frozen=True)
class Law:
    """A planted law of displacements.

    Attributes:
        freedom: Degrees of freedom of Student's t; few are a heavy tail.
        serial: Correlation of neighbours' direction, fading by 0.6 a token.
        prompt_scale: Standard deviation of the logarithm of a prompt's scale.
        sequence_scale: Of a sequence's.
        flip_rate: Share of tokens with a flip, which are displaced six times as far.
    """

    freedom: float = 30.0
    serial: float = 0.0
    prompt_scale: float = 0.0
    sequence_scale: float = 0.0
    flip_rate: float = 0.0


LAWS = {
    "heavy-tail": Law(freedom=3.5),
    "autocorrelated": Law(serial=0.5),
    "prompt-effects": Law(prompt_scale=0.35, sequence_scale=0.2),
    "flips": Law(freedom=8.0, prompt_scale=0.2, flip_rate=0.06),
    "all": Law(freedom=5.0, serial=0.3, prompt_scale=0.3, sequence_scale=0.2, flip_rate=0.05),
}


@dataclass(frozen=True)
class Source:
    """One run: log pi, log mu, sequences and flips."""

    train: FloatArray
    rollout: FloatArray
    layout: SequenceLayout
    flipped: BoolArray | None


def plant(law: Law, seed: int, *, prompts: int = 96, samples: int = 4, scale: float = 0.08) -> Source:
    """Draws a run: near-certain and open tokens, lengths of 40 to 400 tokens."""
    generator = np.random.default_rng(seed)
    sequences = prompts * samples
    lengths = np.clip(generator.lognormal(4.8, 0.5, sequences), 40, 400).astype(np.int64)
    layout = SequenceLayout.from_arrays(
        np.concatenate([[0], np.cumsum(lengths)]), np.repeat(np.arange(prompts), samples)
    )
    n = layout.num_tokens
    odds = np.where(generator.random(n) < 0.6, generator.normal(7.0, 2.0, n), generator.normal(0.5, 1.5, n))
    direction = generator.standard_normal(n)
    if law.serial:
        chain = np.zeros(n)
        noise = generator.standard_normal(n)
        starts = set(layout.offsets[:-1].tolist())
        for token in range(n):
            chain[token] = noise[token] if token in starts else 0.6 * chain[token - 1] + 0.8 * noise[token]
        direction = np.sqrt(law.serial) * chain + np.sqrt(1.0 - law.serial) * direction
    size = np.sqrt(law.freedom / generator.chisquare(law.freedom, n)) * np.sqrt(
        (law.freedom - 2) / law.freedom
    )
    size *= np.exp(law.prompt_scale * generator.standard_normal(prompts))[layout.token_cluster]
    size *= np.exp(law.sequence_scale * generator.standard_normal(sequences))[layout.token_sequence]
    flipped = generator.random(n) < law.flip_rate if law.flip_rate else None
    if flipped is not None:
        size *= np.where(flipped, 6.0, 1.0)
    rollout = logprobs_of(odds)
    # A policy's ratio has mean 1: the displacement's mean gives it one to second order.
    probability = np.exp(rollout)
    displacement = scale * size * direction - (0.5 - probability) * (scale * size) ** 2
    displacement -= 0.5 * (scale * size) ** 2 * probability
    return Source(logprobs_of(log_odds(rollout) + displacement), rollout, layout, flipped)


def of_run(path: Path) -> tuple[DriftProfile, SequenceLayout, FloatArray]:
    """A real run's profile, and what to inject into."""
    run = RunDirectory.open_existing(path)
    rollout = Trace(run, int(run.read_manifest()["num_parts"])).rollout
    layout = SequenceLayout.from_arrays(rollout.offsets, rollout.prompt_index)
    return DriftProfile.from_run(run), layout, rollout.logprobs


def cases(arguments: argparse.Namespace) -> Iterator[tuple[DriftProfile, SequenceLayout, FloatArray, int]]:
    """Profile, sequences, log mu and seed of each repeat."""
    if arguments.run is not None:
        profile, layout, rollout = of_run(arguments.run)
        for seed in range(arguments.repeats):
            yield profile, layout, rollout, seed
        return
    provenance = Provenance(
        "planted", "", "", arguments.planted, "none", "none", 1.0, 1.0, -1, 96, None, None
    )
    for number in range(-(-arguments.repeats // PER_RUN)):
        source = plant(LAWS[arguments.planted], 7000 + number)
        profile = profile_of_arrays(
            source.train, source.rollout, source.layout, provenance=provenance, flipped=source.flipped
        )
        for seed in range(PER_RUN):
            yield profile, source.layout, source.rollout, seed


def main() -> None:
    """Prints one row a quantity."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--run", type=Path)
    kind.add_argument("--planted", choices=sorted(LAWS))
    parser.add_argument("--repeats", type=int, default=200)
    arguments = parser.parse_args()
    returned: dict[str, list[bool]] = defaultdict(list)
    held: dict[str, list[bool]] = defaultdict(list)
    wider: dict[str, list[float]] = defaultdict(list)
    shifts: dict[str, list[float]] = defaultdict(list)
    for done, (profile, layout, rollout, seed) in enumerate(cases(arguments)):
        injected = profile.inject(rollout, layout.offsets, prompt_ids=layout.clusters, seed=seed)
        again = drift_values(injected.log_ratio, layout, injected.flipped)
        for name, interval in profile.returns.items():
            value, measured = Estimate(again[name], None, None, 0), profile.measured.estimates()[name]
            returned[name].append(interval.holds(value))
            within = inside(measured, value)
            if within is not None:
                held[name].append(within)
            if None not in (measured.ci_low, measured.ci_high, interval.low, interval.high):
                wider[name].append((interval.high - interval.low) / (measured.ci_high - measured.ci_low))
            if value.value is not None and measured.value:
                shifts[name].append(value.value / measured.value - 1.0)
        print(f"\r{done + 1} of {arguments.repeats}", end="", file=sys.stderr)
    print(f"\n{arguments.run or arguments.planted}, {arguments.repeats} repeats", file=sys.stderr)
    print(
        "| quantity | returns | in the confidence interval | width, returns over confidence | median change |"
    )
    print("|---|---|---|---|---|")
    for name, hits in returned.items():
        confidence = f"{np.mean(held[name]):.1%}" if held[name] else "-"
        ratio = f"{np.median(wider[name]):.2f}" if wider[name] else "-"
        print(f"| `{name}` | {np.mean(hits):.1%} | {confidence} | {ratio} | {np.median(shifts[name]):+.1%} |")


if __name__ == "__main__":
    main()
