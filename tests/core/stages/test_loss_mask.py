"""A loss mask in a run: every number is that of the run from which the masked tokens were dropped."""

import shutil

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from benchmarks.synthetic_run import Planted, write_run
from mismatch_probe.errors import InconclusiveError, RunDirectoryError
from mismatch_probe.stages.measure import measure_run
from mismatch_probe.stages.routing_section import accumulate_routing
from mismatch_probe.trace.parts import read_table, write_routing, write_table
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.schema import rollout_schema, score_schema
from mismatch_probe.trace.trace import Trace

SECTIONS = (
    "token",
    "sequence",
    "legs",
    "weights",
    "weights_reads",
    "weight_sync",
    "recommendation",
    "verdict",
)
LEGS = ("train/forward", "train/repeat")


@pytest.fixture(scope="module")
def dropped(tmp_path_factory):
    """A run without masked tokens, and what it measures."""
    run = write_run(tmp_path_factory.mktemp("runs") / "run", Planted(1e-3, 12, prompts=6, update=1e-3))
    repeat = run.score_part("train/repeat", 0)
    repeat.parent.mkdir(parents=True)
    shutil.copyfile(run.score_part("train/forward", 0), repeat)
    manifest = run.read_manifest()
    run.write_manifest({**manifest, "legs": [*manifest["legs"], "train/repeat"]})
    return run, measure_run(run)


def with_fillers(run, folder, places, filler):
    """A copy with masked tokens put in; places are (sequence, position) and both sides differ wildly there."""
    shutil.copytree(run.path, folder)
    copy = RunDirectory(folder)
    table = read_table(copy.rollout_part(0), rollout_schema()).to_pydict()
    scores = {leg: read_table(copy.score_part(leg, 0), score_schema()).to_pydict() for leg in LEGS}
    # A row without a mask counts whole.
    masked = {sequence for sequence, _ in places}
    table["loss_mask"] = [
        [True] * len(row) if place in masked else None
        for place, row in enumerate(table["response_token_ids"])
    ]
    for sequence, position in places:
        for column, value in (
            (table["response_token_ids"], 7), (table["rollout_logprobs"], filler), (table["old_logprobs"], filler),
            (table["loss_mask"], False), *((held["logprobs"], -9.0) for held in scores.values()),
        ):  # fmt: skip
            column[sequence].insert(position, value)
    write_table(copy.rollout_part(0), pa.table(table, schema=rollout_schema()))
    for leg, held in scores.items():
        write_table(copy.score_part(leg, 0), pa.table(held, schema=score_schema()))
    return copy


@given(
    places=st.lists(st.tuples(st.integers(0, 23), st.integers(0, 12)), min_size=1, max_size=40),
    filler=st.sampled_from([0.0, -5.0, float("nan")]),
)
@settings(
    max_examples=5,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_masking_is_dropping(dropped, tmp_path_factory, places, filler):
    run, expected = dropped
    masked = with_fillers(run, tmp_path_factory.mktemp("masked") / "run", places, filler)
    measured = measure_run(masked)
    assert measured["data_quality"]["masked_tokens"] == len(places)
    assert {name: measured[name] for name in SECTIONS} == {name: expected[name] for name in SECTIONS}
    assert measured["data_quality"]["checks"] == expected["data_quality"]["checks"]
    assert [item["observed"] for item in measured["findings"] if item["code"] == "MP905"] == [len(places)]


def test_routes_go_with_the_token_they_predict(dropped, tmp_path):
    """Flips at the position that predicts a counted token meet its log-ratio, whatever is masked before it."""
    run = with_fillers(dropped[0], tmp_path / "run", [(0, 2), (0, 2), (3, 5)], 0.0)
    trace = Trace(run, 1)
    fed = np.diff(trace.recorded.prompt_offsets) + trace.recorded.lengths - 1
    rollout = [np.zeros((int(n), 2, 1), np.int16) for n in fed]
    train = [rows.copy() for rows in rollout]
    # Prompt of 3, tokens 2 and 3 of the response masked: its fifth token is predicted from position 3 + 4 - 1.
    train[0][6, 1] = 1
    for leg, routes in (("rollout/decode", rollout), ("train/forward", train)):
        write_routing(run.routing_part(leg, 0), routes, trace.recorded.sequence_id.tolist())
    routing = accumulate_routing(trace, num_experts=4)
    assert routing.num_tokens == fed.sum()
    log_ratio = np.abs(trace.logprobs("train/forward") - trace.rollout.logprobs)
    none, one, _ = routing.by_flips.table().reshape(-1, routing.flip_bins, 3).sum(axis=0)
    # The flip is charged to the sequence's third counted token, and masked tokens enter neither bin.
    assert one[:2] == pytest.approx([1, log_ratio[2]])
    assert none[:2] == pytest.approx([log_ratio.size - 1, log_ratio.sum() - log_ratio[2]])


def test_masks_that_do_not_fit(dropped, tmp_path):
    run = with_fillers(dropped[0], tmp_path / "run", [(0, 0)], 0.0)
    columns = read_table(run.rollout_part(0), rollout_schema()).to_pydict()
    columns["loss_mask"][0] = columns["loss_mask"][0][:-1]
    write_table(run.rollout_part(0), pa.table(columns, schema=rollout_schema()))
    with pytest.raises(RunDirectoryError, match="loss_mask"):
        measure_run(run)
    columns["loss_mask"] = [[False] * len(row) for row in columns["response_token_ids"]]
    write_table(run.rollout_part(0), pa.table(columns, schema=rollout_schema()))
    with pytest.raises(InconclusiveError, match="leaves no response token"):
        measure_run(run)
