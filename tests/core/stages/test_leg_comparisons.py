from types import SimpleNamespace

import numpy as np
import pytest

from mismatch_probe.stages.leg_comparisons import leg_comparisons


class _Trace:
    """Legs in memory instead of on disk."""

    def __init__(self, prompts=24, seed=0):
        rng = np.random.default_rng(seed)
        offsets = np.arange(0, prompts * 2 * 40 + 1, 40)
        rollout = -rng.exponential(1.0, offsets[-1]) - 0.1
        routing, rounding = 0.08 * rng.normal(size=rollout.size), 0.02 * rng.normal(size=rollout.size)
        self._legs = {
            "train/forward": rollout + routing + rounding,
            "train/replay": rollout + rounding,
            "train/repeat": rollout + routing + rounding[::-1],
        }
        self.rollout = SimpleNamespace(
            logprobs=rollout, offsets=offsets, prompt_index=np.repeat(np.arange(prompts), 2)
        )

    def logprobs(self, leg):
        return self._legs[leg]


def test_a_leg_that_removes_drift_is_told_from_one_that_does_not():
    rows = {
        row["leg"]: row
        for row in leg_comparisons(_Trace(), ["train/forward", "train/repeat", "train/replay"])
    }
    replay, repeat = rows["train/replay"], rows["train/repeat"]
    assert replay["k3_difference"]["value"] == pytest.approx(-(0.08**2) / 2, rel=0.15)
    assert replay["k3_difference"]["ci_high"] < 0
    assert replay["p_holm"] == pytest.approx(2 * replay["p_value"])
    assert replay["p_holm"] < 0.01
    assert repeat["p_holm"] > 0.05
    assert repeat["k3_difference"]["ci_low"] < 0 < repeat["k3_difference"]["ci_high"]


def test_a_difference_that_overflows_has_a_reason_and_no_p():
    trace = _Trace()
    trace._legs["train/replay"] = trace._legs["train/replay"] + 2000.0
    (row,) = leg_comparisons(trace, ["train/forward", "train/replay"])
    assert row["k3_difference"]["value"] is None
    assert row["p_value"] is None
    assert "p_holm" not in row


def test_nothing_to_compare_without_the_forward():
    assert leg_comparisons(_Trace(), ["train/replay"]) == []
