"""The routing part and its figures: what is shown, ranked, folded away, and said where numbers are missing."""

import numpy as np
import pytest
from reports.sample import NUM_LAYERS, dense, drifting, exact

from mismatch_probe_reports.figures import routing as by_layer
from mismatch_probe_reports.figures import routing_flips
from mismatch_probe_reports.figures.canvas import Missing, Plot, to_svg
from mismatch_probe_reports.sections.routing import build_routing
from mismatch_probe_reports.tables import Table


def tables(result) -> dict[str, Table]:
    return {table.name: table for table in build_routing(result).tables}


def test_every_layer_has_a_row_and_many_are_folded_away():
    result = drifting()
    layers = tables(result)["routing-layers"]
    assert len(layers.rows) == NUM_LAYERS and layers.collapsed
    result["routing"]["layers"] = result["routing"]["layers"][:12]
    assert not tables(result)["routing-layers"].collapsed
    assert all(len(row) == len(layers.columns) for row in layers.rows)


def test_layers_are_ranked_by_what_they_explain():
    result = drifting()
    ranked = tables(result)["replay-layers"]
    assert [row[0].text for row in ranked.rows] == [str(rank) for rank in range(1, NUM_LAYERS + 1)]
    # In the sample the share rises with the layer.
    assert [row[1].text for row in ranked.rows] == [str(layer) for layer in reversed(range(NUM_LAYERS))]
    assert "all layers together explain" in ranked.note and "sequences" in ranked.note


def test_self_replay_is_exact_or_called_out():
    result = drifting()
    first = tables(result)["replay-controls"].rows[0]
    assert first[1].text == "EXACT" and "nothing" in first[3].text
    result["routing"]["replay"]["self_replay"].update(exact=False, max_abs_change=0.02, num_changed=7)
    first = tables(result)["replay-controls"].rows[0]
    assert first[1].text == "0.0200" and first[1].tone == "fail" and "not to be trusted" in first[3].text


def test_missing_gate_weights_are_said_once():
    result = drifting()
    assert "recomputes them" in tables(result)["replay-controls"].note
    layers = tables(result)["routing-layers"]
    assert sum("gate weights were not recorded" in part for part in (layers.note,)) == 1


def test_drift_by_flips_and_by_first_flip_have_intervals_and_counts():
    result = drifting()
    found = tables(result)
    assert found["flips"].rows[0][0].text == "0" and found["flips"].rows[1][3].detail.startswith("[")
    assert found["first-flip"].rows[-1][0].text == "none"
    total = sum(row["n"] for row in result["routing"]["log_ratio_by_first_flip"])
    assert total == sum(row["n"] for row in result["routing"]["log_ratio_by_flips"])


def test_histogram_shares_add_up_to_all_tokens():
    result = drifting()
    rows = tables(result)["flips-histogram"].rows
    counts = [int(row[1].text.replace(",", "")) for row in rows]
    completeness = result["routing"]["completeness"]
    assert sum(counts) == completeness["tokens"] - completeness["missing"]


def test_a_dense_model_has_a_reason_and_nothing_else():
    section = build_routing(dense())
    assert "dense" in section.missing and not section.tables
    assert isinstance(by_layer.prepare(dense()), Missing) and isinstance(
        routing_flips.prepare(dense()), Missing
    )


def test_no_flip_leaves_nothing_to_compare():
    missing = routing_flips.prepare(exact())
    assert isinstance(missing, Missing) and "no response token" in missing.reason


def test_figure_shows_what_layers_explain_only_where_it_was_measured():
    result = drifting()
    plot = by_layer.prepare(result)
    assert isinstance(plot, Plot) and "Replayed alone, layer 15 explains most" in plot.caption
    assert "routing explains of the K3" in to_svg(plot)
    result["routing"]["replay"]["by_layer"] = {"available": False, "reason": "not taken"}
    plain = by_layer.prepare(result)
    assert isinstance(plain, Plot) and "explains of the K3" not in to_svg(plain)
    assert plain.height_inches < plot.height_inches


def test_points_without_an_interval_are_hollow_and_said_so():
    result = drifting()
    plot = routing_flips.prepare(result)
    assert isinstance(plot, Plot)
    for row in result["routing"]["log_ratio_by_flips"]:
        row["k3"].update(ci_low=None, ci_high=None)
    hollow = routing_flips.prepare(result)
    assert isinstance(hollow, Plot) and "Hollow" in hollow.caption


@pytest.mark.parametrize("scale", [1e-290, 1e290])
def test_drift_at_the_ends_of_float64_is_drawn(scale):
    result = drifting()
    for row in result["routing"]["log_ratio_by_flips"]:
        row["k3"] = {"value": scale * (1 + row["flips"]), "ci_low": scale / 10, "ci_high": scale * 10, "n": 5}
    plot = routing_flips.prepare(result)
    assert isinstance(plot, Plot) and "log scale" in to_svg(plot)


def test_flip_rates_are_those_of_the_bins():
    bins = drifting()["routing"]["margins"]["bins"]
    read = routing_flips._bars(bins, "flip_rate", routing_flips._margin_label)
    assert read is not None
    np.testing.assert_allclose(read.value, [row["flipped"] / row["n"] for row in bins])
