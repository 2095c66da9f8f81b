"""The forest plot of an ablation: which rows are drawn, where, and what is listed below."""

import math

import pytest

from mismatch_probe_reports.figures import ablation
from mismatch_probe_reports.figures.canvas import Missing, Plot, to_png, to_svg


def row(knob, value=None, p_holm=None, *, side="rollout", in_effect=True, unavailable=None):
    change = None
    if value is not None:
        change = {
            "k3_change": {"value": value, "ci_low": value - 0.1, "ci_high": value + 0.2},
            "p_holm": p_holm,
        }
    return {"knob": knob, "side": side, "in_effect": in_effect, "unavailable": unavailable, "change": change}


ROWS = [
    row("kv-fp8", 5.0, 0.002),
    row("train-eager", -0.3, 0.01, side="train"),
    row("train-batch-1", 1e-4, 0.9, side="train"),
    row("prefix-caching", 0.0, in_effect=False),
    row("train-bfloat16", unavailable="the run's own setting: train is in bfloat16"),
    row("batch-invariant", unavailable="no kernel"),
]


def result(rows=ROWS, floor=0.01):
    return {"ablation": {"rows": rows, "floor": {"value": floor}, "num_tokens": 500}}


def test_rows_in_effect_are_drawn_in_floors_and_the_others_listed_with_why():
    plot = ablation.prepare(result())
    assert isinstance(plot, Plot)
    svg = to_svg(plot)
    assert "500" in svg and ">-30.0  [-40.0, -10.0]  p 0.010<" in svg
    assert "Not in effect (no bit changed): prefix-caching" in svg
    assert (
        "The run&#39;s own setting: train-bfloat16" in svg or "The run's own setting: train-bfloat16" in svg
    )
    assert "Unavailable here: batch-invariant" in svg
    assert to_png(plot).startswith(b"\x89PNG")


def test_the_caption_counts_what_is_beyond_chance_and_names_both_ends():
    caption = ablation.prepare(result()).caption
    assert "2 of 3 knobs" in caption
    assert "kv-fp8 adds most: 500 floors" in caption
    assert "train-eager takes most away: 30.0 floors" in caption


def test_only_changes_beyond_chance_are_bold():
    svg = to_svg(ablation.prepare(result()))
    for knob, bold in (("kv-fp8", True), ("train-batch-1", False)):
        before = svg[: svg.index(f">{knob}<")]
        assert ("font-weight: 700" in before[before.rindex("<text") :]) == bold


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "mismatch-probe ablate"),
        ({"ablation": {"refit": {}}}, "weight sync"),
        (result(floor=0.0), "no unit"),
        (result(rows=ROWS[3:]), "no knob is in effect"),
    ],
)
def test_what_cannot_be_drawn_says_why(given, says):
    found = ablation.prepare(given)
    assert isinstance(found, Missing)
    assert says in found.reason


@pytest.mark.parametrize("value", [1e300, -1e300, 1e-300])
def test_a_change_of_any_size_can_be_drawn(value):
    wild = row("wild", 0.0, 0.5)
    wild["change"]["k3_change"] = {"value": value, "ci_low": value, "ci_high": value}
    found = ablation.prepare(result(rows=[wild, ROWS[0]]))
    assert isinstance(found, Plot)
    assert to_svg(found)


def test_places_keep_the_order_and_mirror_at_zero():
    values = [-1e9, -10.0, -0.5, 0.0, 0.5, 10.0, 1e9]
    places = [ablation._place(value) for value in values]
    assert places == sorted(places)
    assert all(math.isclose(a, -b) for a, b in zip(places, reversed(places), strict=True))
