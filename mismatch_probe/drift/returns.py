"""Where each number comes back to when a profile is injected into its own run's tokens.

A confidence interval says where the truth may lie, as far as one run tells; its width is itself estimated, and a law's own
quantiles are not quite those of its run. So how often a second measurement lies in it is not 95 % by itself. What is
promised of an injection is therefore found by injecting: the middle 95 % of up to 200 draws, joined with the
confidence interval.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mismatch_probe.drift.injection import DriftLaw, inject_tokens
from mismatch_probe.drift.reading import DriftReading, drift_values
from mismatch_probe.errors import ConfigError
from mismatch_probe.stats.estimate import Estimate
from mismatch_probe.stats.layout import FloatArray, SequenceLayout

REPEATS = (40, 200)
TOKENS_DRAWN = 6_000_000
"""At most 200 draws, fewer where that would draw more tokens, at least 40."""
# Seeds that nobody is likely to inject with.
_FIRST_SEED = 1_000_000


@dataclass(frozen=True, slots=True)
class ReturnInterval:
    """Where a number comes back to in 95 % of injections; None where that end is open.

    Attributes:
        low: Lower end.
        high: Upper end.
    """

    low: float | None
    high: float | None

    def __post_init__(self) -> None:
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ConfigError("a drift profile's return interval must not end below its beginning")

    def holds(self, again: Estimate) -> bool:
        """Whether a second measurement lies in it; False where that has no value."""
        if again.value is None:
            return False
        return (self.low is None or self.low <= again.value) and (
            self.high is None or again.value <= self.high
        )


def return_intervals(
    measured: DriftReading, law: DriftLaw, rollout: FloatArray, layout: SequenceLayout
) -> dict[str, ReturnInterval]:
    """The intervals, by the names of `DriftReading.estimates`; numbers that were not measured have none.

    Args:
        measured: The run's.
        law: What is drawn from.
        rollout: float64 [tokens] log mu, nats.
        layout: Sequences and prompts.
    """
    repeats = int(np.clip(TOKENS_DRAWN // layout.num_tokens, *REPEATS))
    drawn: dict[str, list[float]] = {}
    for seed in range(_FIRST_SEED, _FIRST_SEED + repeats):
        injected = inject_tokens(law, rollout, layout, seed=seed)
        for name, value in drift_values(injected.log_ratio, layout, injected.flipped).items():
            if value is not None:
                drawn.setdefault(name, []).append(value)
    made = {}
    for name, estimate in measured.estimates().items():
        values = drawn.get(name, [])
        if estimate.value is None or len(values) < REPEATS[0] // 2:
            continue
        # On average a further draw lies within (N + 1) quantiles of N draws with just this probability.
        low, high = (float(v) for v in np.quantile(values, [0.025, 0.975], method="weibull"))
        no_end = estimate.ci_low is None and estimate.ci_high is None
        made[name] = ReturnInterval(
            low if no_end else _lower(low, estimate.ci_low),
            high if no_end else _upper(high, estimate.ci_high),
        )
    return made


def _lower(drawn: float, end: float | None) -> float | None:
    return None if end is None else min(drawn, end)


def _upper(drawn: float, end: float | None) -> float | None:
    return None if end is None else max(drawn, end)
