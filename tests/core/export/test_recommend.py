"""What is recommended follows from what was measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from mismatch_probe.export import recommend
from mismatch_probe.weights import get_method

Make = Callable[..., dict[str, Any]]


def test_a_mild_drift_takes_vespo_and_names_the_number(make_result: Make) -> None:
    result = make_result()
    got = recommend(result)
    assert got["method"] == "vespo" and got["weight_reads"] == "pi/mu"
    assert got["parameters"] == {"k_pos": 2.0, "lambda_pos": 3.0, "k_neg": 3.0, "lambda_neg": 2.0}
    action = next(a for a in got["actions"] if "VESPO, W" in a["action"])
    assert action["measured"]["name"] == "weights.vespo.positive_mass"
    assert action["measured"]["value"] == result["weights"]["vespo"]["positive_mass"]["value"]


def test_a_drift_that_silences_vespo_takes_token_weights(make_result: Make) -> None:
    got = recommend(make_result(noise=0.15, length=300))
    assert got["method"] == "token_tis"
    assert got["parameters"]["cap"] > 1.3
    assert any(a["code"] == "MP303" for a in got["actions"])  # 300 tokens are beyond the horizon


def test_heavy_tails_take_icepop_with_a_band_around_what_was_measured(make_result: Make) -> None:
    result = make_result(noise=0.3, length=100)
    got = recommend(result)
    assert got["method"] == "icepop"
    quantiles = result["token"]["quantiles"]["log_ratio"]
    import math

    assert (
        got["parameters"]["low"]
        <= math.exp(quantiles[1])
        < math.exp(quantiles[-2])
        <= got["parameters"]["high"]
    )


@pytest.mark.parametrize(("explained", "on"), [(0.9, True), (0.2, False), (-0.5, False), (None, False)])
def test_replay_follows_the_share_it_explains(make_result: Make, explained: float | None, on: bool) -> None:
    got = recommend(make_result(explained=explained))
    assert got["routing_replay"] is on
    codes = [a["code"] for a in got["actions"]]
    assert ("MP402" in codes) is on
    assert ("MP403" in codes) is (explained is not None and not on)
    if on:
        assert got["actions"][0]["code"] == "MP402"  # the source of the drift before its correction


def test_replay_stays_off_where_no_expert_differs(make_result: Make) -> None:
    result = make_result(explained=0.9)
    result["routing"]["token_any_flip_rate"]["value"] = 0.0
    assert recommend(result)["routing_replay"] is False


def test_the_lattice_asks_for_a_float32_head(make_result: Make) -> None:
    result = make_result()
    assert recommend(result)["fp32_head"] is False
    result["data_quality"]["checks"] = [
        {
            "code": "MP109",
            "status": "fail",
            "severity": "info",
            "observed": 0.93,
            "detail": "93 % at multiples",
        }
    ]
    got = recommend(result)
    assert got["fp32_head"] is True
    assert any(
        a["measured"] == {"name": "data_quality.checks[MP109].observed", "value": 0.93}
        for a in got["actions"]
    )


def test_rounding_that_explains_the_drift_is_named(make_result: Make) -> None:
    result = make_result()
    result["legs"]["steps"][0]["k3"]["value"] = 0.8 * result["token"]["k3"]["value"]
    action = next(a for a in recommend(result)["actions"] if "precision" in a["action"])
    assert action["measured"]["value"] == pytest.approx(0.8)


def test_broken_data_recommends_to_mend_it_and_nothing_else(make_result: Make) -> None:
    result = make_result()
    result["data_quality"] = {
        "trusted": False,
        "checks": [
            {"code": "MP106", "name": "temperature", "status": "fail", "observed": 0.7, "detail": "T' is 0.7"}
        ],
    }
    got = recommend(result)
    assert got["method"] is None and got["parameters"] == {} and not got["routing_replay"]
    assert [a["code"] for a in got["actions"]] == ["MP106"]
    assert "MP106" in got["summary"]


def test_bit_equal_sides_need_no_correction(make_result: Make) -> None:
    result = make_result()
    result["token"]["exact"] = True
    got = recommend(result)
    assert got["method"] == "ppo_clip" and got["weight_reads"] == "pi/pi_old"


def test_methods_that_this_drift_breaks_are_named(make_result: Make) -> None:
    """With kappa above its floor of 3e-4, GSPO fed with pi / mu drops negative samples and keeps positive ones."""
    actions = recommend(make_result(noise=0.1))["actions"]
    away = next(a for a in actions if "GSPO" in a["action"])
    assert away["action"].startswith("do not feed") and "GSPO" in away["because"]
    assert away["measured"]["name"] == "weights.gspo.mass_ratio"


def test_several_methods_that_this_drift_breaks_are_one_action(make_result: Make) -> None:
    result = make_result(noise=0.1)
    luspo = {**result["weights"]["gspo"], "label": "LUSPO"}
    luspo["mass_ratio"] = {"value": 0.01, "ci_low": 0.0, "ci_high": 0.1, "n": 200}
    result["weights"]["luspo"] = luspo
    result["weights"]["odd"] = {"label": "Odd", "available": False, "reason": "it failed"}
    away = [a for a in recommend(result)["actions"] if a["code"] == "MP501" and "feed" in a["action"]]
    assert [a["action"] for a in away] == ["do not feed LUSPO or GSPO with pi / mu"]
    assert away[0]["measured"] == {"name": "weights.luspo.mass_ratio", "value": 0.01}
    assert "GSPO 0.6" in away[0]["because"]


def test_a_shift_that_the_interval_does_not_carry_is_not_claimed(make_result: Make) -> None:
    for changes in ({"ci_high": 1.2}, {"ci_low": None, "ci_high": None}):
        result = make_result(noise=0.1)
        result["weights"]["gspo"]["mass_ratio"].update(changes)
        result["weights"]["gspo"]["by_sign"] = {}
        assert not any("GSPO" in a["action"] for a in recommend(result)["actions"])


def test_every_recommendation_is_ranked_serialisable_and_usable(make_result: Make) -> None:
    for options in ({}, {"noise": 0.3}, {"noise": 0.15, "length": 300}):
        got = recommend(make_result(**options))
        assert [a["rank"] for a in got["actions"]] == list(range(1, len(got["actions"]) + 1))
        json.dumps(got, allow_nan=False)
        get_method(got["method"], **got["parameters"])


def test_an_almost_empty_result_does_not_break_it() -> None:
    got = recommend({})
    assert got["method"] == "token_tis" and got["actions"]
