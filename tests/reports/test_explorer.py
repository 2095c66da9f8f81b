"""The token explorer: what is picked, what is shown of it, and that hostile text stays text."""

import re
from functools import cache
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from reports.sample import HOSTILE, dense

from mismatch_probe.stages.token_explorer import choose_sequences, visible, window_around
from mismatch_probe_reports.figures import prepare_figures
from mismatch_probe_reports.html import render_page
from mismatch_probe_reports.sections.explorer import build_explorer

NASTY = (HOSTILE, "\u202egnp.exe", '" onmouseover="document.title=\'owned\'" x="', "<b>&amp;", "a" * 100_000)


@cache
def sample() -> tuple[dict[str, Any], Any]:
    return dense(), prepare_figures(dense())


def render(explorer: dict[str, Any]) -> str:
    return render_page(*sample(), explorer)


def section(texts: tuple[str, ...] = NASTY) -> dict[str, Any]:
    tokens = [
        {
            "position": i, "text": visible(text), "id": 7000 + i, "rollout_p": 0.5, "train_p": 0.25,
            "log_ratio": -0.6931 * (i + 1), "entropy": 1.5, "flipped_layers": [3] if i == 1 else [],
        }
        for i, text in enumerate(texts)
    ]  # fmt: skip
    row = {
        "sequence": 5, "why": "random", "length": len(tokens), "begin": 0,
        "log_weight": -2.0, "max_abs_log_ratio": 3.0, "tokens": tokens,
    }  # fmt: skip
    other = {**row, "sequence": 6, "log_weight": -9.0}
    return {"available": True, "redact": "none", "text": True, "flips_reason": "", "sequences": [row, other]}


def test_worst_sum_worst_token_and_random_are_picked_once() -> None:
    offsets = np.array([0, 3, 3, 6, 9, 12])
    log_ratio = np.array([0.5, 0.5, 0.5, 0, 0, -1.2, 0, 0.1, 0, 0, 0, 0])
    chosen = choose_sequences(log_ratio, offsets, count=1)
    assert chosen[:2] == ((0, "largest sum of |log-ratio|"), (2, "largest single |log-ratio|"))
    assert len(chosen) == 3 and chosen[2][0] in {3, 4} and chosen[2][1] == "random"
    assert chosen == choose_sequences(log_ratio, offsets, count=1)


@given(st.integers(1, 500), st.data(), st.integers(1, 60))
def test_window_holds_the_worst_token_and_is_as_long_as_it_may_be(
    length: int, data: st.DataObject, longest: int
) -> None:
    worst = data.draw(st.integers(0, length - 1))
    begin, end = window_around(worst, length, longest)
    assert 0 <= begin <= worst < end <= length
    assert end - begin == min(length, longest)


def test_control_and_direction_characters_are_spelled_out() -> None:
    assert visible("a\u202eb\x07\n") == "a\\u{202E}b\\u{7}\\n"
    assert len(visible("x" * 100_000)) < 80


def test_redacted_tokens_have_neither_text_nor_id() -> None:
    raw = section(("secret",))
    raw["redact"] = "full"
    for row in raw["sequences"]:
        for token in row["tokens"]:
            token.update(text=None, id=None)
    page = render(raw)
    assert "secret" not in page and "7000" not in page and "-0.693" in page


def test_without_the_runs_tokens_the_page_has_no_script_of_the_explorer() -> None:
    page = render({"available": False, "reason": "parts are missing"})
    assert "explorer-controls" not in page.partition("<body>")[2] and "parts are missing" in page
    assert build_explorer({}).missing


def test_page_is_stable_and_numbers_stand_without_script() -> None:
    page = render(section())
    assert page == render(section())
    static = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert (
        page.count("<script") == 1
        and "flipped in layers 3" in static
        and "p rollout 0.500, train 0.250" in static
    )
