"""Figures: drawn without a warning, the same every time, left out with a reason, true to the numbers."""

import itertools
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reports.sample import SAMPLES, bare, dense, drifting, exact

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports import write_figures
from mismatch_probe_reports.figures import (
    SOURCES,
    ecdf,
    log_weight_length,
    prepare_figures,
    token_probability,
    waterfall,
    weights,
)
from mismatch_probe_reports.figures.canvas import Missing, Plot, to_png, to_svg
from mismatch_probe_reports.figures.style import CSS_VARIABLES

NAMES = [
    "waterfall", "token_probability", "ecdf", "log_weight_length",
    "weights", "weight_curves_sequence", "weight_curves_token", "weight_sweep", "weight_extrapolation",
    "routing", "routing_flips", "ablation", "location",
]  # fmt: skip
# Drawn from what `ablate` and `locate` add; their own tests draw them.
OTHER_VERBS = ("ablation", "location")


def png_size(content: bytes) -> tuple[int, int]:
    assert content.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", content[16:24])
    return width, height


@pytest.mark.parametrize("name", SAMPLES)
def test_every_sample_draws_without_a_warning(name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = prepare_figures(SAMPLES[name]())
        assert [figure.name for figure in figures] == NAMES
        written = write_figures(SAMPLES[name](), tmp_path)
    drawn = [figure.name for figure in figures if isinstance(figure, Plot)]
    assert [path.name for path in written] == [f"{figure}.png" for figure in drawn]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in written)
    for path in written:
        width, height = png_size(path.read_bytes())
        assert width == 1600 and 400 < height < 2000
    for figure in figures:
        if isinstance(figure, Missing):
            assert len(figure.reason) > 10 and figure.reason in str(figure)
        else:
            assert "n = " in figure.title and len(figure.caption) > 30


def test_drawings_are_the_same_every_time_and_apart_from_each_other() -> None:
    plots = [figure for figure in prepare_figures(dense()) if isinstance(figure, Plot)]
    drawings = [to_svg(plot) for plot in plots]
    assert drawings == [to_svg(plot) for plot in plots]
    assert to_png(plots[0]) == to_png(plots[0])
    assert len(set(drawings)) == len(plots)


def test_inlined_drawing_follows_the_page_theme() -> None:
    for plot in prepare_figures(drifting()):
        if plot.name in OTHER_VERBS:
            continue
        assert isinstance(plot, Plot)
        svg = to_svg(plot)
        assert not [colour for colour in CSS_VARIABLES if colour in svg] and "var(--fg)" in svg
        assert "<style" not in svg and "<metadata" not in svg and "<?xml" not in svg
        assert "<text" in svg, "text stays text"
        used = {variable for variable in CSS_VARIABLES.values() if variable in svg}
        assert used <= set(CSS_VARIABLES.values())


def test_a_reader_of_a_user_style_gets_the_same_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    plot = waterfall.prepare(dense())
    assert isinstance(plot, Plot)
    before = to_png(plot)
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 30.0)
    monkeypatch.setitem(matplotlib.rcParams, "axes.facecolor", "red")
    assert to_png(plot) == before
    assert matplotlib.rcParams["font.size"] == 30.0


def test_style_sheet_defines_every_colour_for_light_and_dark() -> None:
    from importlib.resources import files

    sheet = (files("mismatch_probe_reports") / "assets" / "style.css").read_text()
    for variable in CSS_VARIABLES.values():
        assert f"{variable[4:-1]}: light-dark(" in sheet


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_contrast_is_enough_in_both_themes() -> None:
    import re
    from importlib.resources import files

    sheet = (files("mismatch_probe_reports") / "assets" / "style.css").read_text()
    pairs = {
        name: shades for name, *shades in re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", sheet)
    }
    for theme in (0, 1):
        page = pairs["bg"][theme]
        for name in ("fg", "muted", "link", "pass", "fail", "warn", "info"):
            assert contrast(pairs[name][theme], page) >= 4.5, (name, theme)
        for name in ("pass", "fail", "warn", "info", "muted"):
            assert contrast(pairs[name][theme], pairs[f"{name}-bg"][theme]) >= 4.5, (name, theme)
        for index in range(1, 7):
            assert contrast(pairs[f"series-{index}"][theme], page) >= 3.0


@pytest.mark.parametrize("source", SOURCES)
def test_least_result_has_no_figure_and_a_reason(source: Any) -> None:
    assert isinstance(source.prepare(bare()), Missing)


def test_an_exact_run_says_so_and_draws_no_drift() -> None:
    figures = {figure.name: figure for figure in prepare_figures(exact())}
    for name in ("token_probability", "ecdf"):
        missing = figures[name]
        assert isinstance(missing, Missing) and "agree exactly" in missing.reason
    plot = figures["waterfall"]
    assert isinstance(plot, Plot) and "exact" in plot.caption
    assert "EXACT (0 on every token)" in to_svg(plot)


