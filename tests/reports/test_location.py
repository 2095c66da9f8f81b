"""The part of the report that says where hidden states part."""

import io

import numpy as np
import pytest
from rich.console import Console

from mismatch_probe.causes.localisation import LocationSums
from mismatch_probe.engines.layer_sites import FUSED, MEANINGS
from mismatch_probe.result import to_json
from mismatch_probe_reports import render_terminal_parts
from mismatch_probe_reports.figures import location
from mismatch_probe_reports.figures.canvas import Missing, Plot, to_png, to_svg
from mismatch_probe_reports.html import render_html


@pytest.fixture
def result():
    return located()


def located():
    """Five layers whose qkv_proj is planted wrong in layer 3; everything else differs by rounding."""
    rng = np.random.default_rng(0)
    rollout, train, reference = {}, {}, {}
    for layer in range(5):
        rollout[f"{layer}.layer.in"] = rng.normal(size=(20, 8))
        for unit in ("qkv_proj", "o_proj", "layer"):
            name = f"{layer}.{unit}.out"
            reference[name] = rng.normal(size=(20, 8))
            rollout[name] = reference[name] + 1e-3 * rng.normal(size=(20, 8))
            train[name] = reference[name] + 1e-3 * rng.normal(size=(20, 8))
    rollout["3.qkv_proj.out"] += 0.1
    free = {name: rows for name, rows in train.items() if "layer" in name}
    sums = LocationSums()
    sums.add(rollout, [free, reference], [train, reference], None)
    facts = {"name": "vllm", "version": "1", "dtype": "bfloat16", "device": "cpu"}
    return {
        "location": {
            **to_json(sums.location()), "num_sequences": 1, "num_tokens": 20, "rollout": facts, "train": facts,
            "meanings": MEANINGS, "fused": {key: list(parts) for key, parts in FUSED.items()},
        }
    }  # fmt: skip


def test_the_planted_module_is_named_everywhere(result):
    plot = location.prepare(result)
    assert isinstance(plot, Plot)
    assert "layer 3 qkv_proj" in plot.caption
    assert to_png(plot).startswith(b"\x89PNG")
    assert to_svg(plot) == to_svg(plot)
    stream = io.StringIO()
    render_terminal_parts(result, ("location",), Console(file=stream, width=150, no_color=True))
    page = render_html(result)
    for text in (stream.getvalue(), page):
        assert "The sides part at layer 3 qkv_proj" in text
        assert "stands out" in text
    assert "q_proj, k_proj, v_proj" in page


def test_a_result_without_a_location_says_how_to_get_one():
    missing = location.prepare({})
    assert isinstance(missing, Missing)
    assert "mismatch-probe locate" in missing.reason
    assert "mismatch-probe locate RUN" in render_html({})


def test_axes_are_written_in_plain_numbers(result):
    assert "mathdefault" not in to_svg(location.prepare(result))
