"""Numbers keep their meaning when written, strings lose what could harm."""

import math
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mismatch_probe_reports import format as fmt

FINITE = st.floats(-1e300, 1e300)


@given(FINITE)
def test_number_is_within_half_a_unit_of_its_third_digit(value: float) -> None:
    written = float(fmt.number(value).replace(",", ""))
    assert math.isclose(written, value, rel_tol=5.1e-3) or (value == 0 and written == 0)


@given(st.floats(0.0, 1.0))
def test_only_exact_shares_are_written_as_none_or_all(share: float) -> None:
    written = fmt.percent(share)
    assert (written == "0 %") == (share == 0.0)
    # Twelve decimals are the most that are written.
    assert (float(written.split()[0].replace(",", "")) == 100.0) == (share > 1.0 - 1e-14)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0.0, "0"),
        (0.9996, "1.00"),
        (1234.5, "1,234"),
        (1e-5, "1.00e-5"),
        (-0.00025, "-0.000250"),
        (3e300, "3.00e300"),
    ],
)
def test_number_examples(value: float, written: str) -> None:
    assert fmt.number(value) == written


def test_not_a_number_is_never_written_as_one() -> None:
    assert fmt.number(math.nan) == fmt.number(math.inf) == fmt.percent(math.nan) == "n/a"


@given(st.floats(0.5, 2.0, exclude_min=True, exclude_max=True))
def test_near_one_tells_apart_what_differs_from_one(value: float) -> None:
    if abs(value - 1.0) > 1e-11:
        assert float(fmt.near_one(value)) != 1.0
        assert math.isclose(float(fmt.near_one(value)) - 1.0, value - 1.0, rel_tol=0.06)


@pytest.mark.parametrize(
    ("value", "unit", "written"),
    [
        (0.125, "share of tokens", "12.5 % of tokens"),
        (0.002, "nats", "0.00200 nats"),
        (17, "tokens", "17 tokens"),
        (0.8, "ratio", "0.800"),
        (5.0, "", "5"),
    ],
)
def test_units(value: float, unit: str, written: str) -> None:
    assert fmt.with_unit(value, unit) == written


@given(st.text())
def test_clean_leaves_one_printable_line(text: str) -> None:
    cleaned = fmt.clean(text)
    cleaned.encode("utf-8")
    assert not any(unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} for character in cleaned)
    assert not set(cleaned) & set("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")


def test_clean_takes_whole_escape_sequences_away() -> None:
    title, link, colour = "\x1b]0;owned\x07", "\x1b]8;;http://x\x1b\\", "\x1b[1;31m"
    assert fmt.clean(f"a{colour}b{title}c{link}d\x9b2Je\x07") == "abcde"


def test_settings_of_any_type_are_readable() -> None:
    assert fmt.scalar({"a": None, "b": [True, 1.5, "x\x1b[0m"]}) == "a = not set, b = yes, 1.5, x"
    assert fmt.scalar({}) == fmt.scalar([]) == "none"