def test_waterfall_stacks_add_up_to_the_total() -> None:
    steps = [
        {"from": "a", "to": "b", "role": "chain", "k3": {"value": 0.002, "n": 10}, "exact": False},
        {"from": "b", "to": "c", "role": "chain", "k3": {"value": 0.005, "n": 10}, "exact": False},
        {"from": "a", "to": "c", "role": "total", "k3": {"value": 0.006, "n": 10}, "exact": False},
    ]
    bars = [waterfall._bar(step) for step in steps]
    stacked = waterfall._stack(bars[:2], bars[2])
    assert [bar.start for bar in stacked] == [0.0, 0.002, pytest.approx(0.007), 0.0]
    assert stacked[2].k3.value == pytest.approx(-0.001)
    plot = waterfall.prepare({"legs": {"steps": steps, "floor": {"k3": 0.0015, "source": "train/repeat"}}})
    assert isinstance(plot, Plot)
    assert "The largest step is b -> c" in plot.caption and "4.00x" in plot.caption
    assert "steps stacked" in to_svg(plot)


def test_steps_of_different_magnitude_go_to_a_log_scale() -> None:
    result = dense()
    result["legs"]["steps"][1]["k3"] = {"value": 1e-12, "ci_low": 0.0, "ci_high": 1e-11, "n": 5}
    result["legs"]["steps"][1]["exact"] = False
    plot = waterfall.prepare(result)
    assert isinstance(plot, Plot)
    assert "log scale, side by side" in to_svg(plot)


def test_a_step_without_a_number_shows_its_reason() -> None:
    result = dense()
    result["legs"]["steps"][1].update(exact=False, k3={"value": None, "n": 0, "reason": "the leg broke off"})
    plot = waterfall.prepare(result)
    assert isinstance(plot, Plot)
    assert "n/a: the leg broke off" in to_svg(plot)


def test_medians_of_the_histogram_are_those_of_the_tokens() -> None:
    rng = np.random.default_rng(3)
    probability, drift = rng.uniform(1e-3, 1, 4000), rng.normal(-3, 0.5, 4000)
    counts, x, y = np.histogram2d(probability, drift, bins=[np.linspace(0, 1, 5), np.linspace(-6, 0, 241)])
    raw = {"x_edges": x.tolist(), "y_edges": y.tolist(), "counts": counts.tolist()}
    histogram = token_probability.read_histogram(raw)
    assert histogram is not None
    expected = [np.median(drift[(probability >= a) & (probability < b)]) for a, b in itertools.pairwise(x)]
    np.testing.assert_allclose(histogram.medians(), expected, atol=0.025)


def test_histogram_that_does_not_fit_is_refused() -> None:
    good = {"x_edges": [0.1, 0.5, 1.0], "y_edges": [-3, -2, -1, 0], "counts": [[1, 2, 3], [4, 5, 6]]}
    assert token_probability.read_histogram(good) is not None
    for change in (
        {"counts": [[1, 2], [3, 4]]},
        {"counts": [[1], [2, 3]]},
        {"x_edges": [1.0, 0.5, 0.1]},
        {"y_edges": None},
    ):
        assert token_probability.read_histogram({**good, **change}) is None


def test_log10_probability_edges_are_understood() -> None:
    raw = {"x_edges": [-3, -2, 0], "y_edges": [-2, -1, 0], "counts": [[1, 0], [0, 5]]}
    histogram = token_probability.read_histogram(raw)
    assert histogram is not None
    np.testing.assert_allclose(histogram.probability, [1e-3, 1e-2, 1.0])


def test_band_holds_the_sequences_that_it_should() -> None:
    rng = np.random.default_rng(5)
    length = rng.integers(50, 500, 2000)
    log_weight = -1e-3 * length + rng.normal(0, 0.05, 2000) * np.sqrt(length)
    sequence = {"num_sequences": 2000, "length_law": {"kappa": {"value": 1e-3}}}
    scatter = log_weight_length._scatter(sequence, length.astype(float), log_weight, np.full(2000, np.nan))
    assert scatter.sigma == pytest.approx(0.05, rel=0.05)
    assert scatter.inside() == pytest.approx(0.954, abs=0.02)


def test_recommended_method_is_drawn_and_the_rest_is_counted() -> None:
    result = drifting()
    result["recommendation"]["method"] = "seq_is"
    plot = weights.prepare(result)
    assert isinstance(plot, Plot)
    assert result["weights"]["seq_is"]["label"] in to_svg(plot)
    assert "6 of 8 methods of sequences" in plot.title


