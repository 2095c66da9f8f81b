"""Runs that are odd: a recommendation says nothing wrong of them, and does not break."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from mismatch_probe.recommendation import recommend
from mismatch_probe.recommendation.engine_fixes import head_switch, replay_switch
from mismatch_probe.result import to_json
from mismatch_probe.simulate.responses import Responses
from mismatch_probe.simulate.tuning import tune_method

SEQUENCES, LENGTH = 64, 40


def noise(size: float = 0.02, length: int = LENGTH) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.random.default_rng(0).normal(-(size**2) / 2, size, SEQUENCES * length)


def responses(
    log_ratio: np.ndarray[Any, np.dtype[np.float64]],
    *,
    advantages: np.ndarray[Any, np.dtype[np.float64]] | None = None,
    mask: np.ndarray[Any, np.dtype[np.bool_]] | None = None,
    prompts: int = 16,
) -> Responses:
    rollout = np.minimum(-0.5, -0.5 - log_ratio)
    offsets = np.arange(SEQUENCES + 1) * (len(log_ratio) // SEQUENCES)
    signs = np.tile([1.0, -1.0], SEQUENCES // 2) if advantages is None else advantages
    clusters = np.arange(SEQUENCES) * prompts // SEQUENCES
    return Responses.of(rollout + log_ratio, rollout, offsets, clusters, signs, mask=mask)


def recommended(given: Responses, result: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    section: dict[str, Any] = to_json(recommend(result or {}, given, resamples=100, **options))
    json.dumps(section, allow_nan=False)
    return section


def test_responses_that_agree_in_every_bit_are_not_all_far() -> None:
    log_ratio = np.zeros(SEQUENCES * LENGTH)
    log_ratio[0] = 0.3
    influence = recommended(responses(log_ratio))["candidates"]["none"]["influence"]["value"]
    assert influence == pytest.approx(7 / 64)
    assert recommended(responses(noise()))["candidates"]["none"]["influence"]["value"] == influence


def test_advantages_that_are_all_zero_are_none() -> None:
    got = recommended(responses(noise(), advantages=np.zeros(SEQUENCES)))
    assert {choice["chosen"] for choice in got["goals"].values()} == {"vespo", "token_tis"}
    assert any("no advantages other than 0" in line for line in got["assumptions"])


def test_a_sign_that_was_not_seen_is_said() -> None:
    got = recommended(responses(noise(), advantages=np.ones(SEQUENCES)))
    assert any("no response with a negative advantage" in line for line in got["assumptions"])
    assert not any(
        "with a" in line and "advantage" in line for line in recommended(responses(noise()))["assumptions"]
    )


def test_prompts_without_a_token_that_counts_do_not_count() -> None:
    mask = np.arange(SEQUENCES * LENGTH) >= 12 * 4 * LENGTH
    got = recommended(responses(noise(), mask=mask))
    assert {row["num_prompts"] for row in got["monitor"]} == {4}
    assert all(row["reason"].startswith("4 prompts") for row in got["monitor"])
    bare = responses(noise()).subset(np.arange(12, 16))
    alone = recommended(bare)
    assert got["candidates"] == alone["candidates"] and got["goals"] == alone["goals"]


def test_a_refit_resamples_the_prompts_that_have_tokens() -> None:
    mask = np.arange(SEQUENCES * LENGTH) >= 12 * 4 * LENGTH
    fitted = tune_method("geo_rs", responses(noise(), mask=mask), kept=0.3, resamples=100)
    for estimate in fitted.thresholds.values():
        assert estimate.ci_low is None and str(estimate.reason).startswith("4 prompts")


@pytest.mark.parametrize("far", [-1e4, 1e4, 60.0])
def test_single_tokens_that_are_far_out_break_nothing(far: float) -> None:
    log_ratio = noise()
    log_ratio[:: 4 * LENGTH] = far
    log_ratio[1 :: 4 * LENGTH] = far
    got = recommended(responses(log_ratio))
    assert got["method"] is not None
    log_ratio = noise()
    log_ratio[0] = far
    alarms = {row["name"]: row for row in recommended(responses(log_ratio))["monitor"]}
    assert alarms["k3"]["alarm"] is None and alarms["k3"]["reason"]
    assert math.isfinite(alarms["k1"]["alarm"])


def test_with_few_prompts_what_keeps_two_thirds_of_the_signal_is_not_level_with_what_keeps_it_all() -> None:
    given = responses(noise(0.07, 100)).subset(np.arange(12, 16))
    got = recommended(given)
    choice = got["goals"]["signal"]
    assert not got["candidates"]["vespo"]["against"] and choice["difference"]["ci_low"] is None
    assert choice["chosen"] == "token_tis" and "vespo" not in choice["level"]


def test_precision_that_was_measured_to_be_no_help_is_not_recommended() -> None:
    def result(change: float, p_holm: float) -> dict[str, Any]:
        difference = {"value": change, "ci_low": change - 1e-4, "ci_high": change + 1e-4, "n": 9}
        row = {
            "leg": "train/reference",
            "baseline": "train/forward",
            "k3_difference": difference,
            "p_holm": p_holm,
        }
        step = {"from": "train/forward", "to": "train/reference", "k3": {"value": 4.6e-4, "n": 9}}
        return {"token": {"k3": {"value": 1.9e-4, "n": 9}}, "legs": {"steps": [step], "comparisons": [row]}}

    assert [action.code for action in head_switch(result(-1.5e-4, 0.001)).actions] == ["MP201"]
    assert head_switch(result(1.4e-4, 0.38)).actions == ()
    assert head_switch(result(-1e-5, 0.38)).actions == ()


def test_what_comes_before_an_engine_fix_says_so() -> None:
    finding = {"code": "MP601", "detail": "it moves"}
    said = [recommended(responses(noise()), {"findings": found})["assumptions"] for found in ([finding], [])]
    assert [any("measure again" in line for line in lines) for lines in said] == [True, False]


def test_replay_whose_share_may_be_chance_stays_off() -> None:
    def switch(low: float | None) -> Any:
        explained = {"value": 0.6, "ci_low": low, "ci_high": 0.9, "n": 99}
        return replay_switch({"routing": {"replay": {"explained": explained}}})

    assert [switch(low).on for low in (0.2, None, -0.3)] == [True, True, False]
    assert "chance" in switch(-0.3).actions[0].because


def test_a_drift_that_needs_no_correction_says_that_none_is_level() -> None:
    because = [
        recommended(responses(noise(size, 100)))["goals"]["stability"]["because"] for size in (0.001, 0.06)
    ]
    assert ["level with it)" in text for text in because] == [True, False]


def test_thresholds_are_spoken_of_where_there_are_any() -> None:
    own, fitted = (
        recommended(responses(noise()), goal=goal)["assumptions"] for goal in ("stability", "signal")
    )
    assert not any("thresholds" in line for line in own)
    assert any("share of tokens left alone: 99.9 %" in line for line in fitted)
    few = responses(noise()).subset(np.arange(12))  # 1920 tokens
    assert any("left alone: 99 %" in line for line in recommended(few, goal="signal")["assumptions"])


def test_what_is_far_behind_is_not_level_however_wide_the_interval() -> None:
    lengths = np.r_[LENGTH * SEQUENCES - (SEQUENCES - 1), np.ones(SEQUENCES - 1)].astype(np.int64)
    rollout = np.full(lengths.sum(), -0.5)
    given = Responses.of(
        rollout + noise(),
        rollout,
        np.r_[0, np.cumsum(lengths)],
        np.arange(SEQUENCES) // 4,
        np.tile([1.0, -1.0], SEQUENCES // 2),
    )
    got = recommended(given)
    signal = {key: got["candidates"][key]["signal"]["value"] for key in ("vespo", "token_tis")}
    assert signal["vespo"] < 0.5 and signal["token_tis"] > 0.99
    assert got["goals"]["signal"]["chosen"] == "token_tis"
