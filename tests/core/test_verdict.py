import copy

import pytest

from mismatch_probe.config.bars import load_bars
from mismatch_probe.findings import CATALOGUE
from mismatch_probe.verdict import judge


def estimate(value, n=1000):
    return {"value": value, "ci_low": None, "ci_high": None, "n": n}


def sure(value):
    """An estimate whose interval is narrow."""
    return {**estimate(value), "ci_low": 0.9 * value, "ci_high": 1.1 * value}


def result(**changes):
    """A healthy run; `changes` are dotted paths with __ for dots."""
    base = {
        "provenance": {"prompts": {"num_prompts": 16}, "model": {"name": "m", "num_moe_layers": 4}, "has_advantages": True},
        "data_quality": {"trusted": True, "checks": []},
        "token": {
            "num_tokens": 5000, "exact": False, "k3": estimate(1e-5), "mean_abs_log_ratio": estimate(1e-3),
            "extreme": [{"tau": 2, "rate": estimate(0.0)}],
        },
        "legs": {
            "floor": {
                "repeat_k3": estimate(1e-6), "decode_prefill_k3": estimate(5e-7), "rounding_k3": estimate(1e-5),
                "total_over_floor": 10.0, "source": "train/forward -> train/repeat",
            }
        },
        "sequence": {
            "num_sequences": 64, "k_hat": {"state": "value", "value": 0.2, "good_k": 0.45}, "ess": estimate(0.99),
            "length_law": {"horizon_tokens": 10_000}, "max_length": 200,
        },
        "routing": {"available": True, "num_tokens": 5000, "set_agreement": estimate(0.98), "replay": {"explained": estimate(0.8)}},
        "weights": {},
    }  # fmt: skip
    changed = copy.deepcopy(base)
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = changed
        for parent in parents:
            node = node[parent]
        node[last] = value
    return changed


def codes(verdict, severity=None):
    return {item.code for item in verdict.findings if severity in (None, item.severity)}


def test_a_healthy_run_passes():
    verdict = judge(result(), load_bars())
    assert (verdict.name, verdict.exit_code) == ("pass", 0)
    assert codes(verdict) == {"MP402"}
    assert "agree" in verdict.sentence


def test_drift_above_the_larger_of_the_two_floors():
    # Noise sets 10 * 1e-6, rounding 4 * 1e-5: the larger decides.
    assert judge(result(token__k3=estimate(3.9e-5)), load_bars()).name == "pass"
    verdict = judge(result(token__k3=estimate(4.1e-5)), load_bars())
    assert (verdict.name, verdict.exit_code) == ("drift", 1)
    (found,) = [item for item in verdict.findings if item.code == "MP201"]
    assert found.bar == pytest.approx(4e-5)
    assert found.would_pass_at == pytest.approx(4.1e-5)
    assert "rounding" in found.detail


@pytest.mark.parametrize(("layers", "bar"), [(0, 1e-3), (4, 1e-1)])
def test_published_bands_only_where_no_floor_was_measured(layers, bar):
    floor = {
        "repeat_k3": None,
        "decode_prefill_k3": None,
        "rounding_k3": None,
        "total_over_floor": None,
        "source": None,
    }
    for factor, name in ((0.9, "pass"), (1.1, "drift")):
        verdict = judge(
            result(
                legs__floor=floor, token__k3=estimate(factor * bar), provenance__model__num_moe_layers=layers
            ),
            load_bars(),
        )
        assert verdict.name == name
    assert "MP202" in codes(verdict)


def test_an_exact_floor_does_not_divide_by_zero():
    floor = result()["legs"]["floor"]
    zero = {**floor, "repeat_k3": estimate(0.0), "decode_prefill_k3": estimate(0.0), "rounding_k3": None,
            "total_over_floor": None}  # fmt: skip
    # With nothing but exact floors there is no scale, so the published band decides.
    assert judge(result(legs__floor=zero, token__k3=estimate(1e-5)), load_bars()).name == "pass"
    assert judge(result(legs__floor=zero, token__k3=estimate(0.5)), load_bars()).name == "drift"


