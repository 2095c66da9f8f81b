"""Measuring staleness in a run directory, with a third party's scorer whose checkpoints move by a known amount."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import save_file

from mismatch_probe.assets.model_facts import read_model_facts
from mismatch_probe.errors import ConfigError, InconclusiveError, RunDirectoryError
from mismatch_probe.stages.events import SilentWatcher
from mismatch_probe.stages.rollout_work import write_scores
from mismatch_probe.stages.stale_legs import resolve_checkpoint
from mismatch_probe.stages.staleness import measure_staleness, read_staleness
from mismatch_probe.trace.parts import write_table
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.schema import SCHEMA_VERSION, rollout_schema

# A checkpoint holds the variance of its log-ratio; what it says of a token depends on nothing else. BF16 adds rounding.
SCORER = """
import numpy as np
from safetensors.numpy import load_file
from mismatch_probe.scorers.protocol import ScoredSequence, ScorerCapabilities, ScorerFacts
from mismatch_probe.scorers.registry import register_scorer

class Scorer:
    def __init__(self, spec):
        self.spec = spec
        self.variance = float(load_file(spec.model_path / "model.safetensors")["variance"][0])
    def facts(self):
        return ScorerFacts("planted", self.spec.options["version"], self.spec.dtype, "cpu", "none", self.spec.options)
    def score(self, requests, *, temperature, batching, capture_routing, progress):
        assert (temperature, batching, capture_routing) == (0.5, "forward", False)
        scored = []
        for request in requests:
            noise = np.random.default_rng(request.sequence_id).normal(size=len(request.response_token_ids))
            log_p = -2.0 + np.sqrt(self.variance) * noise - self.variance / 2
            if self.spec.dtype == "bfloat16" and self.variance:
                log_p += 0.02 * np.random.default_rng([request.sequence_id, 1]).normal(size=log_p.size)
            scored.append(ScoredSequence(request.sequence_id, log_p.astype(np.float32), np.zeros_like(log_p, np.float32), None))
            progress(1, log_p.size)
        return scored
    def close(self):
        print("closed")

@register_scorer("planted", summary="moves as told", capabilities=lambda: ScorerCapabilities(True, False, False))
def make(spec):
    return Scorer(spec)
"""
KL_PER_STEP = 1e-4
PARTS, PROMPTS, SAMPLES, LENGTH = 2, 20, 4, 50


class Listener(SilentWatcher):
    """Keeps which legs were scored."""

    def __init__(self):
        self.started = []

    def stage_started(self, stage, total_sequences, done_sequences, detail):
        self.started.append((stage, total_sequences, done_sequences, detail))


@pytest.fixture(scope="module", autouse=True)
def planted_scorer(tmp_path_factory):
    packages = tmp_path_factory.mktemp("planted") / "packages"
    info = packages / "planted-1.dist-info"
    info.mkdir(parents=True)
    (packages / "planted_scorer.py").write_text(SCORER)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: planted\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[mismatch_probe.scorers]\nplanted = planted_scorer\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(packages), *sys.path]))
        yield


def checkpoint(folder: Path, kl: float, **changes: int) -> Path:
    folder.mkdir(parents=True)
    config = {
        "architectures": ["PlantedForCausalLM"], "num_hidden_layers": 1, "hidden_size": 8, "vocab_size": 32, **changes,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"variance": np.array([2 * kl])}, folder / "model.safetensors")
    return folder


def scored_run(folder):
    """A scored run of two parts, its own weights in the folder `own`; mu is pi_old."""
    own = checkpoint(folder / "own", 0.0)
    directory = RunDirectory(folder / "run")
    per_part = PROMPTS * SAMPLES // PARTS
    for part in range(PARTS):
        ids = list(range(part * per_part, (part + 1) * per_part))
        columns = dict.fromkeys(rollout_schema().names, [None] * per_part) | {
            "sequence_id": ids,
            "prompt_id": [f"p{i // SAMPLES}" for i in ids],
            "sample_index": [i % SAMPLES for i in ids],
            "prompt_token_ids": [[1, 2]] * per_part,
            "response_token_ids": [[3 + i % 20] * LENGTH for i in ids],
            "rollout_logprobs": [np.full(LENGTH, -2.0)] * per_part,
            "finish_reason": ["stop"] * per_part,
        }
        write_table(directory.rollout_part(part), pa.table(columns, schema=rollout_schema()))
        for leg in ("train/forward", "train/reference"):
            write_scores(directory, leg, part, ids, columns["rollout_logprobs"], None)
    directory.write_manifest(
        {
            "schema_version": SCHEMA_VERSION,
            "num_parts": PARTS,
            "routing": False,
            "model": {
                "name": "planted", "path": str(own), "architecture": "PlantedForCausalLM", "vocab_size": 32, "num_layers": 1,
                "num_moe_layers": 0, "num_experts": None, "top_k": None, "weights_sha256": read_model_facts(own).weights_sha256,
            },
            "config": {
                "train": {"scorer": "planted", "model": None, "dtype": "bfloat16", "options": {"version": "1"}},
                "sampling": {"temperature": 0.5},
                "trust_remote_code": False,
            },
            "engines": {"train": {"version": "1", "dtype": "bfloat16"}, "reference": {"version": "1", "dtype": "float32"}},
        }
    )  # fmt: skip
    return directory


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A folder with a scored run, its own weights, and checkpoints of updates that wander: KL 1e-4 a step."""
    folder = tmp_path_factory.mktemp("run")
    scored_run(folder)
    for k in (4, 16):
        checkpoint(folder / f"step-{k}", KL_PER_STEP * k)
    return folder


