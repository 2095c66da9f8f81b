"""What a checkpoint has to be for imported routes, and which of their layers are kept."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mismatch_probe.config.model import ProbeConfig
from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.stages.events import SilentWatcher
from mismatch_probe.stages.imported_plan import begin_imported, plan_imported
from mismatch_probe.stages.importing import import_dump
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.trace import Trace


def config(**changes: Any) -> ProbeConfig:
    given = {"model": "tiny-qwen3-moe", "sampling": {"temperature": 1.0}, **changes}
    return ProbeConfig.model_validate(given)


@pytest.fixture
def imported(golden: tuple[Path, list[Any]], tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    with run.claim():
        import_dump(run, "verl", golden[0] / "verl", ProbeConfig(out=run.path), "test")
    return run


def test_routes_of_another_model(imported: RunDirectory) -> None:
    with pytest.raises(InconclusiveError, match="routes of 3 layers, top-2"):
        plan_imported(imported, config(), SilentWatcher())
    plan = plan_imported(imported, config(routing=False), SilentWatcher())
    assert not plan.routing and "train/replay" not in plan.legs


def test_a_forward_without_routes_stays_without(imported: RunDirectory) -> None:
    forward = imported.score_part("train/forward", 0)
    forward.parent.mkdir(parents=True)
    forward.touch()
    assert not plan_imported(imported, config(), SilentWatcher()).routing


def test_layers_without_experts_are_left_out(imported: RunDirectory, golden: tuple[Path, list[Any]]) -> None:
    """SGLang lists every layer of the model; a run has those with experts."""
    plan = plan_imported(imported, config(routing=False), SilentWatcher())
    routed = replace(plan, routing=True, facts=replace(plan.facts, num_layers=3, moe_layers=(0, 2)))
    expected = np.concatenate([one.routes[:, [0, 2]] for one in golden[1]])
    for _ in range(2):  # a second score finds them left out already
        begin_imported(imported, routed)
        assert np.array_equal(Trace(imported, 1).routes("rollout/decode")[0], expected)
    assert imported.read_manifest()["routing"] is True


def test_routing_asked_of_a_dump_that_has_none(golden: tuple[Path, list[Any]], tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with run.claim():
        import_dump(run, "nemo-rl", golden[0] / "nemo-rl", ProbeConfig(out=run.path), "test")
    with pytest.raises(ConfigError, match="routes of both sides"):
        plan_imported(run, config(routing=True), SilentWatcher())
