"""What a matrix makes of its cells."""

from pathlib import Path

import pytest

from mismatch_probe.config.load import load_config
from mismatch_probe.errors import EXIT_DRIFT, EngineUnavailableError
from mismatch_probe.stages.matrix_plan import plan_cells
from mismatch_probe.stages.matrix_summary import summarise_matrix

MANIFEST = {
    "created_at": "now", "command": "audit", "run_id": "r", "tool_version": "0", "model": {"name": "m"},
    "config": {"sampling": {"temperature": 1.0}}, "num_sequences": 4,
}  # fmt: skip


def outcome(k3, *, rounding=None, verdict="pass", exit_code=0):
    number = {"value": k3, "ci_low": None, "ci_high": None, "n": 8}
    return {
        "legs": {"floor": {"k3": 0.0, "exact": True, "total_over_floor": None,
                           "rounding_k3": None if rounding is None else {"value": rounding}}},
        "verdict": verdict, "exit_code": exit_code, "verdict_sentence": "s", "findings": [],
        "token": dict.fromkeys(("k1", "k3", "mean_abs_log_ratio", "max_abs_log_ratio"), number),
        "sequence": {"log_weight": {"std": 0.1}}, "bars": {"k3_over_rounding": 4.0},
        "provenance": {"num_tokens": 8, "rollout": {}, "train": {}},
    }  # fmt: skip


@pytest.fixture
def cells(tmp_path: Path):
    settings = load_config(overrides={"out": str(tmp_path), "matrix.rollout": [{"engine": "vllm"}]})
    return plan_cells(settings)


def summary(cells, outcomes, monkeypatch):
    # The parts that readers are compared from are another test's (tests/e2e/test_matrix.py).
    monkeypatch.setattr("mismatch_probe.stages.matrix_summary._between", lambda *_: [])
    return summarise_matrix(
        MANIFEST, cells, dict(zip([cell.folder for cell in cells], outcomes, strict=True))
    )


def test_a_reader_beyond_what_rounding_does_drifts_though_its_own_floors_say_nothing(cells, monkeypatch):
    found = summary(cells, [outcome(1e-4, rounding=1e-4), outcome(5e-4)], monkeypatch)
    trainer, reader = found["cells"]
    assert (trainer["verdict"], reader["verdict"]) == ("pass", "drift")
    assert reader["over_rounding"] == pytest.approx(5.0)
    assert found["exit_code"] == EXIT_DRIFT


def test_a_failed_cell_is_named_and_the_others_stand(cells, monkeypatch):
    found = summary(cells, [EngineUnavailableError("no engine", hint="install"), outcome(5e-4)], monkeypatch)
    failed, reader = found["cells"]
    assert (failed["status"], failed["reason"]) == ("failed", "no engine")
    assert reader["verdict"] == "pass"
    assert reader["over_rounding"] is None
    assert found["exit_code"] == 2


def test_a_trainer_has_a_column_and_no_row(cells, monkeypatch):
    found = summary(cells, [outcome(1e-4, rounding=1e-4), outcome(0.0)], monkeypatch)
    assert found["sources"] == ["rollout/vllm"]
    assert list(found["no_row"]) == ["train/transformers"]
