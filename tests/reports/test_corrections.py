"""The parts on corrections: every method by family, sweeps, lengths and stalenesses, ablations, fits."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from reports.sample import Result, dense, drifting, inconclusive
from rich.console import Console

from mismatch_probe.simulate.families import FAMILIES
from mismatch_probe_reports import format as fmt
from mismatch_probe_reports import render_markdown_parts, render_terminal_parts
from mismatch_probe_reports.figures import weight_curves, weight_extrapolation, weight_sweep
from mismatch_probe_reports.figures.canvas import Missing, Plot, to_svg
from mismatch_probe_reports.figures.heat_map import cell_text
from mismatch_probe_reports.figures.weight_data import read_curve, read_spread
from mismatch_probe_reports.sections.simulation import build_simulation
from mismatch_probe_reports.sections.staleness import build_staleness
from mismatch_probe_reports.sections.tuning import build_tuning
from mismatch_probe_reports.sections.weights import MAIN, build_weights
from mismatch_probe_reports.tables import Cell, Section, Table


def table(section: Section, name: str) -> Table:
    return next(found for found in (*section.tables, *section.brief) if found.name == name)


def row(section: Section, name: str, head: str, column: int = 0) -> tuple[Cell, ...]:
    return next(cells for cells in table(section, name).rows if cells[column].text.startswith(head))


def test_methods_stand_in_their_families_and_the_brief_table_has_the_main_ones() -> None:
    result = drifting()
    section = build_weights(result)
    headings = [heading for heading, _ in table(section, "methods").groups]
    known = [name for name in FAMILIES if any(m["family"] == name for m in result["weights"].values())]
    assert headings == known and len(headings) == len(set(headings))
    assert len(table(section, "methods").rows) == len(result["weights"])
    brief = table(section, "methods-main")
    assert brief.name not in [found.name for found in section.tables]
    assert len(brief.rows) == sum(name in MAIN for name in result["weights"]) and "more method" in brief.note
    vespo, cells = result["weights"]["vespo"], row(section, "methods", "VESPO", 1)
    assert cells[5].text == fmt.near_one(vespo["positive_mass"]["value"])
    assert cells[9].text == f"{vespo['empty_tokens']:,} / {vespo['empty_sequences']:,}"


def test_a_method_that_failed_shows_its_reason_and_no_numbers() -> None:
    result = drifting()
    result["weights"]["gspo"] = {"label": "GSPO", "available": False, "reason": "it divides by nothing"}
    section = build_weights(result)
    cells = next(c for c in table(section, "methods").rows if c[1].text == "GSPO")
    assert cells[2].reason == "it divides by nothing" and {cell.text for cell in cells[3:]} == {""}
    assert "GSPO" not in [cells[0].text for cells in table(section, "weights-parameters").rows]
    assert isinstance(weight_curves.SEQUENCES.prepare(result), Plot)


def test_bias_and_variance_are_one_row_where_none_can_be_had() -> None:
    section = build_weights(drifting())
    bias = table(section, "weights-bias")
    result = drifting()
    for method in result["weights"].values():
        for key in ("bias", "variance_ratio"):
            method["against_sequence_is"][key] = {"value": None, "n": 5, "reason": "k-hat is too high"}
    folded = table(build_weights(result), "weights-bias")
    assert len(bias.rows) == len(result["weights"])
    assert [cells[0].text for cells in folded.rows] == ["all methods"] and not folded.collapsed
    assert folded.rows[0][1].reason == "k-hat is too high"


def test_sweeps_lengths_stalenesses_and_ablations_show_the_numbers_of_the_result() -> None:
    result = drifting()
    section = build_simulation(result)
    simulation = result["simulation"]
    points = simulation["extrapolation"]["points"]
    longest = simulation["extrapolation"]["longest_measured"]
    lengths = sorted({point["length"] for point in points})
    heads = [column.title for column in table(section, "extrapolation-length").columns[1:]]
    assert heads == [f"{length:,}{'' if length <= longest else ' *'}" for length in lengths]
    assert [c.title for c in table(section, "extrapolation-staleness").columns[1:]] == ["N = 1", "N = 8"]
    at = next(p for p in points if (p["length"], p["staleness"]) == (longest, 8))
    masses = [at["responses"]["vespo"][key]["value"] for key in ("positive_mass", "negative_mass")]
    shown = row(section, "extrapolation-staleness", "VESPO")[2].text
    assert shown == " / ".join(f"{mass:.3f}" for mass in masses)
    variants = simulation["ablations"]["variants"]
    assert len(table(section, "ablations").rows) == len(variants)
    lin = row(section, "ablations", "log W / T", 1)
    assert lin[2].text == fmt.near_one(variants["vespo_lin"]["positive_mass"]["value"])
    first = table(section, "sweep-0")
    assert first.collapsed and len(first.rows) == 25
    assert [cells[0].text for cells in first.rows if cells[0].tone] == ["k_pos = 2, lambda_pos = 3 (default)"]


def test_what_was_not_simulated_says_how_to() -> None:
    for build, verb in (
        (build_simulation, "simulate"),
        (build_staleness, "simulate"),
        (build_tuning, "tune"),
    ):
        assert f"mismatch-probe {verb}" in build(inconclusive()).missing
    for source in (weight_sweep, weight_extrapolation):
        assert isinstance(source.prepare(inconclusive()), Missing)
    fresh = build_simulation(dense())
    assert not any(found.name == "extrapolation-staleness" for found in fresh.tables)
    assert any(note.startswith("Left out: how far an update moves") for note in fresh.notes)
    assert "--staleness-from" in build_staleness(dense()).missing


def test_a_law_and_its_checkpoints_are_shown_with_reasons() -> None:
    result = drifting()
    one = {"value": 1e-4, "ci_low": 5e-5, "ci_high": 2e-4, "n": 700}
    point = {
        "steps": 8.0,
        "kl": one,
        "half_square": one,
        "std_log_weight": one,
        "std_total": one,
        "gaussian_std": 0.1,
    }
    result["simulation"]["staleness"].update(
        kl_per_step=one,
        growth={"value": 1.0, "ci_low": None, "ci_high": None, "n": 700, "reason": "one checkpoint"},
        misfit=1.2,
        points=[
            {**point, "fitted": True},
            {**point, "steps": 1.0, "fitted": False, "reason": "it is rounding"},
        ],
    )
    section = build_staleness(result)
    assert row(section, "staleness-law", "KL per step")[1].detail == "[5.00e-5, 0.000200]"
    assert row(section, "staleness-law", "Growth")[1].reason == "one checkpoint"
    rows = table(section, "staleness-checkpoints").rows
    assert [cells[-1].text for cells in rows] == ["yes", "no"] and rows[1][-1].reason == "it is rounding"
    assert "eight of them by 0.000800" in section.lead


def test_fits_show_rates_bands_and_whether_held_out_prompts_agree() -> None:
    result = drifting()
    section = build_tuning(result)
    vespo, geo = result["tuning"]["vespo"], result["tuning"]["geo_rs"]
    assert row(section, "tuning-0", "lambda")[1].text == fmt.number(vespo["positive"]["rate"]["value"])
    assert row(section, "tuning-0", "Budget C")[2].text == "1.1"
    held_out = vespo["negative"]["check"]["held_out"]
    assert row(section, "tuning-0", "E_Q[W], held-out")[2].text == fmt.number(held_out["value"])
    said = {True: "yes", False: "no", None: "not judged"}
    assert row(section, "tuning-0", "Meets")[1].text == said[vespo["positive"]["check"]["meets"]]
    assert row(section, "tuning-1", "low")[1].text == f"{geo['thresholds']['low']['value']:.6g}"
    geo["check"] = None
    vespo["negative"].update(note="alpha is below 1", tilt={**vespo["negative"]["tilt"], "bound": None})
    changed = build_tuning(result)
    assert row(changed, "tuning-1", "Meets")[1].text == "not judged" and "too few prompts" in changed.lead
    assert row(changed, "tuning-0", "Bound")[2].reason == "alpha is below 1"
    assert "A < 0: alpha is below 1." in table(changed, "tuning-0").note


def test_heat_maps_where_staleness_is_known_and_lines_where_it_is_not() -> None:
    both, fresh = (weight_extrapolation.prepare(result()) for result in (drifting, dense))
    assert isinstance(both, Plot) and isinstance(fresh, Plot)
    assert "staleness N" in to_svg(both) and "N = 8" in both.caption
    assert "staleness N" not in to_svg(fresh) and "longest measured" in to_svg(fresh)
    assert "Staleness was not measured" in fresh.caption or "none of these" in fresh.caption


def test_a_sweep_that_does_not_fit_its_grid_is_left_out() -> None:
    result = drifting()
    sweeps = result["simulation"]["sweeps"]
    assert [sweep.quantity() for raw in sweeps if (sweep := weight_sweep.read_sweep(raw))] == [
        "positive_mass", "mean", "kept_fraction",
    ]  # fmt: skip
    del sweeps[0]["points"][0]
    assert weight_sweep.read_sweep(sweeps[0]) is None
    plot = weight_sweep.prepare(result)
    assert isinstance(plot, Plot) and "2 of 3 sweeps" in plot.title
    result["simulation"]["sweeps"] = sweeps[:1]
    assert isinstance(weight_sweep.prepare(result), Missing)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (0.004, "<.01"), (0.05, ".05"), (0.98, ".98"), (0.998, ".998"), (0.99991, "1"), (1.0, "1"),
        (1.24, "1.2"), (12.3, "12"), (4e5, "4e5"), (-0.25, "-.25"),
    ],
)  # fmt: skip
def test_cells_are_short(value: float, text: str) -> None:
    assert cell_text(value) == text


def test_a_line_keeps_its_corners_and_loses_what_lies_on_it() -> None:
    grid = np.linspace(-2, 2, 401)
    heights = np.where(grid < 0.5, 1.0 + 0.2 * grid, 0.0)
    kept = weight_curves._corners(grid, heights, (-2.0, 2.0))
    assert kept.sum() <= 6
    assert (
        np.abs(np.interp(grid, grid[kept], heights[kept]) - heights).max()
        <= weight_curves.CORNER * weight_curves.TOP
    )
    assert not weight_curves._corners(grid, heights, (5.0, 6.0)).any()


def test_curves_are_scaled_by_what_an_undisturbed_response_gets() -> None:
    method: dict[str, Any] = {
        "label": "LUSPO",
        "curve": {"over": "log_weight", "grid": [-1, 0, 1], "positive": [40, 50, 0], "negative": [0, 50, 60]},
    }
    curve = read_curve("luspo", method)
    assert curve is not None and curve.undisturbed() == 50.0
    method["curve"]["positive"][1] = 1.0
    plain = read_curve("luspo", method)
    assert plain is not None and plain.undisturbed() == 1.0
    points = {
        "over": "log_ratio",
        "edges": [-1, 0, 1],
        "positive": [None, 2.0],
        "negative": [1.0, None],
        "n": [3, 4],
    }
    binned = read_curve("m2po", {"label": "M2PO", "curve": None, "points": points})
    assert binned is not None and not binned.continuous and binned.grid.tolist() == [-0.5, 0.5]
    spread = read_spread(points)
    assert spread is not None and spread.span() == (-1.0, 1.0)
    assert (
        read_spread({"edges": [0, 1], "n": [1, 2]}) is None
        and read_spread({"edges": [1, 0], "n": [1]}) is None
    )


@pytest.mark.parametrize("width", [60, 110])
def test_parts_are_printed_alone(width: int) -> None:
    console = Console(width=width, record=True, file=open("/dev/null", "w"), color_system=None)  # noqa: PTH123, SIM115
    result = drifting()
    render_terminal_parts(result, ("simulation", "tuning"), console)
    text = console.export_text()
    assert (
        "Simulation: other" in text and "geo_rs: low" in " ".join(text.split()) and "K3 per token" not in text
    )
    assert max(len(line) for line in text.splitlines()) <= width


def test_parts_in_markdown_are_tables_and_escaped() -> None:
    result = drifting()
    result["simulation"]["sweeps"][0]["label"] = "<b>|@x"
    text = render_markdown_parts(result, ("simulation", "staleness"))
    assert text.startswith("### Simulation") and "| Method |" in text and "### Staleness" in text
    assert "<b>" not in text and re.search(r"\\\|&#64;x", text)
    assert "Not available" in render_markdown_parts({"tuning": {}}, ("simulation",))


@pytest.mark.parametrize("key", ["staleness", "sweeps", "extrapolation", "ablations", "sign_basis"])
@pytest.mark.parametrize("value", ["gone", None, {}, [], [1, "x"], "words"])
def test_a_simulation_without_a_part_still_makes_its_sections_and_figures(key: str, value: object) -> None:
    result: Result = drifting()
    del result["simulation"][key]
    if value != "gone":
        result["simulation"][key] = value
    assert build_simulation(result).title and build_staleness(result).title
    for source in (weight_sweep, weight_extrapolation):
        assert isinstance(source.prepare(result), Plot | Missing)
