"""What is absent becomes a reason; nothing becomes a zero."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mismatch_probe_reports.reading import NOT_REPORTED, pick, read_array, read_number, why_absent
from mismatch_probe_reports.tables import Cell, Column, Table, estimate_cell, fold_reasons

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["value", "n", "reason", "x"]), inner)
    ),
    max_leaves=8,
)


@given(JSON)
def test_any_json_is_a_finite_number_or_has_a_reason(raw: object) -> None:
    number = read_number(raw)
    if number.value is None:
        assert number.reason
        assert estimate_cell(raw).text == "n/a"
    else:
        assert math.isfinite(number.value)


@pytest.mark.parametrize("raw", [True, "3", 10**400, math.nan, math.inf, [1.0], {"value": "0.1"}, {}, None])
def test_what_is_no_number_is_not_read_as_one(raw: object) -> None:
    assert read_number(raw).value is None


def test_reason_is_looked_for_beside_a_null() -> None:
    assert pick({"top1": None, "top1_reason": "not ordered", "reason": "no"}, "top1").reason == "not ordered"
    assert pick({"horizon": None, "reason": "flat"}, "horizon").reason == "flat"
    assert pick({"k3": {"value": None, "reason": "inner"}, "reason": "outer"}, "k3").reason == "inner"
    assert pick({"k3": 0.5, "reason": "outer"}, "k3").reason == ""
    assert pick({}, "k3").reason == NOT_REPORTED


def test_absent_sections() -> None:
    assert why_absent({"available": False, "reason": "dense"}) == "dense"
    assert why_absent({"value": None, "reason": "stopped"}) == "stopped"
    assert (
        why_absent(None)
        == why_absent({})
        == why_absent([])
        == why_absent({"available": False})
        == NOT_REPORTED
    )
    assert why_absent({"available": ["train/forward"], "steps": []}) == ""


def test_arrays_keep_their_places() -> None:
    np.testing.assert_array_equal(read_array([1, None, "x", 2.5]), [1.0, np.nan, np.nan, 2.5])
    assert read_array({"not": "a list"}).shape == (0,)


def test_a_reason_that_cells_share_is_said_once() -> None:
    rows = tuple((Cell("n/a", reason=reason),) for reason in ("too few", "too few", "other"))
    folded = fold_reasons(Table("t", "T", (Column("c"),), rows, note="Note."))
    assert [row[0].reason for row in folded.rows] == ["see (1)", "see (1)", "other"]
    assert folded.note == "Note. (1) too few"
