"""Tables of the token, sequence and provenance parts: names for numbers, the worst first, states and reasons."""

from typing import Any

import pytest
from reports.sample import Result, drifting, exact, inconclusive

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.sections.buckets import WORST_PROMPTS, bucket_tables
from mismatch_probe_reports.sections.dashboards import UNDEFINED, dashboard_table
from mismatch_probe_reports.sections.length_law import NO_KAPPA
from mismatch_probe_reports.sections.sequence import (
    FIRST_FIT,
    NEVER_ENOUGH,
    build_sequence,
    k_hat_cell,
    tail_sentence,
)
from mismatch_probe_reports.sections.token_drift import build_token
from mismatch_probe_reports.sections.validity import build_provenance
from mismatch_probe_reports.tables import Cell, Section, Table


def table(section: Section, name: str) -> Table:
    return next(found for found in section.tables if found.name == name)


def row(section: Section, name: str, head: str) -> tuple[Cell, ...]:
    return next(cells for cells in table(section, name).rows if cells[0].text.startswith(head))


def buckets_of(token: Any, name: str) -> Table:
    return next(found for found in bucket_tables(token) if found.name == f"buckets-{name}")


def test_classes_have_their_names_and_unnamed_ones_their_number() -> None:
    token = drifting()["token"]
    names, classes = token["token_class_names"], token["buckets"]["token_class"]
    shown = buckets_of(token, "token_class").rows
    assert [cells[0].text for cells in shown] == [names[int(bucket["low"])] for bucket in classes]
    assert shown[1][0].text == "digits" and shown[1][1].text == fmt.integer(classes[1]["n"])
    token["token_class_names"] = names[:1]
    assert [c[0].text for c in buckets_of(token, "token_class").rows][:3] == ["special", "class 1", "class 2"]


def test_only_the_worst_prompts_are_shown_worst_first() -> None:
    token = drifting()["token"]
    prompts = token["buckets"]["prompt"]
    prompts[5]["k3"] = None
    shown = buckets_of(token, "prompt")
    assert len(shown.rows) == WORST_PROMPTS < len(prompts) and f"10 of {len(prompts)}" in shown.caption
    rest = sorted((bucket for bucket in prompts if bucket["k3"] is not None), key=lambda b: -b["k3"])
    expected = [prompts[5]["low"], *(bucket["low"] for bucket in rest)][:WORST_PROMPTS]
    assert [cells[0].text for cells in shown.rows] == [fmt.tick(low) for low in expected]
    assert len(buckets_of(inconclusive()["token"], "prompt").rows) == 2


def test_entropy_buckets_are_ranges() -> None:
    assert buckets_of(drifting()["token"], "entropy").rows[0][0].text == "0 to 0.01"


def test_dashboard_groups_every_metric_and_says_why_one_has_no_value() -> None:
    token = drifting()["token"]
    token["dashboards"][3]["value"] = None
    # Out of order on purpose: a framework still has one group.
    token["dashboards"].append(token["dashboards"].pop(0))
    shown = dashboard_table(token)
    assert len(shown.rows) == len(token["dashboards"]) and shown.collapsed and shown.grouped
    headings = [heading for heading, _ in shown.groups]
    assert len(headings) == len(set(headings)) == len({item["framework"] for item in token["dashboards"]})
    assert sum(len(rows) for _, rows in shown.groups) == len(shown.rows)
    empty = [cells for cells in shown.rows if cells[2].text == "n/a"]
    assert [cells[2].reason for cells in empty] == [UNDEFINED]
    assert all(cells[1].code for cells in shown.rows)
    assert [column.title for column in shown.shown_columns] == ["Metric", "Value", "Convention"]
    assert "dashboards" not in [found.name for found in build_token({"token": {"k3": 1.0}}).tables]


def with_tail(**k_hat: Any) -> Result:
    result = drifting()
    result["sequence"]["k_hat"] = k_hat
    return result


@pytest.mark.parametrize(
    ("k_hat", "text", "tone", "needed", "why"),
    [
        ({"state": "value", "value": 0.3, "num_needed": 27}, "0.30", "pass", "27", ""),
        ({"state": "value", "value": 0.95, "num_needed": None}, "0.95", "fail", "n/a", NEVER_ENOUGH),
        ({"state": "exact", "value": None, "num_needed": None, "reason": "equal"}, "EXACT", "exact", "n/a", "equal"),
        (
            {"state": "degenerate", "value": None, "num_needed": None, "reason": "clipped"},
            "DEGENERATE", "warn", "n/a", "clipped",
        ),
        (
            {"state": "too_few", "value": None, "num_needed": 25, "reason": "tail of 2"},
            "TOO_FEW", "muted", "25", FIRST_FIT,
        ),
    ],
)  # fmt: skip
def test_k_hat_stands_with_threshold_n_state_and_need(
    k_hat: Result, text: str, tone: str, needed: str, why: str
) -> None:
    result = with_tail(**k_hat, good_k=0.5, n=128)
    section = build_sequence(result)
    cell = row(section, "sequence-tails", "Pareto k-hat")[1]
    assert (cell.text, cell.tone, cell.detail) == (text, tone, "threshold 0.50, n = 128")
    assert cell.reason == k_hat.get("reason", "")
    need = row(section, "sequence-tails", "Sequences needed")[1]
    assert (need.text, need.reason) == (needed, why)
    assert f"k-hat {text} (threshold 0.50, n = 128)" in tail_sentence(result["sequence"])


