"""What each bar and each check comes to on a measured result: held, broken, or not to be had.

The verdict's findings are the broken ones, and `check` reports all of them, so the two cannot disagree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mismatch_probe.config.bars import Bars
from mismatch_probe.outcomes.corrections import routing_outcomes, weights_outcomes
from mismatch_probe.outcomes.data import (
    NOT_INVALIDATING,
    enough_outcomes,
    validity_outcomes,
    weight_sync_outcomes,
)
from mismatch_probe.outcomes.drift import K3Bar, k3_bar, tails_outcomes, token_drift_outcomes
from mismatch_probe.outcomes.outcome import Outcome, Status, missing, value_of

__all__ = ["NOT_INVALIDATING", "K3Bar", "Outcome", "Status", "k3_bar", "outcomes", "value_of"]


def outcomes(result: Mapping[str, Any], bars: Bars) -> tuple[Outcome, ...]:
    """Holds a result against every bar and check, in the order of their codes' groups.

    Args:
        result: The sections of result.json that the measurement fills.
        bars: The bars.
    """
    held = [*enough_outcomes(result, bars), *validity_outcomes(result), *weight_sync_outcomes(result)]
    if result["token"].get("available") is False:
        reason = str(result["token"].get("reason") or "the data are not to be trusted")
        return (
            *held,
            missing("token drift", "MP201", "error", reason, ("k3_over_noise", "k3_over_rounding")),
        )
    return (
        *held,
        *token_drift_outcomes(result, bars),
        *tails_outcomes(result, bars),
        *routing_outcomes(result, bars),
        *weights_outcomes(result, bars),
    )
