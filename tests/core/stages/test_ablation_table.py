"""The table of an ablation over several calls: what is kept, what is dropped, and how it is ranked."""

import pytest

from mismatch_probe.stages.ablation import merged, rank


def row(knob, change=None, p_value=None, **fields):
    if change is None:
        return {"knob": knob, "unavailable": "refused", "in_effect": None, "change": None, **fields}
    measured = {"k3_change": {"value": change}, "p_value": p_value}
    return {"knob": knob, "unavailable": None, "in_effect": change != 0.0, "change": measured, **fields}


def table(*rows, k3=0.5, tokens="a", **fields):
    return {"schema_version": 1, "tokens_sha256": tokens, "k3": k3, "floor": 0.1, "rows": rank(rows), "findings": [],
            **fields}  # fmt: skip


def test_rows_are_ranked_and_corrected_over_those_in_effect():
    rows = rank([row("refused"), row("still", 0.0, 1.0), row("small", -0.1, 0.03), row("large", 0.4, 0.01)])
    assert [item["knob"] for item in rows] == ["large", "small", "still", "refused"]
    assert [item["change"] and item["change"]["p_holm"] for item in rows] == [
        pytest.approx(0.02),
        pytest.approx(0.03),
        None,
        None,
    ]


def test_a_second_call_keeps_the_rows_of_the_first_and_corrects_over_both():
    first = table(row("one", 0.4, 0.01), row("two", 0.2, 0.04))
    whole = merged(table(row("two", 0.3, 0.02), row("three")), first)
    assert [item["knob"] for item in whole["rows"]] == ["one", "two", "three"]
    assert whole["rows"][1]["change"]["k3_change"]["value"] == 0.3
    assert [item["change"]["p_holm"] for item in whole["rows"][:2]] == [
        pytest.approx(0.02),
        pytest.approx(0.02),
    ]


@pytest.mark.parametrize("other", [{"k3": 0.6}, {"tokens": "b"}])
def test_rows_against_another_baseline_are_dropped(other):
    first = table(row("one", 0.4, 0.01), **other)
    assert [item["knob"] for item in merged(table(row("two", 0.2, 0.04)), first)["rows"]] == ["two"]


def test_weight_sync_and_knobs_do_not_push_each_other_out():
    knobs = table(row("one", 0.4, 0.01))
    sync = {"schema_version": 1, "tokens_sha256": "a", "refit": {"same": {}}, "findings": [{"code": "MP601"}]}
    both = merged(sync, knobs)
    assert both["refit"] == {"same": {}}
    assert [item["knob"] for item in both["rows"]] == ["one"]
    again = merged(table(row("two", 0.2, 0.04)), both)
    assert again["findings"] == [{"code": "MP601"}]
    assert len(again["rows"]) == 2
