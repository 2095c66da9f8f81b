"""Export of a run directory: with its tokens at hand, and with its result alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.synthetic_run import Planted, write_run
from mismatch_probe.stages.exporting import export_run
from mismatch_probe.stages.measure import measure_run
from mismatch_probe.trace.run_directory import RunDirectory


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    made = write_run(
        tmp_path_factory.mktemp("runs") / "stale", Planted(5e-3, 30, prompts=12, update=5e-3, seed=1)
    )
    measure_run(made)
    return made


def test_the_heading_says_what_the_config_does_to_the_run(run: RunDirectory) -> None:
    exported = export_run(run, "verl", method="geo_rs")
    effect = exported.effect
    assert effect is not None and not effect.assumed_old and not effect.assumed_signs
    assert effect.kept_fraction.value is not None and 0 < effect.kept_fraction.value < 1
    assert effect.kept_fraction.n == 12 * 4 * 30
    assert "On this run it keeps" in exported.text


def test_a_result_without_its_tokens_is_exported_with_a_note(run: RunDirectory, tmp_path: Path) -> None:
    copy = RunDirectory(Path(shutil.copytree(run.path, tmp_path / "copy")))
    shutil.rmtree(copy.path / "rollout")
    exported = export_run(copy, "verl", method="geo_rs")
    assert exported.effect is None and "On this run" not in exported.text
    assert any("is not known" in note for note in exported.notes)
    assert exported.entries == export_run(run, "verl", method="geo_rs").entries