def test_sides_that_are_equal_are_exact():
    verdict = judge(result(token__exact=True, token__k3=estimate(0.0)), load_bars())
    assert verdict.name == "pass"
    assert "MP901" in codes(verdict, "info")
    assert "every bit" in verdict.sentence


def test_too_little_data_is_inconclusive_even_when_it_drifts():
    verdict = judge(result(token__num_tokens=50, token__k3=estimate(1.0)), load_bars())
    assert (verdict.name, verdict.exit_code) == ("inconclusive", 3)
    assert "50 response tokens" in verdict.sentence
    assert judge(result(provenance__prompts={"num_prompts": 1}), load_bars()).name == "inconclusive"


def test_a_failed_validity_check_is_drift_and_a_lattice_is_a_note():
    def check(code):
        return [{"code": code, "name": "x", "status": "fail", "observed": 1.0, "bar": 0.0, "detail": "d"}]

    verdict = judge(result(data_quality__checks=check("MP106")), load_bars())
    assert verdict.name == "drift"
    assert codes(verdict, "error") == {"MP106"}
    verdict = judge(result(data_quality__checks=check("MP109")), load_bars())
    assert verdict.name == "pass"
    assert "MP109" in codes(verdict, "info")
    for status in ("pass", "not_run"):
        quiet = [{**check("MP106")[0], "status": status}]
        assert judge(result(data_quality__checks=quiet), load_bars()).name == "pass"


@pytest.mark.parametrize(
    ("changes", "code", "severity"),
    [
        ({"legs__floor__decode_prefill_k3": estimate(2e-4)}, "MP204", "error"),
        ({"token__mean_abs_log_ratio": estimate(0.05)}, "MP203", "warning"),
        ({"token__extreme": [{"tau": 2, "rate": estimate(0.02)}]}, "MP205", "warning"),
        ({"sequence__k_hat": {"state": "value", "value": 0.9, "good_k": 0.45}}, "MP301", "warning"),
        ({"sequence__k_hat": {"state": "too_few", "value": None, "good_k": None, "reason": "8 sequences"}}, "MP304", "info"),
        ({"sequence__ess": estimate(0.1)}, "MP302", "warning"),
        ({"sequence__max_length": 20_000}, "MP303", "warning"),
        ({"routing__set_agreement": estimate(0.8)}, "MP401", "warning"),
        ({"routing__replay__explained": estimate(0.1)}, "MP403", "info"),
        ({"routing__replay__self_replay": {"available": True, "exact": False, "num_changed": 3, "num_tokens": 90,
                                           "max_abs_change": 2e-3}}, "MP404", "warning"),
        ({"weight_sync": {"available": False, "failed": True, "reason": "it died"}}, "MP603", "warning"),
        ({"provenance__model__is_random": True}, "MP903", "info"),
        ({"provenance__has_advantages": False}, "MP904", "info"),
        ({"data_quality__masked_tokens": 30}, "MP905", "info"),
        ({"weights": {"gspo": {"label": "GSPO", "mass_ratio": sure(0.3), "kept_fraction": estimate(0.9)}}},
         "MP501", "warning"),
        ({"weights": {"gspo": {"label": "GSPO", "mass_ratio": estimate(1.0), "kept_fraction": estimate(0.2)}}},
         "MP502", "warning"),
    ],
)  # fmt: skip
def test_each_finding_has_its_cause(changes, code, severity):
    assert code not in codes(judge(result(), load_bars()))
    verdict = judge(result(**changes), load_bars())
    assert code in codes(verdict, severity)
    assert (verdict.name == "drift") == (severity == "error")


def test_many_corrections_make_one_finding_that_names_them_all():
    def method(label, ratio, kept, **interval):
        return {
            "label": label,
            "mass_ratio": {**sure(ratio), **interval},
            "kept_fraction": estimate(kept),
        }

    weights = {
        "gspo": method("GSPO", 0.3, 0.9),
        "opsm": method("OPSM", 0.05, 0.4),
        "seq_is": method("sequence IS", 4.0, 1.0, ci_low=0.5, ci_high=9.0),
        "luspo": method("LUSPO", 2.0, 0.2),
        "odd": {"label": "Odd", "available": False, "reason": "needs more"},
    }
    found = {item.code: item for item in judge(result(weights=weights), load_bars()).findings}
    assert found["MP501"].observed == 0.05 and found["MP502"].observed == 0.2
    assert "OPSM weighs" in found["MP501"].detail and "GSPO 0.3, LUSPO 2" in found["MP501"].detail
    assert "sequence IS" not in found["MP501"].detail  # its interval reaches 1
    assert "LUSPO keeps 20 %" in found["MP502"].detail and "OPSM 40 %" in found["MP502"].detail


