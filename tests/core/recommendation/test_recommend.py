"""What is recommended follows from what was measured."""

from __future__ import annotations

import copy
import functools
import json
import math
from typing import Any

import numpy as np
import pytest
from core.export.conftest import simulate

from mismatch_probe.errors import ConfigError
from mismatch_probe.recommendation import GOALS, recommend
from mismatch_probe.result import to_json
from mismatch_probe.simulate.responses import Responses
from mismatch_probe.weights import get_method


@functools.cache
def _simulated(options: tuple[tuple[str, Any], ...]) -> tuple[dict[str, Any], Responses]:
    return simulate(**dict(options))


def run(**options: Any) -> tuple[dict[str, Any], Responses]:
    result, responses = _simulated(tuple(sorted(options.items())))
    return copy.deepcopy(result), responses


def recommended(result: dict[str, Any], responses: Responses | None, **options: Any) -> dict[str, Any]:
    section: dict[str, Any] = to_json(recommend(result, responses, resamples=200, **options))
    return section


def actions(section: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [action for action in section["actions"] if action["kind"] == kind]


def test_a_mild_drift_takes_vespo_and_names_the_number() -> None:
    got = recommended(*run())
    assert got["method"] == "vespo" and got["weight_reads"] == "pi/mu" and got["goal"] == "stability"
    assert got["parameters"] == {"k_pos": 2.0, "lambda_pos": 3.0, "k_neg": 3.0, "lambda_neg": 2.0}
    (action,) = actions(got, "correction")
    assert action["measured"]["name"] == "recommendation.candidates.vespo.influence"
    assert action["measured"]["value"] == got["candidates"]["vespo"]["influence"]["value"]
    for effect in action["effects"]:
        assert effect["before"]["value"] is not None and effect["after"]["ci_low"] is not None, effect[
            "quantity"
        ]


def test_a_drift_that_silences_vespo_takes_token_weights() -> None:
    got = recommended(*run(noise=0.15, length=300))
    assert got["method"] == "token_tis" and "VESPO is out" in actions(got, "correction")[0]["because"]
    assert got["parameters"]["cap"] > 1.3
    assert any(a["code"] == "MP303" for a in got["actions"])  # 300 tokens are beyond the horizon


def test_heavy_tails_take_icepop_with_a_band_around_what_was_measured() -> None:
    result, responses = run(noise=0.3, length=100)
    got = recommended(result, responses)
    assert got["method"] == "icepop"
    quantiles = result["token"]["quantiles"]["log_ratio"]
    low, high = got["parameters"]["low"], got["parameters"]["high"]
    assert low <= math.exp(quantiles[1]) < math.exp(quantiles[-2]) <= high


@pytest.mark.parametrize(("explained", "on"), [(0.9, True), (0.2, False), (-0.5, False), (None, False)])
def test_replay_follows_the_share_it_explains(explained: float | None, on: bool) -> None:
    got = recommended(*run(explained=explained))
    assert got["routing_replay"] is on
    codes = [a["code"] for a in got["actions"]]
    assert ("MP402" in codes) is on
    assert ("MP403" in codes) is (explained is not None and not on)
    if on:
        first = got["actions"][0]
        assert first["code"] == "MP402"  # the source of the drift before its correction
        (effect,) = first["effects"]
        assert effect["change"]["value"] == explained and effect["before"]["value"] > 0


def test_replay_stays_off_where_no_expert_differs() -> None:
    result, responses = run(explained=0.9)
    result["routing"]["token_any_flip_rate"]["value"] = 0.0
    assert recommended(result, responses)["routing_replay"] is False


def test_the_lattice_asks_for_a_float32_head() -> None:
    result, responses = run()
    assert recommended(result, responses)["fp32_head"] is False
    result["data_quality"]["checks"] = [
        {
            "code": "MP109",
            "status": "fail",
            "severity": "info",
            "observed": 0.93,
            "detail": "93 % at multiples",
        }
    ]
    got = recommended(result, responses)
    assert got["fp32_head"] is True
    (action,) = (a for a in got["actions"] if a["code"] == "MP109")
    assert action["measured"] == {"name": "data_quality.checks[MP109].observed", "value": 0.93}
    assert "ablate" in action["no_effect"] and action["effects"] == []
    change = {"value": -1e-5, "ci_low": -2e-5, "ci_high": -1e-6, "n": 100}
    result["ablation"] = {
        "k3": {"value": 2e-4, "ci_low": 1e-4, "ci_high": 3e-4, "n": 100},
        "rows": [
            {"knob": "train-float32-head", "in_effect": True, "change": {"k3_change": change, "p_holm": 0.5}}
        ],
    }
    (action,) = (a for a in recommended(result, responses)["actions"] if a["code"] == "MP109")
    assert action["effects"][0]["change"]["value"] == -1e-5


def test_a_knob_that_brings_the_sides_together_is_a_thing_to_do() -> None:
    result, responses = run()

    def row(knob: str, value: float, p_holm: float, in_effect: bool = True) -> dict[str, Any]:
        change = {"k3_change": {"value": value, "ci_low": None, "ci_high": None, "n": 9}, "p_holm": p_holm}
        return {"knob": knob, "side": "rollout", "changes": "x", "in_effect": in_effect, "change": change}

    result["ablation"] = {
        "k3": {"value": 2e-4, "ci_low": 1e-4, "ci_high": 3e-4, "n": 100},
        "rows": [
            row("rollout-float32", -1e-4, 0.01),
            row("rollout-eager", -2e-4, 0.001),
            row("by chance", -3e-4, 0.2),
            row("worse", 1e-3, 0.001),
            row("unheard", -1e-4, 0.001, in_effect=False),
        ],
    }
    engine = [
        a["action"]
        for a in actions(recommended(result, responses), "engine")
        if "the rollout side" in a["action"]
    ]
    assert [text.split("(")[1] for text in engine] == ["rollout-eager)", "rollout-float32)"]


def test_a_cause_that_was_named_is_mended_and_not_twice() -> None:
    result, responses = run()

    def named(cause: str, value: Any) -> dict[str, Any]:
        return {
            "cause": cause,
            "because": "it shows",
            "facts": [{"where": "causes.evidence.x", "value": value}],
        }

    result["causes"] = {
        "diagnosis": {
            "causes": [
                named("truncated-sampling", 0.05),
                named("kv-cache-precision", "fp8"),
                named("moe-routing", 0.7),
                named("tail-tokens", 0.1),
            ]
        }
    }
    engine = {a["code"]: a for a in actions(recommended(result, responses), "engine")}
    assert engine["MP632"]["measured"] == {"name": "causes.evidence.x", "value": 0.05}
    assert engine["MP632"]["action"].startswith("sample with top_p=1") and engine["MP666"]["measured"] is None
    # Replay speaks of the routes already, and what rare tokens do in training is the correction's part.
    assert {"MP402", "MP632", "MP666"} == set(engine)


def test_replay_is_not_trusted_where_a_forwards_own_routes_change_it() -> None:
    result, responses = run(explained=0.9)
    result["findings"] = [{"code": "MP404", "detail": "it moves"}]
    got = recommended(result, responses)
    assert got["routing_replay"] is False
    assert any("MP404" in a["because"] for a in got["actions"] if a["code"] == "MP403")


def test_rounding_that_explains_the_drift_is_named() -> None:
    result, responses = run()
    result["legs"]["steps"][0]["k3"]["value"] = 0.8 * result["token"]["k3"]["value"]
    action = next(a for a in recommended(result, responses)["actions"] if "precision" in a["action"])
    assert action["measured"]["value"] == pytest.approx(0.8)


def test_broken_data_recommends_to_mend_it_and_nothing_else() -> None:
    result, responses = run()
    result["data_quality"] = {
        "trusted": False,
        "checks": [
            {"code": "MP106", "name": "temperature", "status": "fail", "observed": 0.7, "detail": "T' is 0.7"}
        ],
    }
    got = recommended(result, responses)
    assert got["method"] is None and got["parameters"] == {} and not got["routing_replay"]
    assert got["candidates"] == {} and got["goals"] == {} and got["monitor"] == []
    assert [(a["code"], a["kind"]) for a in got["actions"]] == [("MP106", "measurement")]
    assert "MP106" in got["summary"]
    result["causes"] = {"diagnosis": {"causes": [{"cause": "temperature", "because": "T", "facts": []}]}}
    assert [a["code"] for a in recommended(result, responses)["actions"]] == ["MP106", "MP630"]


def test_bit_equal_sides_need_no_correction() -> None:
    result, responses = run()
    result["token"]["exact"] = True
    got = recommended(result, responses)
    assert got["method"] == "ppo_clip" and got["weight_reads"] == "pi/pi_old" and got["candidates"] == {}


def test_every_goal_has_a_choice_and_another_method_behind_it() -> None:
    result, responses = run(noise=0.05)
    got = recommended(result, responses)
    assert set(got["goals"]) == set(GOALS)
    for goal, choice in got["goals"].items():
        chosen, second = (got["candidates"][choice[name]] for name in ("chosen", "runner_up"))
        assert chosen["method"] != second["method"] and not chosen["against"] and not second["against"]
        number = choice["number"]
        gap = second[number]["value"] - chosen[number]["value"]
        assert choice["difference"]["value"] == pytest.approx(gap, abs=1e-12)
        assert choice["difference"]["ci_low"] <= gap <= choice["difference"]["ci_high"]
        asked = recommended(result, responses, goal=goal)
        assert (asked["goal"], asked["method"]) == (goal, chosen["method"])
    # On mild noise a kernel of the whole response loses signal that truncation keeps.
    assert got["goals"]["signal"]["chosen"] == "token_tis"
    assert got["goals"]["throughput"]["chosen"] == "token_tis"
    # On less noise nothing is lost, and what needs no other forward pass comes first.
    got = recommended(*run())
    assert not got["candidates"][got["goals"]["throughput"]["chosen"]]["second_forward"]


def test_a_band_off_one_is_for_the_engines_to_mend() -> None:
    """Masks are fitted to keep what was measured; where all of it is shifted that is no correction."""
    result, responses = run(noise=0.02)
    shifted = Responses.of(
        np.minimum(responses.train - 1.0, -1e-6),
        responses.rollout,
        responses.offsets,
        responses.clusters,
        responses.advantages,
    )
    got = recommended(result, shifted)
    assert any("mend the engines" in reason for reason in got["candidates"]["geo_rs"]["against"])
    assert all(choice["chosen"] != "geo_rs" for choice in got["goals"].values())


def test_the_summary_names_the_correction_behind_engine_fixes() -> None:
    result, responses = run()
    result["causes"] = {
        "diagnosis": {
            "causes": [
                {"cause": name, "because": "x", "facts": []}
                for name in ("stale-weights", "fp8-weights", "rope-base")
            ]
        }
    }
    assert "; then correct with VESPO" in recommended(result, responses)["summary"]


def test_an_unknown_goal_is_refused() -> None:
    with pytest.raises(ConfigError, match="speed") as error:
        recommended(*run(), goal="speed")
    assert "throughput" in str(error.value.hint)


def test_nothing_that_is_unfit_is_chosen() -> None:
    """Where whole responses differ by nats, what weighs them is out, with the reason and the number."""
    got = recommended(*run(noise=0.3, length=100))
    assert got["candidates"]["vespo"]["against"] and got["candidates"]["seq_tis"]["against"]
    for choice in got["goals"].values():
        assert not got["candidates"][choice["chosen"]]["against"]


def test_hyperparameters_have_intervals_and_a_check_on_other_prompts() -> None:
    got = recommended(*run(noise=0.05))
    fit = got["candidates"]["token_tis"]["fit"]
    cap = fit["thresholds"]["cap"]
    assert cap["ci_low"] < cap["value"] < cap["ci_high"] and f"{cap['value']:.4g}" in fit["because"]
    assert fit["check"]["held_out"]["value"] == pytest.approx(fit["level"], abs=0.01)
    assert got["candidates"]["vespo"]["fit"] is None


def test_a_batch_of_the_same_drift_rarely_alarms_and_a_worse_one_does() -> None:
    got = recommended(*run(noise=0.05))
    alarms = {row["name"]: row for row in got["monitor"]}
    assert {"framework": "verl", "name": "rollout_corr/k3_kl"} in alarms["k3"]["logged"]

    def k3(noise: float, seed: int) -> float:
        log_ratio = np.random.default_rng(seed).normal(-(noise**2) / 2, noise, 8000)
        return float((np.expm1(log_ratio) - log_ratio).mean())

    assert sum(k3(0.05, seed) > alarms["k3"]["alarm"] for seed in range(1, 301)) <= 3
    assert k3(0.06, 0) > alarms["k3"]["alarm"]


def test_it_says_what_w_contains_in_every_framework() -> None:
    got = recommended(*run())
    assert "inside W" in got["reads_by_framework"]["trl"]
    assert "pi_old / mu" in got["reads_by_framework"]["verl"]
    assert all(got["reads_by_framework"].values())
    assert any("no staleness" in line for line in got["assumptions"])


def test_methods_that_this_drift_breaks_are_named() -> None:
    """With kappa above its floor of 3e-4, GSPO fed with pi / mu drops negative samples and keeps positive ones."""
    away = next(a for a in recommended(*run(noise=0.1))["actions"] if "GSPO" in a["action"])
    assert away["action"].startswith("do not feed") and "GSPO" in away["because"] and away["kind"] == "avoid"
    assert away["measured"]["name"] == "weights.gspo.mass_ratio"


def test_several_methods_that_this_drift_breaks_are_one_action() -> None:
    result, responses = run(noise=0.1)
    luspo = {**result["weights"]["gspo"], "label": "LUSPO"}
    luspo["mass_ratio"] = {"value": 0.01, "ci_low": 0.0, "ci_high": 0.1, "n": 200}
    result["weights"]["luspo"] = luspo
    result["weights"]["odd"] = {"label": "Odd", "available": False, "reason": "it failed"}
    found = recommended(result, responses)["actions"]
    away = [a for a in found if a["code"] == "MP501" and "feed" in a["action"]]
    assert [a["action"] for a in away] == ["do not feed LUSPO or GSPO with pi / mu"]
    assert away[0]["measured"] == {"name": "weights.luspo.mass_ratio", "value": 0.01}
    assert "GSPO 0.6" in away[0]["because"]


def test_a_shift_that_the_interval_does_not_carry_is_not_claimed() -> None:
    for changes in ({"ci_high": 1.2}, {"ci_low": None, "ci_high": None}):
        result, responses = run(noise=0.1)
        result["weights"]["gspo"]["mass_ratio"].update(changes)
        result["weights"]["gspo"]["by_sign"] = {}
        assert not any("GSPO" in a["action"] for a in recommended(result, responses)["actions"])


def test_every_recommendation_is_ranked_serialisable_and_usable() -> None:
    for options in ({}, {"noise": 0.3}, {"noise": 0.15, "length": 300}):
        got = recommended(*run(**options))
        assert [a["rank"] for a in got["actions"]] == list(range(1, len(got["actions"]) + 1))
        json.dumps(got, allow_nan=False)
        get_method(got["method"], **got["parameters"])
        for candidate in got["candidates"].values():
            get_method(candidate["method"], **candidate["parameters"])
        for action in got["actions"]:
            assert bool(action["effects"]) != bool(action.get("no_effect"))


def test_an_almost_empty_result_does_not_break_it() -> None:
    _, responses = run()
    got = recommended({}, responses)
    assert got["method"] == "vespo" and got["actions"]


def test_few_prompts_give_choices_without_intervals() -> None:
    result, responses = run(noise=0.05)
    got = recommended(result, responses.subset(np.arange(4)))
    choice = got["goals"]["signal"]
    assert choice["difference"]["ci_low"] is None and "prompts" in choice["difference"]["reason"]
    assert got["monitor"][0]["alarm"] is None and "prompts" in got["monitor"][0]["reason"]
