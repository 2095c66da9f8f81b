"""Which bars decide at a gate, and that a gate and the verdict never disagree."""

import copy
import itertools

import pytest
from core.test_verdict import estimate, result

from mismatch_probe.config.bars import Bars, load_bars
from mismatch_probe.errors import ConfigError
from mismatch_probe.gate import hold_gate
from mismatch_probe.outcomes import outcomes
from mismatch_probe.verdict import judge

DRIFTED = {"token__k3": estimate(1.0)}
FEW = {"token__num_tokens": 50}
WARNS = {"sequence__ess": estimate(0.1)}
REFUSED = {
    "token": {"available": False, "reason": "ids do not line up", "num_tokens": 5000},
    "data_quality__checks": [
        {
            "code": "MP101",
            "name": "ids",
            "status": "fail",
            "observed": 1.0,
            "bar": 0.0,
            "detail": "ids differ",
        }
    ],
}


def state(gate, code):
    return {item.state for item in gate.held if item.outcome.code == code}


@pytest.mark.parametrize("changes", [{}, DRIFTED, FEW, WARNS, {**DRIFTED, **FEW}, REFUSED])
def test_without_named_bars_the_gate_is_the_verdict(changes):
    made = result(**changes)
    gate, verdict = hold_gate(made, load_bars()), judge(made, load_bars())
    assert (gate.name, gate.exit_code) == (verdict.name, verdict.exit_code)


def test_every_bar_has_an_outcome_that_names_it():
    floorless = {"repeat_k3": None, "decode_prefill_k3": None, "rounding_k3": None}
    keys = set()
    for layers, floor, absolute in itertools.product((0, 4), (None, floorless), ({}, {"k3_max": 1.0})):
        made = result(
            provenance__model__num_moe_layers=layers, **({} if floor is None else {"legs__floor": floor})
        )
        keys |= {key for outcome in outcomes(made, load_bars(absolute)) for key in outcome.keys}
    # What is advised is not held.
    assert keys == set(Bars.model_fields) - {"replay_explained"}


def test_a_named_bar_decides_where_the_verdict_only_warns():
    made = result(**WARNS)
    assert hold_gate(made, load_bars()).name == "pass"
    named = hold_gate(made, load_bars({"sequence_ess": 0.2}), {"sequence_ess"})
    assert (named.name, named.exit_code) == ("drift", 1) and "effective" in named.sentence
    (broken,) = named.of_state("fail")
    assert (broken.observed, broken.bar, broken.would_pass_at) == (0.1, 0.2, 0.1)
    assert hold_gate(made, load_bars({"sequence_ess": broken.would_pass_at}), {"sequence_ess"}).name == "pass"


def test_strict_lets_warnings_decide_and_notes_not():
    made = result(**WARNS)
    made["data_quality"]["checks"] = [
        {"code": "MP109", "name": "lattice", "status": "fail", "observed": 1.0, "bar": 0.0, "detail": "d"}
    ]
    gate = hold_gate(made, load_bars(), strict=True)
    assert gate.name == "drift" and [item.code for item in gate.of_state("fail")] == ["MP302"]
    assert state(gate, "MP109") == {"note"}


def test_a_named_bar_without_a_number_is_no_pass():
    made = result(routing={"available": False, "reason": "a dense model has no experts"})
    assert hold_gate(made, load_bars()).name == "pass"
    gate = hold_gate(made, load_bars(), {"set_agreement"})
    assert (gate.name, gate.exit_code) == ("inconclusive", 3) and "no experts" in gate.sentence
    # A broken bar is worth more than an absent one.
    drifted = hold_gate({**made, "token": result(**DRIFTED)["token"]}, load_bars(), {"set_agreement"})
    assert drifted.name == "drift"


def test_too_little_data_is_inconclusive_whatever_else_holds():
    gate = hold_gate(result(**FEW, **WARNS), load_bars(), {"sequence_ess"})
    assert (gate.name, gate.exit_code) == ("inconclusive", 3) and "50 response tokens" in gate.sentence


def test_an_absolute_bar_takes_the_place_of_the_floors():
    made = result(token__k3=estimate(1e-3))
    assert hold_gate(made, load_bars()).name == "drift"  # the floors allow 4e-5
    assert hold_gate(made, load_bars({"k3_max": 2e-3}), {"k3_max"}).name == "pass"
    assert hold_gate(result(), load_bars({"k3_max": 1e-6}), {"k3_max"}).name == "drift"
    wild = result(sequence__k_hat={"state": "value", "value": 0.6, "good_k": 0.45})
    assert state(hold_gate(wild, load_bars()), "MP301") == {"warn"}
    assert state(hold_gate(wild, load_bars({"k_hat_max": 0.7})), "MP301") == {"pass"}