def test_errors_come_first():
    verdict = judge(result(token__k3=estimate(1.0), sequence__ess=estimate(0.1)), load_bars())
    order = [item.severity for item in verdict.findings]
    assert order == sorted(order, key=["error", "warning", "info"].index)


def test_a_dense_model_has_no_routing_findings():
    verdict = judge(result(routing={"available": False, "reason": "dense"}), load_bars())
    assert not any(code.startswith("MP4") for code in codes(verdict))


def test_every_code_is_explained():
    for code, entry in CATALOGUE.items():
        assert code.startswith("MP")
        assert entry.title
        assert len(entry.meaning) > 30
        assert entry.advice


def test_a_replay_that_changes_nothing_is_no_finding():
    own = {"available": True, "exact": True, "num_changed": 0, "num_tokens": 90, "max_abs_change": 0.0}
    assert "MP404" not in codes(judge(result(routing__replay__self_replay=own), load_bars()))
    absent = {"available": False, "reason": "not taken"}
    assert "MP404" not in codes(judge(result(routing__replay__self_replay=absent), load_bars()))


def named(cause, code, where, value=1.0):
    fact = {"where": where, "value": value, "bar": 0.0}
    return {
        "cause": cause,
        "code": code,
        "title": f"title of {cause}",
        "basis": "test",
        "because": "b",
        "facts": [fact],
    }


def causes(*items, status="identified"):
    return {"diagnosis": {"status": status, "causes": list(items)}}


def test_a_cause_that_nothing_else_says_has_a_finding_of_its_own():
    stale = named("stale-weights", "MP640", "causes.evidence.weights.num_different")
    found = judge(result(causes=causes(stale)), load_bars())
    assert codes(found, "warning") >= {"MP640"}
    assert found.name == "pass" and "MP640" in found.sentence
    drift = judge(result(causes=causes(stale), token__k3=estimate(1.0)), load_bars())
    assert drift.name == "drift" and drift.sentence.index("MP640") > drift.sentence.index("token K3")
    (found,) = [item for item in drift.findings if item.code == "MP640"]
    assert "explain stale-weights" in found.advice and found.detail == "b"


@pytest.mark.parametrize(
    ("cause", "code", "where", "lead", "changes"),
    [
        ("temperature", "MP630", "data_quality.checks[MP106: one temperature on both sides]", "MP106",
         {"data_quality__checks": [{"code": "MP106", "name": "x", "status": "fail", "observed": 1.4, "bar": 1.0, "detail": "d"}]}),
        ("moe-routing", "MP670", "causes.evidence.legs[train/replay].k3", "MP402", {}),
        ("engine-self-disagreement", "MP667", "causes.evidence.legs[rollout/prefill].mean_abs", "MP204",
         {"legs__floor__decode_prefill_k3": estimate(2e-4)}),
    ],
)  # fmt: skip
def test_one_fact_is_one_finding(cause, code, where, lead, changes):
    without = judge(result(**changes), load_bars())
    verdict = judge(result(causes=causes(named(cause, code, where)), **changes), load_bars())
    assert [item.code for item in verdict.findings] == [item.code for item in without.findings]
    (found,) = [item for item in verdict.findings if item.code == lead]
    assert found.linked == (code,) and f"explain {cause}" in found.advice
    assert code in verdict.sentence


def test_the_sentence_says_where_no_cause_was_identified():
    unknown = causes(status="not_identified")
    assert (
        "no cause was identified"
        in judge(result(causes=unknown, token__k3=estimate(1.0)), load_bars()).sentence
    )
    quiet = causes(status="nothing_to_explain")
    assert "cause" not in judge(result(causes=quiet), load_bars()).sentence