def test_an_older_k_hat_without_a_need_or_an_n_is_no_error() -> None:
    section = build_sequence(with_tail(state="value", value=0.3))
    assert row(section, "sequence-tails", "Sequences needed")[1].reason == "not reported in result.json"
    assert k_hat_cell({"k_hat": {"value": 0.3}}).detail == ""
    assert k_hat_cell({}).text == "n/a"


def test_the_length_law_is_shown_wholly() -> None:
    sequence = drifting()["sequence"]
    law = sequence["length_law"]
    section = build_sequence({"sequence": sequence})
    for head, key in (("Kappa", "kappa"), ("Gaussian ratio", "gaussian_ratio"), ("Slope", "slope")):
        cell, estimate = row(section, "length-law", head)[1], law[key]
        assert cell.text == (
            fmt.NOT_AVAILABLE if estimate["value"] is None else fmt.number(estimate["value"])
        )
        assert cell.detail or cell.reason == estimate["reason"]
    horizon = row(section, "length-law", "Horizon (tokens)")[1]
    # This drift is so small that the horizon lies beyond what the data carry.
    assert law["horizon_tokens"] is None
    assert horizon.text == fmt.NOT_AVAILABLE
    assert horizon.reason == law["horizon_reason"]
    assert "farther than the data carry" in horizon.reason
    longer = table(section, "length-extrapolation").rows
    assert [cells[0].text for cells in longer] == [
        fmt.integer(item["length"]) for item in law["extrapolation"]
    ]
    refused = [cells for cells, item in zip(longer, law["extrapolation"], strict=True) if item.get("reason")]
    assert refused
    assert all(cells[4].reason for cells in refused)
    growth = law["variance_time"]
    blocks = table(section, "variance-time").rows
    assert [[cell.text for cell in cells] for cells in blocks] == [
        [fmt.integer(size), fmt.number(variance), fmt.integer(count)]
        for size, variance, count in zip(*(growth[k] for k in ("block_sizes", "variances", "num_blocks")), strict=True)
    ]  # fmt: skip
    lengths = table(section, "length-buckets").rows
    assert [cells[4].text for cells in lengths] == [
        fmt.number(bucket["variance"]) for bucket in law["buckets"]
    ]
    assert [cells[1].text for cells in lengths] == [
        fmt.number(bucket["mean_length"]) for bucket in law["buckets"]
    ]


def test_what_the_length_law_lacks_has_a_reason() -> None:
    short = build_sequence(inconclusive())
    horizon = row(short, "length-law", "Horizon (tokens)")[1]
    assert horizon.text == "n/a" and "farther than the data carry" in horizon.reason
    assert row(short, "length-law", "Horizon from kappa")[1].reason == NO_KAPPA
    assert row(short, "length-law", "Slope")[1].reason == "sequences are too short or too few"
    none = build_sequence(exact())
    assert "no length is too long" in row(none, "length-law", "Horizon (tokens)")[1].reason
    stopped = build_sequence(
        {"sequence": {"num_sequences": 2, "length_law": {"value": None, "reason": "stopped"}}}
    )
    assert {cells[1].reason for cells in table(stopped, "length-law").rows[:2]} == {"stopped"}


def test_an_older_gaussian_ratio_beside_the_law_is_found() -> None:
    sequence = drifting()["sequence"]
    expected = fmt.number(sequence["length_law"].pop("gaussian_ratio")["value"])
    assert row(build_sequence({"sequence": sequence}), "length-law", "Gaussian ratio")[1].text == expected


def test_provenance_keeps_engines_and_sampling_open() -> None:
    result = drifting()
    section = build_provenance(result)
    names = [found.name for found in section.tables]
    assert (
        [found.name for found in section.tables if not found.collapsed]
        == ["run", "sides", "sampling"]
        == names[:3]
    )
    sides = {cells[0].text: (cells[1].text, cells[2].text) for cells in table(section, "sides").rows}
    assert {"engine", "version", "dtype"} <= set(sides) and sides["engine"] == ("vllm", "transformers")
    assert "options" not in sides and table(section, "side-options").rows[0][0].text == "options"


def test_a_training_side_that_states_less_of_the_same_model_is_no_second_model() -> None:
    result = drifting()
    result["provenance"]["train_model"] = {"name": result["provenance"]["model"]["name"]}
    assert "train_model" not in [found.name for found in build_provenance(result).tables]
    result["provenance"]["train_model"]["name"] = "another"
    assert "train_model" in [found.name for found in build_provenance(result).tables]
