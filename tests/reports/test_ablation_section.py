"""The ablation part of a report: what is ranked, what is only said, and weights that a load got wrong."""

from mismatch_probe_reports.sections.ablation import MAX_MODULES, build_ablation


def row(knob, **fields):
    return {
        "knob": knob,
        "changes": "one thing",
        "unavailable": None,
        "prefill": None,
        "change": None,
        **fields,
    }


CHANGE = {
    "k3_change": {"value": 0.25, "ci_low": 0.2, "ci_high": 0.3, "n": 9}, "floors": 12.0, "p_holm": 0.01,
    "std_change": {"value": 1.5, "ci_low": 1.0, "ci_high": 2.0, "n": 3}, "mean_abs": 0.5,
    "identical_fraction": 0.1,
}  # fmt: skip
STEP = {"mean_abs": {"value": 0.4, "n": 9}, "max_abs": 2.0, "identical_fraction": 0.0, "exact": False}


def refit(differences):
    case = {
        "unavailable": None, "decode": STEP, "prefill": {**STEP, "exact": True, "max_abs": 0.0},
        "weights": {"compared": 63, "unread": ["gate.weight"], "differences": differences},
    }  # fmt: skip
    return {"ablation": {"findings": [], "refit": {"same": case, "updated": {"unavailable": "it refused"}}}}


def test_without_an_ablation_the_part_says_how_to_make_one():
    assert "mismatch-probe ablate" in build_ablation({}).missing


def test_knobs_not_in_effect_or_unavailable_are_said_not_ranked():
    section = build_ablation({
        "ablation": {
            "num_prompts": 2, "num_tokens": 9, "findings": [], "rows": [
                row("loud", in_effect=True, change=CHANGE), row("mute", in_effect=False, change=CHANGE),
                row("gone", unavailable="no kernel"),
            ],
        }
    })  # fmt: skip
    (table,) = section.tables
    assert [cells[0].text for cells in table.rows] == ["loud"]
    assert table.rows[0][1].text == "0.250"
    assert any("mute" in note and "not in effect" in note for note in section.notes)
    assert any("gone" in note and "no kernel" in note for note in section.notes)


def test_weights_that_differ_are_named_and_unread_ones_counted():
    difference = {"name": "experts.w2", "what": "differs", "max_abs": 0.5, "differing_fraction": 0.99}
    section = build_ablation(refit([difference]))
    loads, weights = section.tables
    assert [cells[2].text for cells in loads.rows] == ["0.400", "EXACT"]
    assert weights.rows[0][0].text == "experts.w2"
    assert any("1 of 63" in note for note in section.notes)
    assert any("could not be read" in note for note in section.notes)
    assert any("it refused" in note for note in section.notes)


def test_a_long_list_of_weights_is_cut_and_says_so():
    many = [
        {"name": f"w{i}", "what": "differs", "max_abs": 1.0, "differing_fraction": 1.0} for i in range(99)
    ]
    section = build_ablation(refit(many))
    assert len(section.tables[1].rows) == MAX_MODULES
    assert any("99 of 63" in note and f"{MAX_MODULES} of them" in note for note in section.notes)
