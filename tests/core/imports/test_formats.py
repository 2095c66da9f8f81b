"""Every dump format against the sequences that were written into it, and against the frameworks' own numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mismatch_probe.config.model import ProbeConfig
from mismatch_probe.errors import InconclusiveError
from mismatch_probe.imports.importer import importers
from mismatch_probe.stages.importing import import_dump
from mismatch_probe.stages.measure import measure_run
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.trace import Trace

TWO_SIDED = ("prime-rl", "nemo-rl", "skyrl", "slime", "miles", "trl")
ONE_SIDED = ("verl", "roll")


def take(name: str, dump: Path, out: Path) -> tuple[RunDirectory, dict[str, Any]]:
    run = RunDirectory(out)
    with run.claim():
        section = import_dump(run, name, dump, ProbeConfig(out=out), "test")
    return run, section


def test_every_format_is_tested() -> None:
    assert {entry.name for entry in importers} == {*TWO_SIDED, *ONE_SIDED}


@pytest.mark.parametrize("name", TWO_SIDED)
def test_two_sided(name: str, golden: tuple[Path, list[Any]], tmp_path: Path) -> None:
    folder, made = golden
    run, section = take(name, folder / name, tmp_path / "run")
    trace = Trace(run, 1)
    counted = [one.mask.astype(bool) for one in made]

    def flat(field: str) -> Any:
        return np.concatenate([getattr(one, field)[keep] for one, keep in zip(made, counted, strict=True)])

    assert np.array_equal(trace.rollout.response_tokens, flat("response"))
    assert np.array_equal(trace.rollout.logprobs, flat("rollout").astype(np.float64))
    assert np.array_equal(trace.logprobs("train/forward"), flat("train").astype(np.float64))
    assert np.array_equal(trace.rollout.prompt_tokens, np.concatenate([one.prompt for one in made]))
    assert np.array_equal(trace.rollout.prompt_index, [one.group for one in made])
    assert trace.rollout.advantage is not None
    assert trace.rollout.advantage.tolist() == [one.advantage for one in made]
    assert section["two_sided"] and section["joined"] == 1

    # The frameworks' definitions, from the arrays themselves: t the trainer's, s the rollout's.
    s, t = flat("rollout").astype(np.float64), flat("train").astype(np.float64)
    result = measure_run(run)
    token = result["token"]
    assert token["k1"]["value"] == pytest.approx(np.mean(s - t), rel=1e-9)
    assert token["k3"]["value"] == pytest.approx(np.mean(np.expm1(t - s) - (t - s)), rel=1e-6)
    assert token["mean_abs_log_ratio"]["value"] == pytest.approx(np.mean(np.abs(t - s)), rel=1e-9)
    assert result["provenance"]["sampling"]["temperature"] is None
    assert result["provenance"]["rollout"]["engine"] == f"imported:{name}"
    assert "model is not known" in result["routing"]["reason"]


def test_verl_logs_the_same_numbers(golden: tuple[Path, list[Any]], tmp_path: Path) -> None:
    import torch
    from verl.trainer.ppo import rollout_corr_helper as helper

    folder, made = golden
    run, _ = take("skyrl", folder / "skyrl", tmp_path / "run")
    token = measure_run(run)["token"]
    width = max(len(one.response) for one in made)
    columns = {
        field: torch.tensor([[*getattr(one, field), *[0] * (width - len(one.response))] for one in made], dtype=torch.float64)
        for field in ("train", "rollout", "mask")
    }  # fmt: skip
    logged = helper.compute_offpolicy_metrics(columns["train"], columns["rollout"], columns["mask"])
    assert token["k1"]["value"] == pytest.approx(float(logged["kl"]), rel=1e-6)
    assert token["k3"]["value"] == pytest.approx(float(logged["k3_kl"]), rel=1e-6)


@pytest.mark.parametrize("name", ONE_SIDED)
def test_one_sided(name: str, golden: tuple[Path, list[Any]], tmp_path: Path) -> None:
    folder, made = golden
    run, section = take(name, folder / name, tmp_path / "run")
    rollout = Trace(run, 1).rollout
    # The interrupted response becomes two rows; the second's prompt is all that came before it.
    assert len(rollout.sequence_id) == len(made) + 1
    assert np.diff(rollout.prompt_offsets)[2] == len(made[1].prompt) + 4
    kept = np.concatenate([one.rollout[one.mask.astype(bool)] for one in made])
    assert np.array_equal(rollout.logprobs, kept.astype(np.float64))
    assert len(set(rollout.prompt_index.tolist())) == 4
    assert not section["two_sided"] and "train/forward" in section["missing"]
    with pytest.raises(InconclusiveError, match="train/forward"):
        measure_run(run)


def test_unknown_columns_are_kept(golden: tuple[Path, list[Any]], tmp_path: Path) -> None:
    import json

    run, section = take("prime-rl", golden[0] / "prime-rl", tmp_path / "run")
    assert {"env_name", "mismatch_kl", "step"} <= set(section["kept_beside"])
    rows = [json.loads(line) for line in run.extras_part(0).read_text().splitlines()]
    assert [row["sequence_id"] for row in rows] == list(range(8))
    assert rows[0]["env_name"] == "arithmetic"
    assert "reward" in section["missing"]


def test_routes_are_named_as_left_out(golden: tuple[Path, list[Any]], tmp_path: Path) -> None:
    _, section = take("verl", golden[0] / "verl", tmp_path / "run")
    assert section["left_out"]["column routed_experts: routes are not imported"] == 1


def test_parts_are_exact(
    golden: tuple[Path, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mismatch_probe.stages.importing.PART_ROWS", 3)
    whole, _ = take("slime", golden[0] / "slime", tmp_path / "run")
    assert whole.read_manifest()["num_parts"] == 3
    trace = Trace(whole, 3)
    assert trace.rollout.sequence_id.tolist() == list(range(8))
    assert trace.logprobs("train/forward").size == trace.rollout.logprobs.size
