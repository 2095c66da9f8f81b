"""The views of a matrix."""

import io

from rich.console import Console

from mismatch_probe_reports.matrix import render_matrix_markdown, render_matrix_terminal, write_matrix

HOSTILE = "<script>x</script>\x1b[31m"


def matrix():
    def number(value):
        return {"value": value, "ci_low": value / 2, "ci_high": value * 2, "n": 9}

    def cell(source, reader, k3, verdict):
        return {
            "source": source, "reader": reader, "run": f"cells/{source}--{reader}".replace("rollout/", ""), "status": "done",
            "verdict": verdict, "exit_code": 0, "findings": ["MP201"], "k3": number(k3), "mean_abs_log_ratio": number(0.1),
            "log_weight_std": 0.5, "floor_k3": 0.0, "over_rounding": 9.5, "over_rounding_bar": 4.0,
        }  # fmt: skip

    failed = {
        "source": "rollout/b",
        "reader": "rollout/a",
        "run": "x",
        "status": "failed",
        "reason": HOSTILE,
        "hint": None,
    }
    return {
        "model": {"name": HOSTILE}, "sampling": {"temperature": 1.0}, "num_sequences": 4, "run_id": "r", "command": HOSTILE,
        "created_at": "t", "tool_version": "0",
        "sources": ["rollout/a", "rollout/b"], "readers": ["rollout/a", "rollout/b"],
        "cells": [cell("rollout/a", "rollout/a", 0.0, "pass"), cell("rollout/a", "rollout/b", 0.02, "drift"), failed,
                  cell("rollout/b", "rollout/b", 0.0, "pass")],
        "between_readers": {"rollout/a": [{"from": "rollout/a", "to": "rollout/b", "mean_abs": number(0.1), "max_abs": 1.0,
                                           "identical_fraction": 0.5, "exact": False}]},
        "directions": [],
    }  # fmt: skip


def test_page_and_picture_are_written_and_hostile_text_is_inert(tmp_path):
    page = write_matrix(matrix(), tmp_path).read_text()
    assert (tmp_path / "matrix.png").read_bytes().startswith(b"\x89PNG")
    assert "<script" not in page
    assert "\x1b" not in page
    assert 'href="cells/a--b/report.html"' in page.replace("rollout/", "")
    assert "9.50x" in page


def test_without_reports_the_page_leads_to_the_numbers(tmp_path):
    plain = matrix()
    plain["cells"] = [{**cell, "report": False} for cell in plain["cells"]]
    page = write_matrix(plain, tmp_path).read_text()
    assert "report.html" not in page and 'href="cells/a--b/result.json"' in page.replace("rollout/", "")


def test_same_matrix_gives_the_same_bytes(tmp_path):
    first = write_matrix(matrix(), tmp_path).read_bytes()
    assert write_matrix(matrix(), tmp_path).read_bytes() == first


def test_terminal_and_markdown_say_what_failed_and_what_is_exact():
    stream = io.StringIO()
    render_matrix_terminal(matrix(), Console(file=stream, width=160, no_color=True))
    for text in (stream.getvalue(), render_matrix_markdown(matrix())):
        assert "EXACT" in text
        assert "failed" in text
        assert "\x1b[31m" not in text
        assert "Farthest apart: rollout/a read by rollout/b" in text


def test_a_matrix_without_one_measured_pair_still_has_a_page(tmp_path):
    empty = {**matrix(), "cells": []}
    assert "no pair was measured" in write_matrix(empty, tmp_path).read_text()
    assert not (tmp_path / "matrix.png").exists()
