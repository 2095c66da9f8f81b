"""Every figure says what it shows, of how many, in which unit, and what to conclude."""

import re

import pytest
from reports.test_ablation_figure import result as ablated
from reports.test_location import located

from mismatch_probe_reports.figures import prepare_figures
from mismatch_probe_reports.figures.canvas import Plot, to_svg
from reports import sample

PLOTS = {
    plot.name: plot
    for made in (sample.drifting(), sample.dense(), ablated(), located())
    for plot in prepare_figures(made)
    if isinstance(plot, Plot)
}
UNITS = ("nats", "share", "%", "tokens", "layer", "log W", "ratio", "weight", "probability", "x", "times")


@pytest.mark.parametrize("name", sorted(PLOTS))
def test_a_figure_has_n_units_and_a_conclusion(name: str) -> None:
    plot = PLOTS[name]
    assert re.search(r"\bn = [\d,]+", plot.title), plot.title
    assert len(plot.caption.split()) >= 5 and plot.caption.rstrip().endswith((".", "?")), plot.caption
    words = " ".join(re.findall(r">([^<>]+)</text>", to_svg(plot)))
    assert any(unit in words for unit in UNITS), words


def test_no_figure_is_left_out() -> None:
    from mismatch_probe_reports.figures import SOURCES

    assert len(PLOTS) == len(SOURCES)
