"""Staleness on the real pair: optimiser steps of the training example, read by the run's own scorer."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mismatch_probe.assets.catalog import resolve_model
from mismatch_probe.stages.events import SilentWatcher
from mismatch_probe.stages.staleness import measure_staleness, read_staleness
from mismatch_probe.trace.run_directory import RunDirectory

pytestmark = pytest.mark.engine

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_with_correction.py"


@pytest.fixture(scope="module")
def measured(embedded, tmp_path_factory):
    """Two checkpoints of one training and, as 99 steps, the weights of the run itself."""
    folder = tmp_path_factory.mktemp("staleness")
    trained = subprocess.run(
        [sys.executable, str(EXAMPLE), "--rollout", str(embedded.path), "--minibatches", "16", "--lr", "3e-5",
         "--out", str(folder), "--save-at", "2", "16"],
        capture_output=True, text=True, timeout=600, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    run = RunDirectory(embedded.copy_to(folder / "run"))
    own = shutil.copytree(resolve_model("tiny-qwen3-moe").path, folder / "own")
    with run.claim(resume=True):
        fit = measure_staleness(
            run, [(None, folder / "step-2"), (None, folder / "step-16"), (99, own)], SilentWatcher()
        )
    return run, fit


def test_the_runs_own_weights_are_read_bit_by_bit_the_same(measured):
    """The control of the whole comparison: scorer, dtype, batches and threads are those of train/forward."""
    own = measured[1].points[-1]
    assert own.steps == 99
    assert own.kl.value == own.kl_movement.value == own.mean_abs.value == 0.0
    assert not own.fitted
    assert f"99 steps not fitted: {own.reason}" in measured[1].notes
    assert not any("was read with" in note for note in measured[1].notes)


def test_optimiser_steps_move_the_policy_and_more_of_them_more(measured):
    fit = measured[1]
    few, many, _ = fit.points
    assert 0 < few.half_square.value < many.half_square.value
    assert few.mean_abs.ci_high < many.mean_abs.ci_low
    assert 0.2 < fit.model.growth < 2.5
    for point in (few, many):
        # Both read one KL; single tokens may part their values, not their intervals.
        assert point.kl.ci_low < point.kl_weighted.ci_high
        assert point.kl_weighted.ci_low < point.kl.ci_high
        assert 0.7 < point.std_log_weight.value / point.independent_std < 1.5


def test_rounding_in_pi_old_leaves_the_product(measured):
    """Staleness and mismatch share pi_old's rounding with opposite signs, so they are not independent."""
    updates = measured[1].updates
    few, mismatch = updates.log_ratio[0], updates.mismatch
    assert np.corrcoef(few, mismatch)[0, 1] < -0.1
    assert np.var(few + mismatch) < np.var(few) + np.var(mismatch)


def test_what_was_measured_is_in_the_run_and_read_back(measured):
    run, fit = measured
    held = read_staleness(run)
    assert held == fit
    assert np.array_equal(held.updates.movement, fit.updates.movement)
    assert {path.name for path in (run.path / "scores" / "stale").iterdir()} == {"2", "16", "99", "reference"}