def test_a_named_bar_that_has_no_say_is_told():
    gate = hold_gate(result(), load_bars(), {"k3_moe", "replay_explained", "sequence_ess"})
    assert [key for key, _ in gate.idle] == ["k3_moe", "replay_explained"]


def test_the_result_is_left_alone():
    made = result(**WARNS)
    before = copy.deepcopy(made)
    hold_gate(made, load_bars(), {"sequence_ess"}, strict=True)
    assert made == before


def test_an_unknown_bar_names_the_nearest():
    with pytest.raises(ConfigError, match="unknown bar") as caught:
        load_bars({"sequence_es": 0.1})
    assert "sequence_ess" in (caught.value.hint or "")


@pytest.mark.parametrize("absent", [float("nan"), float("inf"), 10**400, None, True])
@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("token__k3", "k3_max"),
        ("token__mean_abs_log_ratio", "mean_abs_log_ratio"),
        ("sequence__ess", "sequence_ess"),
        ("sequence__k_hat", "k_hat_max"),
        ("routing__set_agreement", "set_agreement"),
    ],
)
def test_what_is_no_number_holds_at_no_bar(path, key, absent):
    made = result(**{path: {**estimate(absent), "state": "value", "good_k": 0.5, "reason": "overflow"}})
    gate = hold_gate(made, load_bars({key: 0.5}), {key})
    assert (gate.name, gate.exit_code) == ("inconclusive", 3)
    assert "could not be had" in gate.sentence


def test_without_a_token_k3_nothing_passes_and_the_other_bars_are_still_held():
    made = result(
        token__k3={**estimate(None), "reason": "too little"}, token__mean_abs_log_ratio=estimate(1.0)
    )
    gate = hold_gate(made, load_bars())
    assert (gate.name, gate.exit_code) == ("inconclusive", 3) and "too little" in gate.sentence
    assert state(gate, "MP203") == {"warn"}
    assert hold_gate(made, load_bars(), {"mean_abs_log_ratio"}).name == "drift"


def test_a_k3_that_overflows_is_drift_by_what_is_left_of_it_when_clamped():
    made = result(token__k3={**estimate(None), "reason": "exp(l) overflows"}, token__k3_clamped=9.7e4)
    gate = hold_gate(made, load_bars())
    assert gate.name == "drift" and "exp(l) overflows" in gate.sentence
    (broken,) = gate.of_state("fail")
    assert broken.observed == 9.7e4


def test_sides_that_are_equal_still_answer_to_bars_that_are_named():
    made = result(token__exact=True, token__k3=estimate(0.0), token__mean_abs_log_ratio=estimate(0.0))
    named = {"mean_abs_log_ratio", "extreme_rate_2", "decode_prefill_over_floor"}
    gate = hold_gate(made, load_bars(), named)
    assert gate.name == "pass" and gate.idle == ()
    # The engine against itself: a warning where the sides agree, which a name lets decide.
    apart = {**made, "legs": {"floor": {**made["legs"]["floor"], "decode_prefill_k3": estimate(0.1)}}}
    assert hold_gate(apart, load_bars()).name == judge(apart, load_bars()).name == "pass"
    assert hold_gate(apart, load_bars(), named).name == "drift"


def test_a_result_that_calls_itself_untrusted_is_not_passed():
    gate = hold_gate(result(data_quality__trusted=False), load_bars())
    assert (gate.name, gate.exit_code) == ("inconclusive", 3)


def test_a_replay_without_numbers_is_left_out():
    made = result(routing__replay={"self_replay": {"available": True, "max_abs_change": None}})
    assert state(hold_gate(made, load_bars()), "MP404") == set()


def test_a_reload_whose_change_has_no_number_is_still_broken():
    sync = {
        "available": True, "exact": False, "num_tokens": 9, "modules": [],
        "change": {"mean_abs": {**estimate(None), "reason": "half the tokens have no value"}, "max_abs": None},
        "weights": {"differences": [], "compared": 3},
    }  # fmt: skip
    gate = hold_gate({**result(), "weight_sync": sync}, load_bars())
    assert gate.name == "drift" and "half the tokens have no value" in gate.sentence