@pytest.fixture(scope="module")
def checkpoints(planted):
    return [(None, planted / "step-4"), (None, planted / "step-16")]


@pytest.fixture(scope="module")
def measured(planted, checkpoints):
    """The run after its staleness was measured, by four workers; what was told of it; what was found."""
    run = RunDirectory(planted / "measured")
    shutil.copytree(planted / "run", run.path)
    watcher = Listener()
    return run, watcher, measure_staleness(run, checkpoints, watcher)


@pytest.fixture
def run(measured, tmp_path):
    """A copy of the measured run, for a test to spoil."""
    return RunDirectory(Path(shutil.copytree(measured[0].path, tmp_path / "run")))


@pytest.fixture
def unmeasured(planted, tmp_path):
    """A copy of the run as it was scored."""
    return RunDirectory(Path(shutil.copytree(planted / "run", tmp_path / "unmeasured")))


def change(run, **changes):
    manifest = run.read_manifest()
    run.write_manifest({**manifest, **{key: {**manifest[key], **value} for key, value in changes.items()}})


def test_the_planted_staleness_is_measured_written_and_read_back(measured):
    run, watcher, fit = measured
    assert fit.model.growth == pytest.approx(1, abs=0.05)
    assert fit.model.kl_per_step == pytest.approx(KL_PER_STEP, rel=0.1)
    assert [point.kl_movement.value for point in fit.points] == pytest.approx([4e-4, 1.6e-3], rel=0.1)
    # What rounding of 0.02 adds, 2e-4, is in training's reading and not in the law.
    assert [point.kl.value for point in fit.points] == pytest.approx([6e-4, 1.8e-3], rel=0.1)
    assert watcher.started == [
        ("stale/4", 80, 0, "planted bfloat16"),
        ("stale/16", 80, 0, "planted bfloat16"),
        ("stale/reference/4", 80, 0, "planted float32"),
        ("stale/reference/16", 80, 0, "planted float32"),
    ]
    assert fit.notes == ()
    held = read_staleness(run)
    assert held == fit
    assert np.array_equal(held.updates.log_ratio, fit.updates.log_ratio)
    assert held.updates.layout.lengths.tolist() == [LENGTH] * PROMPTS * SAMPLES
    assert not list(run.path.rglob("*.partial"))


def test_what_is_there_is_kept_and_only_what_is_missing_is_scored(run, measured, checkpoints):
    first = measured[2]
    again = Listener()
    assert measure_staleness(run, checkpoints, again) == first
    assert again.started == []
    run.score_part("stale/16", 1).unlink()
    resumed = Listener()
    assert measure_staleness(run, checkpoints, resumed) == first
    assert resumed.started == [("stale/16", 80, 40, "planted bfloat16")]


def test_other_weights_under_the_same_steps_are_scored_anew(run, checkpoints, tmp_path):
    moved = [(4, checkpoint(tmp_path / "other" / "step-4", 8e-4)), checkpoints[1]]
    watcher = Listener()
    fit = measure_staleness(run, moved, watcher)
    assert [row[0] for row in watcher.started] == ["stale/4", "stale/reference/4"]
    assert fit.points[0].kl_movement.value == pytest.approx(8e-4, rel=0.1)


def test_the_runs_own_weights_move_nothing(run, planted, checkpoints, tmp_path):
    copy = shutil.copytree(planted / "own", tmp_path / "copy")
    fit = measure_staleness(run, [*checkpoints, (2, copy)], SilentWatcher())
    (own,) = [point for point in fit.points if point.steps == 2]
    assert (own.kl.value, own.std_log_weight.value, own.fitted) == (0.0, 0.0, False)
    assert "own checkpoint" in own.reason
    assert fit.model.kl_per_step == pytest.approx(KL_PER_STEP, rel=0.1)
    with pytest.raises(InconclusiveError, match="own checkpoint"):
        measure_staleness(run, [(2, copy)], SilentWatcher())


