"""Processes that import ahead of their job: the same result, and no trace of one that was made in vain."""

import os
import time
from pathlib import Path

import pytest

from mismatch_probe.config.load import load_config
from mismatch_probe.errors import EngineCrashError
from mismatch_probe.stages.executor import SpareExecutor, open_executor
from mismatch_probe.stages.process import WorkerProcess, run_worker
from mismatch_probe.stages.spare import SpareProcess, expected_jobs, warm_of

ODD = ("rollout", "odd")
pytestmark = pytest.mark.usefixtures("odd_engine")


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """A folder of its own for temporary files, to see what is left in it."""
    import tempfile

    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def children():
    """The processes that this one has started and not yet waited for."""
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


def parts(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("part-*")}


def wait_until_it_waits(spare):
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if "imported ahead" in spare._said.read_text():
            return
        time.sleep(0.05)
    raise AssertionError("it never imported")


@pytest.mark.parametrize("early", [True, False], ids=["still-importing", "waiting"])
def test_a_spare_does_what_a_fresh_process_does(odd_job, temporary, early):
    before, events, fresh_events = children(), [], []
    spare = SpareProcess(ODD)
    if not early:
        wait_until_it_waits(spare)
    job, log = odd_job("well", "spared"), temporary.parent / "spared/logs/rollout.log"
    facts = run_worker(job, log, events.append, spare=spare)
    fresh = odd_job("well", "fresh")
    assert run_worker(fresh, fresh.run / "logs/rollout.log", fresh_events.append) == facts
    assert events == fresh_events
    assert parts(job.run) == parts(fresh.run) != {}
    # What it said while it imported is in the log as well, and what the engine says follows.
    assert log.read_text().splitlines() == ["imported ahead", '{"event": "done", "facts": {}}']
    assert not list(temporary.iterdir())
    assert children() == before


def test_a_spare_that_failed_to_import_leaves_it_to_the_job(odd_job, monkeypatch):
    monkeypatch.setenv("ODD_WARM", "raise")
    job, spare = odd_job("well"), SpareProcess(ODD)
    log = job.run / "logs/rollout.log"
    assert run_worker(job, log, lambda event: None, spare=spare)["engine"] == "odd"
    assert "a package is broken" in log.read_text()


def test_in_place_of_a_spare_that_died_a_fresh_process_does_the_job(odd_job, temporary, monkeypatch):
    monkeypatch.setenv("ODD_WARM", "die")
    job, spare = odd_job("well"), SpareProcess(ODD)
    spare._process.wait(60)
    log = job.run / "logs/rollout.log"
    assert run_worker(job, log, lambda event: None, spare=spare)["engine"] == "odd"
    assert "imported ahead" in log.read_text()
    assert not list(temporary.iterdir())


def test_one_that_dies_over_its_imports_with_a_job_in_hand_is_a_clear_error(odd_job, temporary, monkeypatch):
    monkeypatch.setenv("ODD_WARM", "die")
    job, spare = odd_job("well"), SpareProcess(ODD)
    # Held until it has the job.
    os.kill(spare._process.pid, 19)
    worker = WorkerProcess(job, job.run / "logs/rollout.log", spare=spare)
    os.kill(worker._process.pid, 18)
    with pytest.raises(EngineCrashError, match="ended with status 7"):
        worker.finish()
    worker.stop()
    assert "imported ahead" in (job.run / "logs/rollout.log").read_text()
    assert not list(temporary.iterdir())


def test_secrets_that_it_printed_before_its_job_are_not_in_the_log(odd_job, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "hunter2-hunter2")
    job, spare = odd_job("well"), SpareProcess(ODD)
    wait_until_it_waits(spare)
    with spare._said.open("a") as said:
        said.write("hunter2-hunter2\n")
    log = job.run / "logs/rollout.log"
    run_worker(job, log, lambda event: None, spare=spare)
    assert "hunter2" not in log.read_text()
    assert "imported ahead" in log.read_text()


def test_the_others_are_made_ready_when_the_first_has_its_job(odd_job, temporary):
    before, waiting = children(), []
    executor = SpareExecutor([ODD, ODD, ODD])
    assert len(executor._spares) == 1
    first = executor._spares[0]

    def follow(event):
        if event["event"] in ("loading", "leg"):
            waiting.append((event["event"], len(executor._spares)))

    executor(odd_job("well", "one"), temporary.parent / "one/log", follow)
    assert first not in executor._spares
    executor(odd_job("well", "two"), temporary.parent / "two/log", follow)
    executor(odd_job("well", "three"), temporary.parent / "three/log", follow)
    # A fourth, which nobody expected.
    executor(odd_job("well", "four"), temporary.parent / "four/log", follow)
    assert waiting == [(event, left) for left in (2, 1, 0, 0) for event in ("loading", "leg")]
    executor.close()
    assert children() == before
    assert not list(temporary.iterdir())


def test_a_wrong_guess_ends_without_a_trace(odd_job, temporary):
    before = children()
    executor = SpareExecutor([("train", "transformers"), ODD, ODD])
    executor(odd_job("well"), temporary.parent / "log", lambda event: None)
    assert [spare.kind for spare in executor._spares] == [ODD]
    executor.close()
    executor.close()
    assert children() == before
    assert not list(temporary.iterdir())


def test_a_job_that_cannot_even_be_written_down_ends_the_process(odd_job, temporary, monkeypatch):
    before = children()
    executor = SpareExecutor([ODD])
    monkeypatch.setattr(Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        executor(odd_job("well"), temporary.parent / "log", lambda event: None)
    executor.close()
    assert children() == before


def test_a_machine_without_room_for_one_more_process_leaves_it_to_the_job(odd_job, temporary, monkeypatch):
    open_before = len(list(Path("/proc/self/fd").iterdir()))

    def refuse(*_, **__):
        raise OSError(11, "Resource temporarily unavailable")

    with monkeypatch.context() as patch:
        patch.setattr("mismatch_probe.stages.spare.subprocess.Popen", refuse)
        executor = SpareExecutor([ODD])
    assert not executor._spares
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before
    assert not list(temporary.iterdir())
    assert executor(odd_job("well"), temporary.parent / "log", lambda event: None)["engine"] == "odd"


def test_what_is_unknown_or_has_nothing_to_import_gets_no_process(temporary):
    assert warm_of(("rollout", "no-such-engine")) is None
    assert warm_of(("rollout", "openai")) is None
    executor = SpareExecutor([("rollout", "no-such-engine")])
    assert not executor._spares
    executor.close()
    with open_executor(load_config(None, (), {})) as execute:
        assert not execute._spares
    assert not list(temporary.iterdir())


def test_a_failure_before_the_first_job_ends_the_process(temporary):
    before = children()
    with pytest.raises(ValueError, match="no plan"), open_executor(load_config(None, (), {}), ("record",)):
        raise ValueError("no plan")
    assert children() == before
    assert not list(temporary.iterdir())


def test_the_jobs_that_an_audit_will_have_in_order():
    config = load_config(None, (), {})
    scorer = ("train", "transformers")
    assert expected_jobs(config, ("record", "score")) == [("rollout", "vllm"), scorer, scorer]
    assert expected_jobs(config, ("record",)) == [("rollout", "vllm")]
    short = load_config(None, ('legs=["rollout/decode", "train/forward"]',), {})
    assert expected_jobs(short, ("score",)) == [scorer]
    assert expected_jobs(config, ()) == []
