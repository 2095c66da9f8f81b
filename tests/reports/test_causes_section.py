"""The causes part of a report: what is named and why, what is not, and old results without it."""

from mismatch_probe.causes.diagnosis import Diagnosis
from mismatch_probe.causes.rules import Fact, NamedCause
from mismatch_probe.result import to_json
from mismatch_probe_reports.sections.causes import build_causes

NAMED = NamedCause(
    "stale-weights", "MP640", "stale weights", "proof", "34 of 51 tensors differ",
    (Fact("causes.evidence.weights.num_different", 34, 0), Fact("causes.evidence.weights.kind", "stale")),
)  # fmt: skip


def section(status, causes=(), sentence="34 of 51 tensors differ"):
    diagnosis = Diagnosis(
        status, sentence, causes, True, ("validity of the data",), ("leg train/repeat: the floor",)
    )
    return build_causes({"causes": {"diagnosis": to_json(diagnosis), "evidence": {}}})


def test_a_named_cause_comes_with_its_numbers_and_the_way_to_more():
    built = section("identified", (NAMED,))
    named, facts = built.tables
    assert [cell.text for cell in named.rows[0]] == [
        "1", "stale weights", "34 of 51 tensors differ", "both sides differ in it", "MP640",
    ]  # fmt: skip
    assert [row[1].text for row in facts.rows] == [fact.where for fact in NAMED.facts]
    assert [row[2].text for row in facts.rows] == ["34", "stale"]
    assert "explain" in named.note


def test_without_a_cause_the_sentence_and_what_is_missing_stand_alone():
    built = section("not_identified", sentence="not identified: nothing explains it")
    assert built.lead == "Not identified: nothing explains it."
    assert built.tables == ()
    assert "train/repeat" in built.notes[-1]


def test_a_result_from_before_says_that_the_part_is_missing():
    assert build_causes({}).missing
