"""What of the weight-sync study needs no engine."""

from mismatch_probe.findings import CATALOGUE
from mismatch_probe.stages.ablation import refit_findings


def case(mean=0.0, worst=0.0, differences=(), exact=True):
    step = {"mean_abs": {"value": mean, "n": 10}, "max_abs": worst, "exact": worst == 0.0}
    return {
        "unavailable": None, "exact": exact, "decode": step, "prefill": step,
        "weights": {"differences": [{"module": name} for name in differences]},
    }  # fmt: skip


def test_a_load_that_changes_nothing_is_no_finding():
    assert refit_findings({"same": case(), "updated": case()}) == []


def test_each_case_has_its_code_and_names_the_modules():
    names = [f"layers.{i}.experts" for i in range(6)]
    found = refit_findings({
        "same": case(0.4, 2.0, names, exact=False),
        "updated": case(0.1, 0.5, names[:1], exact=False),
    })  # fmt: skip
    assert [item.code for item in found] == ["MP601", "MP602"]
    assert all(item.code in CATALOGUE and item.severity == "error" for item in found)
    assert "layers.*.experts (layers 0, 1, 2, 3, 4, 5)" in found[0].detail
    assert found[0].observed == 0.4


def test_weights_that_differ_count_even_where_no_read_token_moved():
    (found,) = refit_findings({"same": case(0.0, 0.0, ["head"], exact=False), "updated": case()})
    assert "head" in found.detail


def test_what_was_unavailable_is_not_a_finding():
    assert refit_findings({"same": {"unavailable": "no"}, "updated": {"unavailable": "no"}}) == []