def test_without_a_float32_leg_rounding_stays_in_the_law_and_it_is_said(run, checkpoints):
    shutil.rmtree(run.score_part("train/reference", 0).parent)
    fit = measure_staleness(run, checkpoints, SilentWatcher())
    assert fit.points[0].kl_movement is None
    assert fit.model.kl(16) == pytest.approx(1.8e-3, rel=0.1)
    assert fit.model.growth < 0.9
    assert "rounding" in " ".join(fit.notes)


def test_a_change_of_the_scorers_version_is_said(run, checkpoints):
    change(run, engines={"train": {"version": "0.9", "dtype": "bfloat16"}})
    fit = measure_staleness(run, checkpoints[1:], SilentWatcher())
    assert any(
        "train/forward was read with version 0.9, the checkpoints with 1" in note for note in fit.notes
    )


def test_zero_steps_are_left_out_and_said(run, planted, checkpoints, tmp_path):
    start = shutil.copytree(planted / "own", tmp_path / "step-0")
    fit = measure_staleness(run, [(None, start), checkpoints[1]], SilentWatcher())
    assert [point.steps for point in fit.points] == [16]
    assert any(note.startswith("step-0: 0 steps") for note in fit.notes)
    with pytest.raises(ConfigError, match="after the run's own weights"):
        measure_staleness(run, [(None, start)], SilentWatcher())


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("step-8", 8),
        ("checkpoint-500", 500),
        ("global_step_8", 8),
        ("step8", 8),
        ("iter_0000064", 64),
        ("12", 12),
    ],
)
def test_steps_are_read_off_the_folders_name(tmp_path, name, steps):
    found = resolve_checkpoint(None, checkpoint(tmp_path / name, 1e-4))
    assert (found.steps, found.label) == (steps, str(steps))


@pytest.mark.parametrize("name", ["final", "qwen3-2507", "step-8-hf", "v2"])
def test_a_name_that_may_mean_something_else_is_refused_with_the_mend(tmp_path, name):
    folder = checkpoint(tmp_path / name, 1e-4)
    with pytest.raises(ConfigError, match="not in its name") as caught:
        resolve_checkpoint(None, folder)
    assert f"8={folder}" in caught.value.hint
    assert resolve_checkpoint(0.5, folder).label == "0.5"


def test_what_is_no_checkpoint_of_the_runs_model_is_refused(unmeasured, tmp_path):
    wrong = {
        "vocab_size is 33, the run's is 32": checkpoint(tmp_path / "a" / "step-1", 1e-4, vocab_size=33),
        "rope_theta is 10": checkpoint(tmp_path / "b" / "step-1", 1e-4, rope_theta=10),
        "does not exist": tmp_path / "c" / "step-1",
        "has no config.json": unmeasured.path,
    }
    for message, folder in wrong.items():
        with pytest.raises(ConfigError, match=message):
            measure_staleness(unmeasured, [(1, folder)], SilentWatcher())
    same = checkpoint(tmp_path / "d" / "step-1", 1e-4)
    with pytest.raises(ConfigError, match="same number of steps"):
        measure_staleness(unmeasured, [(1, same), (None, same)], SilentWatcher())
    with pytest.raises(ConfigError, match="optimiser steps"):
        measure_staleness(unmeasured, [(-1, same)], SilentWatcher())
    assert not (unmeasured.path / "scores" / "stale").exists()


def test_a_run_that_cannot_be_compared_with_is_refused(run, checkpoints):
    change(run, config={"train": {"scorer": "planted"}})
    with pytest.raises(RunDirectoryError, match="how train/forward was read"):
        measure_staleness(run, checkpoints, SilentWatcher())
    change(
        run,
        config={"train": {"scorer": "planted", "dtype": "bfloat16", "options": {"hub_token": "<redacted>"}}},
    )
    with pytest.raises(ConfigError, match="secret"):
        measure_staleness(run, checkpoints, SilentWatcher())
    run.score_part("train/forward", 1).unlink()
    with pytest.raises(InconclusiveError, match="train/forward was not taken"):
        measure_staleness(run, checkpoints, SilentWatcher())


def test_a_measured_staleness_is_of_one_run_only(run, measured, unmeasured):
    assert read_staleness(unmeasured) is None
    run.score_part("stale/16", 0).unlink()
    assert read_staleness(run) == measured[2]
    assert read_staleness(run).updates is None
    change(run, model={"weights_sha256": "other"})
    assert read_staleness(run) is None


def test_a_damaged_file_is_said_to_be_damaged(run):
    path = run.path / "staleness.json"
    held = json.loads(path.read_text())
    for content, message in (
        ({**held, "schema_version": 99}, "schema version 99"),
        ({key: value for key, value in held.items() if key != "model"}, "damaged: KeyError"),
        ({**held, "points": [{"steps": 1}]}, "damaged: TypeError"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(RunDirectoryError, match=message):
            read_staleness(run)
