"""Responses with known drift."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from mismatch_probe.simulate import Responses

Make = Callable[..., Responses]


@pytest.fixture
def make_responses() -> Make:
    """Builds responses from log-ratios, or from noise: N(-noise^2 / 2, noise^2) a token, four responses a prompt."""

    def make(
        log_ratio: Sequence[Sequence[float]] | None = None,
        *,
        advantages: Sequence[float] | None = None,
        noise: float = 0.1,
        sequences: int = 80,
        length: int = 30,
        per_prompt: int = 4,
        update: float = 0.0,
        seed: int = 0,
    ) -> Responses:
        generator = np.random.default_rng(seed)
        if log_ratio is None:
            rows = generator.normal(-(noise**2) / 2, noise, (sequences, length))
        rows = rows if log_ratio is None else [np.asarray(row, dtype=float) for row in log_ratio]
        flat = np.concatenate(list(rows))
        lengths = [len(row) for row in rows]
        rollout = np.minimum(-1.0, -1.0 - flat)
        old = None
        train = rollout + flat
        if update:
            old = train
            train = old + generator.normal(-(update**2) / 2, update, len(flat))
            train, old, rollout = train - 3, old - 3, rollout - 3
        return Responses.of(
            train,
            rollout,
            np.concatenate([[0], np.cumsum(lengths)]),
            np.arange(len(lengths)) // per_prompt,
            advantages if advantages is None else np.asarray(advantages, dtype=float),
            old_logprobs=old,
        )

    return make
