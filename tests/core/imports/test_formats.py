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
from mismatch_probe.trace.parts import read_table
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.schema import rollout_schema
from mismatch_probe.trace.trace import Trace

TWO_SIDED = ("prime-rl", "nemo-rl", "skyrl", "slime", "miles", "trl")
ONE_SIDED = {"verl": "verl", "verl-queue": "verl", "roll": "roll"}
ROUTED = {
    "verl": "verl",
    "verl-queue": "verl",
    "skyrl": "skyrl",
    "slime": "slime",
    "miles": "miles",
    "roll": "roll",
}


def by_token(rows: list[Any]) -> Any:
    return np.concatenate(rows)


def k3(ratio: Any) -> Any:
    return np.expm1(ratio) - ratio


# What each framework logs of its own dump, over log-ratios t - s by sequence: (framework, key) and the formula it codes.
LOGGED: dict[str, dict[tuple[str, str], Any]] = {
    "prime-rl": {("prime-rl", "mismatch_kl/all/mean"): lambda rows: np.mean(k3(by_token(rows)))},
    "nemo-rl": {
        ("NeMo-RL", "gen_kl_error"): lambda rows: np.mean(k3(by_token(rows))),
        ("NeMo-RL", "token_mult_prob_error"): lambda rows: np.mean(np.exp(np.abs(by_token(rows)))),
    },
    "skyrl": {
        ("SkyRL", "policy/rollout_train_logprobs_abs_diff_mean"): lambda rows: np.mean(np.abs(by_token(rows)))
    },
    "slime": {
        ("slime", "train/train_rollout_logprob_abs_diff"): lambda rows: np.mean(
            [np.mean(np.abs(row)) for row in rows]
        ),
        ("slime", "mis_k3_kl"): lambda rows: np.mean([np.mean(k3(row)) for row in rows]),
    },
    "miles": {("miles", "train/train_rollout_kl"): lambda rows: np.mean([np.mean(k3(row)) for row in rows])},
    "trl": {("TRL", "sampling/sampling_logp_difference/mean"): lambda rows: np.mean(np.abs(by_token(rows)))},
}


def take(name: str, dump: Path, out: Path) -> tuple[RunDirectory, dict[str, Any]]:
    run = RunDirectory(out)
    with run.claim():
        section = import_dump(run, name, dump, ProbeConfig(out=out), "test")
    return run, section


def test_every_format_is_tested() -> None:
    assert {entry.name for entry in importers} == {*TWO_SIDED, *ONE_SIDED.values()}


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
    assert section["two_sided"] and section["masked_sequences"] == 1
    assert np.array_equal(trace.recorded.lengths, [len(one.response) for one in made])

    # The frameworks' definitions, from the arrays themselves: t the trainer's, s the rollout's.
    s, t = flat("rollout").astype(np.float64), flat("train").astype(np.float64)
    result = measure_run(run)
    token = result["token"]
    assert token["k1"]["value"] == pytest.approx(np.mean(s - t), rel=1e-9)
    assert token["k3"]["value"] == pytest.approx(np.mean(np.expm1(t - s) - (t - s)), rel=1e-6)
    assert token["mean_abs_log_ratio"]["value"] == pytest.approx(np.mean(np.abs(t - s)), rel=1e-9)
    shown = {(item["framework"], item["name"]): item["value"] for item in token["dashboards"]}
    assert {key: shown[key] for key in shown if key in LOGGED[name]} == pytest.approx(
        {key: logged([(one.train - one.rollout.astype(np.float64))[keep] for one, keep in zip(made, counted, strict=True)])
         for key, logged in LOGGED[name].items()}, rel=1e-6,
    )  # fmt: skip
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


@pytest.mark.parametrize("dump", ONE_SIDED)
def test_one_sided(dump: str, golden: tuple[Path, list[Any]], tmp_path: Path) -> None:
    folder, made = golden
    run, section = take(ONE_SIDED[dump], folder / dump, tmp_path / "run")
    trace = Trace(run, 1)
    # Scored are the ids as the model saw them; measured are the counted ones.
    assert np.array_equal(trace.recorded.response_tokens, np.concatenate([one.response for one in made]))
    assert np.array_equal(trace.recorded.prompt_tokens, np.concatenate([one.prompt for one in made]))
    kept = np.concatenate([one.rollout[one.mask.astype(bool)] for one in made])
    assert np.array_equal(trace.rollout.logprobs, kept.astype(np.float64))
    assert trace.rollout.prompt_index.tolist() == [one.group for one in made]
    assert trace.rollout.reward is None or trace.rollout.reward.tolist() == [one.reward for one in made]
    assert not section["two_sided"] and "train/forward" in section["missing"]
    with pytest.raises(InconclusiveError, match="train/forward"):
        measure_run(run)


def test_weight_versions_of_the_queue(golden: tuple[Path, list[Any]], tmp_path: Path) -> None:
    run, _ = take("verl", golden[0] / "verl-queue", tmp_path / "run")
    versions = read_table(run.rollout_part(0), rollout_schema())["weight_version"].to_pylist()
    assert versions == ["3", "3..4"] * 4


def test_unknown_columns_are_kept(golden: tuple[Path, list[Any]], tmp_path: Path) -> None:
    import json

    run, section = take("prime-rl", golden[0] / "prime-rl", tmp_path / "run")
    assert {"env_name", "mismatch_kl", "step"} <= set(section["kept_beside"])
    rows = [json.loads(line) for line in run.extras_part(0).read_text().splitlines()]
    assert [row["sequence_id"] for row in rows] == list(range(8))
    assert rows[0]["env_name"] == "arithmetic"
    assert "reward" in section["missing"]


@pytest.mark.parametrize("dump", ROUTED)
def test_routes(dump: str, golden: tuple[Path, list[Any]], tmp_path: Path) -> None:
    """Every fed token's experts, whatever the padding and the filler; -1 where none were recorded."""
    folder, made = golden
    run, section = take(ROUTED[dump], folder / dump, tmp_path / "run")
    assert section["routes"] == {"layers": 3, "top_k": 2}
    experts, offsets = Trace(run, 1).routes("rollout/decode")
    assert np.array_equal(experts, np.concatenate([one.routes for one in made]))
    assert np.array_equal(np.diff(offsets), [len(one.routes) for one in made])


def test_parts_are_exact(
    golden: tuple[Path, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mismatch_probe.stages.importing.PART_ROWS", 3)
    whole, _ = take("slime", golden[0] / "slime", tmp_path / "run")
    assert whole.read_manifest()["num_parts"] == 3
    trace = Trace(whole, 3)
    assert trace.rollout.sequence_id.tolist() == list(range(8))
    assert trace.logprobs("train/forward").size == trace.rollout.logprobs.size
