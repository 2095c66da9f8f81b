"""Faults planted into a real forward over a real vLLM recording: the diagnosis names them, and nothing in the clean run."""

import numpy as np
import pytest

from benchmarks import planted_changes as change
from benchmarks import planted_recordings as recordings
from benchmarks.planted_faults import Case, array_cases, write_checkpoint
from benchmarks.planted_report import outcome_of
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.trace import Trace

pytestmark = pytest.mark.engine
SEQUENCES = 48


@pytest.fixture(scope="module")
def recording(embedded):
    run = RunDirectory(embedded.path)
    trace = Trace(run, int(run.read_manifest()["num_parts"]))
    rollout = trace.rollout
    ends = rollout.offsets[1:-1]
    routes, fed = trace.routes("rollout/decode")
    whole = recordings.Recording(
        [row.tolist() for row in np.split(rollout.prompt_tokens, rollout.prompt_offsets[1:-1])],
        [row.tolist() for row in np.split(rollout.response_tokens, ends)],
        np.split(rollout.logprobs, ends),
        np.split(trace.logprobs("rollout/prefill"), ends),
        np.split(routes, fed[1:-1]),
        rollout.prompt_index,
        1.0,
    )
    return whole.take(range(SEQUENCES))


@pytest.fixture(scope="module")
def clean(recording):
    return recordings.score(recording)


def test_the_clean_pair_has_no_cause(recording, clean):
    outcome = outcome_of(Case("clean", "", recording, clean), both_sides=True)
    assert outcome.named == "nothing to explain"


def test_the_audit_of_the_clean_pair_has_no_cause(embedded):
    causes = embedded.result["causes"]
    assert causes["diagnosis"]["status"] == "nothing_to_explain"
    assert causes["evidence"]["num_tokens"] == embedded.result["token"]["num_tokens"]


@pytest.mark.parametrize(
    ("cause", "plant"),
    [
        ("fp8-weights", change.round_weights("fp8", "row")),
        ("permuted-experts", change.permute_experts((1,), 2)),
    ],
)
def test_a_fault_of_the_weights_is_named(recording, clean, tmp_path, cause, plant):
    write_checkpoint(plant, tmp_path / "planted")
    legs = recordings.score(recording, model_path=tmp_path / "planted")
    case = Case(cause, "", recording, legs, clean, tmp_path / "planted")
    assert outcome_of(case, both_sides=True).named == cause
    # Without the tensors there is no proof, and no guess in its place.
    assert outcome_of(case, both_sides=False).named in ("not identified", "nothing to explain")


def test_a_noisy_router_is_named(recording, clean):
    legs = recordings.score(recording, plant=change.noisy_router((2,), 0.3))
    assert (
        outcome_of(Case("noisy-router", "", recording, legs, clean), both_sides=True).named == "noisy-router"
    )


def test_a_dropped_bos_is_named_where_ids_are_at_hand(recording, clean):
    legs = recordings.score(recording, edit_ids=change.drop_bos)
    case = Case("bos-dropped", "", recording, legs, clean)
    assert outcome_of(case, both_sides=True).named == "bos-dropped"
    assert outcome_of(case, both_sides=False).named == "not identified"


def test_every_fault_of_the_arrays_is_named(recording, clean):
    outcomes = [outcome_of(case, both_sides=False) for case in array_cases(recording, clean)]
    wrong = [
        (item.cause, item.severity, item.named)
        for item in outcomes
        if item.above and item.named != item.cause
    ]
    assert not wrong
    assert sum(item.above for item in outcomes) > 0.8 * len(outcomes)
