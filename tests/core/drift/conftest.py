"""A planted run: heavy tails, sequences of unlike scale, flips that move tokens farther."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from mismatch_probe.drift import DriftProfile
from mismatch_probe.drift.from_run import profile_of_arrays
from mismatch_probe.drift.log_odds import log_odds, logprobs_of
from mismatch_probe.drift.profile import Provenance
from mismatch_probe.stats.layout import BoolArray, FloatArray, SequenceLayout

PROVENANCE = Provenance("run", "2026-01-01", "0", "tiny", "engine 1", "scorer 1", 1.0, 1.0, -1, 48, "a", "b")


@dataclass(frozen=True)
class Planted:
    """One run and its profile."""

    train: FloatArray
    rollout: FloatArray
    layout: SequenceLayout
    flipped: BoolArray
    profile: DriftProfile


def draw(seed: int, *, prompts: int = 48) -> tuple[FloatArray, FloatArray, SequenceLayout, BoolArray]:
    """Log pi, log mu, sequences and flips of 4 responses a prompt."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(30, 90, 4 * prompts)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    layout = SequenceLayout.from_arrays(offsets, np.repeat(np.arange(prompts), 4))
    n = layout.num_tokens
    odds = np.where(generator.random(n) < 0.5, generator.normal(6.0, 1.5, n), generator.normal(0.5, 1.2, n))
    scale = 0.1 * np.exp(0.3 * generator.standard_normal(layout.num_sequences))[layout.token_sequence]
    flipped = generator.random(n) < 0.06
    scale *= np.where(flipped, 4.0, 1.0)
    rollout = logprobs_of(odds)
    noise = scale * generator.standard_t(6, n) / np.sqrt(1.5)
    displacement = noise - (0.5 - np.exp(rollout)) * scale**2 - 0.5 * np.exp(rollout) * scale**2
    return logprobs_of(log_odds(rollout) + displacement), rollout, layout, flipped


@pytest.fixture(scope="session")
def planted() -> Planted:
    """One run, measured once."""
    train, rollout, layout, flipped = draw(3)
    return Planted(
        train,
        rollout,
        layout,
        flipped,
        profile_of_arrays(train, rollout, layout, provenance=PROVENANCE, flipped=flipped),
    )