@pytest.mark.parametrize(
    ("wild", "conclusion"), [(0.0, "noise that adds up"), (0.25, "drift far more than the rest")]
)
def test_caption_tells_noise_from_a_few_wild_sequences(wild: float, conclusion: str) -> None:
    rng = np.random.default_rng(9)
    length = rng.integers(50, 200, 400)
    spread = np.where(rng.random(400) < wild, 0.5, 0.03)
    law = {"kappa": {"value": 0.0}, "variance_per_token": {"value": 0.03**2}}
    scatter = {
        "length": length.tolist(),
        "log_weight": (rng.normal(size=400) * spread * np.sqrt(length)).tolist(),
    }
    plot = log_weight_length.prepare(
        {"sequence": {"num_sequences": 400, "length_law": law, "scatter": scatter}}
    )
    assert isinstance(plot, Plot)
    assert conclusion in plot.caption


ECDF_LEVELS = [*np.linspace(0, 1, 101).tolist()[:-1], 0.999, 0.9999, 1.0]


def ecdf_token(drift: Any, **more: Any) -> dict[str, Any]:
    """The section `token` for tokens of the given |log-ratio|."""
    named = [0.5, 0.99, 0.999, 1.0]
    return {
        "token": {
            "num_tokens": len(drift),
            "max_abs_log_ratio": float(np.max(drift)),
            "by_probability": {"num_exact_zero": int(np.count_nonzero(drift == 0))},
            "quantiles": {"levels": named, "abs_log_ratio": np.quantile(drift, named).tolist()},
            "ecdf": {"levels": ECDF_LEVELS, "abs_log_ratio": np.quantile(drift, ECDF_LEVELS).tolist()},
            **more,
        }
    }


@pytest.mark.parametrize(
    ("heavy", "conclusion"), [(False, "spread over all tokens"), (True, "drift sits in few tokens")]
)
def test_caption_of_the_distribution_tells_a_tail_from_gaussian_noise(heavy: bool, conclusion: str) -> None:
    rng = np.random.default_rng(4)
    noise = np.abs(rng.normal(0, 1e-3, 20_000))
    drift = np.where(rng.random(20_000) < 0.01, noise * 100, noise) if heavy else noise
    plot = ecdf.prepare(ecdf_token(drift))
    assert isinstance(plot, Plot)
    assert conclusion in plot.caption
    for level in (0.5, 0.99, 0.999, 1.0):
        assert fmt.number(float(np.quantile(drift, level))) in plot.caption
    assert "Not one of the 20,000 tokens is exactly equal" in plot.caption


def test_gaussian_spread_is_that_of_a_normal_law() -> None:
    from scipy.stats import norm

    assert pytest.approx(norm.ppf(0.9995) / norm.ppf(0.75), abs=0.005) == ecdf.GAUSSIAN_SPREAD


def test_exactly_equal_tokens_are_a_labelled_step() -> None:
    drift = np.concatenate([np.zeros(600), np.geomspace(1e-6, 0.1, 1400)])
    plot = ecdf.prepare(ecdf_token(drift))
    assert isinstance(plot, Plot)
    assert "exactly equal (0): 30.0 %" in to_svg(plot)
    assert "600 of 2,000 tokens are exactly equal" in plot.caption
    most = ecdf.prepare(ecdf_token(np.concatenate([np.zeros(1500), np.full(500, 0.1)])))
    assert isinstance(most, Plot) and "do not move at all" in most.caption


def test_tail_of_the_distribution_ends_where_single_tokens_end() -> None:
    drift = np.geomspace(1e-6, 1.0, 200)
    shown = ecdf.Distribution(np.array(ECDF_LEVELS), np.quantile(drift, ECDF_LEVELS), 200, 0, ())
    value, above = shown.tail()
    assert above.min() > 1 / 200 and np.all(np.diff(value) > 0) and np.all(np.diff(above) < 0)
    for place, share in zip(value, above, strict=True):
        assert np.mean(drift > place) == pytest.approx(share, abs=1 / 200 + 1e-9)
    plot = ecdf.prepare(ecdf_token(drift))
    assert isinstance(plot, Plot) and "too few to judge the tail" in plot.caption


@pytest.mark.parametrize(
    "raw",
    [
        None,
        {"levels": [0.0, 1.0], "abs_log_ratio": [0.1]},
        {"levels": [1.0, 0.0], "abs_log_ratio": [0.1, 0.2]},
        {"levels": [0.0, 0.5, 1.0], "abs_log_ratio": [0.2, 0.1, 0.3]},
        {"levels": [0.0, 1.0], "abs_log_ratio": [None, 0.2]},
        {"levels": [0.0, 1.0], "abs_log_ratio": [0.0, 0.2]},
    ],
)
def test_distribution_that_cannot_be_drawn_says_why(raw: object) -> None:
    figure = ecdf.prepare(ecdf_token(np.array([0.1, 0.2]), ecdf=raw))
    assert isinstance(figure, Missing) and len(figure.reason) > 10


def test_distribution_without_counts_or_quantiles_is_still_drawn() -> None:
    result = drifting()
    kept = {"ecdf": result["token"]["ecdf"]}
    plot = ecdf.prepare({"token": kept})
    assert isinstance(plot, Plot)
    assert "names no quantiles" in plot.caption and "exactly equal" not in to_svg(plot)
