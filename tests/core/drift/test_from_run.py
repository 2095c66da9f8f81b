"""A run directory's profile: what it takes from the run, what it leaves there, what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.synthetic_run import Planted, write_run
from mismatch_probe.drift import DriftProfile
from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.stages.measure import measure_run
from mismatch_probe.trace.trace import Trace


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("runs") / "run", Planted(1e-3, 24, prompts=40))
    measure_run(run)
    return run


def test_a_run_is_profiled(run, tmp_path):
    profile = DriftProfile.from_run(run.path)
    result = json.loads(run.result_path.read_text())
    law = result["sequence"]["length_law"]
    assert profile.measured.kappa.value == pytest.approx(law["kappa"]["value"], rel=1e-7)
    assert profile.measured.gaussian_ratio.ci_low == pytest.approx(law["gaussian_ratio"]["ci_low"], rel=1e-7)
    assert profile.measured.k_hat.value == pytest.approx(result["sequence"]["k_hat"]["value"], rel=1e-7)
    assert profile.provenance.run_id == result["provenance"]["run_id"]
    assert profile.law.flips is None
    assert profile.measured.flip_rate.reason
    assert profile.staleness is None
    assert profile.staleness_reason
    assert str(run.path) not in profile.to_text()
    rollout = Trace(run, int(run.read_manifest()["num_parts"])).rollout
    injected = profile.inject(rollout.logprobs, rollout.offsets, prompt_ids=rollout.prompt_index, seed=1)
    assert np.std(injected.log_ratio) == pytest.approx(np.sqrt(2e-3), rel=0.1)


@pytest.mark.parametrize(
    ("change", "error"),
    [({"data_quality": {"trusted": False}}, ConfigError), ({"verdict": "inconclusive"}, InconclusiveError)],
)
def test_a_run_with_nothing_to_go_by_is_refused_unless_forced(run, change, error):
    kept = run.result_path.read_text()
    try:
        run.result_path.write_text(json.dumps(json.loads(kept) | change))
        with pytest.raises(error) as caught:
            DriftProfile.from_run(run)
        assert caught.value.hint
        assert DriftProfile.from_run(run, force=True).measured.kappa.value is not None
    finally:
        run.result_path.write_text(kept)
