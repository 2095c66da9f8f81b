"""Worker processes with an engine of a third party, found by its entry point, that misbehaves on purpose."""

import pytest

from mismatch_probe.errors import CaptureError, EngineCrashError
from mismatch_probe.stages.process import run_worker
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.trace import Trace


def run(job):
    events = []
    return run_worker(job, job.run / "logs/rollout.log", events.append), events


@pytest.mark.usefixtures("odd_engine")
def test_a_third_partys_engine_is_found_and_used(tmp_path, odd_job):
    facts, events = run(odd_job("well"))
    assert facts["engine"] == "odd"
    assert [event["event"] for event in events if event["event"] != "progress"] == [
        "loading",
        "leg",
        "part",
        "part",
    ]
    rollout = Trace(RunDirectory(tmp_path / "run"), 2).rollout
    assert rollout.sequence_id.tolist() == [0, 1, 2, 3, 4, 5]
    assert rollout.prompt_index.tolist() == [0, 0, 1, 1, 2, 2]
    assert rollout.logprobs[1::2].tolist() == [0, -1, -2, -3, -4, -5]


@pytest.mark.usefixtures("odd_engine")
def test_an_engine_that_dies_is_a_clear_error(tmp_path, odd_job):
    with pytest.raises(EngineCrashError, match="killed by signal 9") as caught:
        run(odd_job("die"))
    assert "rollout.log" in (caught.value.hint or "")
    assert not list((tmp_path / "run").rglob("part-*"))


@pytest.mark.usefixtures("odd_engine")
def test_an_engine_that_raises_is_one_line_and_the_rest_is_in_the_log(tmp_path, odd_job):
    with pytest.raises(EngineCrashError, match="ValueError: kernel panic") as caught:
        run(odd_job("raise"))
    assert "\n" not in caught.value.message
    assert "in two lines" in (tmp_path / "run/logs/rollout.log").read_text()


@pytest.mark.usefixtures("odd_engine")
def test_our_own_errors_keep_their_kind_and_hint(tmp_path, odd_job):
    with pytest.raises(CaptureError, match="no scores today") as caught:
        run(odd_job("refuse"))
    assert caught.value.hint == "come back tomorrow"
