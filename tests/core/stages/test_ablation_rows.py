"""Rows of an ablation on disk: a result and a refusal are kept, a crash is tried again."""

from types import SimpleNamespace

import pytest

from mismatch_probe.config.model import SamplingConfig
from mismatch_probe.errors import EngineCrashError, EngineUnavailableError
from mismatch_probe.stages import ablation_rows
from mismatch_probe.stages.ablation_rows import Row, clear_rows
from mismatch_probe.stages.events import SilentWatcher
from mismatch_probe.stages.job import RefitJob
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.schema import rollout_schema


@pytest.fixture
def row(tmp_path):
    run = RunDirectory(tmp_path)
    subject = SimpleNamespace(
        run=run, folder=tmp_path / ablation_rows.FOLDER, tokens_sha256="ids", table=rollout_schema().empty_table(),
        manifest={"model": {}, "versions": {}},
    )  # fmt: skip
    return Row(subject, "knob")


def job(folder, **spec):
    return RefitJob(run=folder, engine="vllm", spec=spec, sampling=SamplingConfig(), read_fresh=True)


def answers(monkeypatch, *outcomes):
    """Workers that end one after another as told; returns how many were started."""
    left, started = list(outcomes), []

    def work(*_):
        started.append(1)
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(ablation_rows, "run_worker", work)
    return started


@pytest.mark.parametrize(
    ("first", "starts"),
    [({"options": {}}, 1), (EngineUnavailableError("no kernel"), 1), (EngineCrashError("died"), 2)],
)
def test_only_a_crash_is_tried_again(row, monkeypatch, first, starts):
    started = answers(monkeypatch, first, {"options": {"second": True}})
    state = row.take(job, SilentWatcher())
    assert (state["unavailable"] is None) == isinstance(first, dict)
    assert state["seconds"] >= 0
    again = Row(row.subject, "knob").take(job, SilentWatcher())
    assert len(started) == starts
    if starts == 2:
        assert again["unavailable"] is None
        assert again["facts"] == {"options": {"second": True}}


def test_another_job_is_another_row(row, monkeypatch):
    started = answers(monkeypatch, {"options": {}}, {"options": {}})
    row.take(job, SilentWatcher())
    row.take(lambda folder: job(folder, dtype="float32"), SilentWatcher())
    assert len(started) == 2


def test_clearing_removes_rows_and_table(row, monkeypatch):
    answers(monkeypatch, {"options": {}})
    row.take(job, SilentWatcher())
    (row.subject.run.path / ablation_rows.TABLE).write_text("{}")
    clear_rows(row.subject.run)
    assert list(row.subject.run.path.glob("ablation*")) == []
