"""What `export` writes is taken by the frameworks themselves, and does in their code what its comments say."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from core.export.conftest import build
from parity.exported import exported, runs
from parity.trl_side import CHECKPOINT, trl_config
from parity.verl_side import MEGATRON, in_verl, verl_defaults

from mismatch_probe.export import export_config


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, Any]]:
    return runs()


def shell_words(text: str) -> list[str]:
    """The commented overrides, as a shell would hand them on; those of the VESPO fork are not verl's."""
    lines = re.findall(r"^#   ((?:algorithm|actor_rollout_ref)\..*)$", text, re.MULTILINE)
    return [word for line in lines if "=vespo" not in line for word in shlex.split(line)]


def hydra_overrides(text: str) -> list[Any]:
    """The same, read by Hydra's own grammar."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed: list[Any] = OverridesParser.create().parse_overrides(shell_words(text))
    assert len(parsed) > 5
    return parsed


def test_verl_takes_the_yaml(subtests: pytest.Subtests, results: dict[str, dict[str, Any]]) -> None:
    from omegaconf import OmegaConf
    from verl.trainer.config import RolloutCorrectionConfig
    from verl.trainer.ppo.core_algos import get_policy_loss_fn
    from verl.utils.config import omega_conf_to_dataclass

    for method, kind, config in exported("verl"):
        text = config.text
        with subtests.test(method=method, kind=kind):
            merged = in_verl(text, *(MEGATRON if kind == "replay" else ()))
            fragment = OmegaConf.create(text)
            for override in hydra_overrides(text):
                stated = OmegaConf.select(fragment, override.key_or_group, throw_on_missing=True)
                assert override.value() == stated
            correction = omega_conf_to_dataclass(merged.algorithm.rollout_correction, RolloutCorrectionConfig)
            for name, value in fragment.algorithm.rollout_correction.items():
                read = getattr(correction, name)
                assert read == value and type(read) is type(value)
            actor = omega_conf_to_dataclass(merged.actor_rollout_ref.actor)
            assert callable(get_policy_loss_fn(actor.policy_loss.loss_mode))
            rollout = omega_conf_to_dataclass(merged.actor_rollout_ref.rollout)
            assert rollout.calculate_log_probs is True and rollout.logprobs_mode == "processed_logprobs"
            assert rollout.temperature == results[kind]["provenance"]["sampling"]["temperature"]
            if kind == "replay":
                assert actor.megatron.router_replay.mode == "R3"
                assert rollout.enable_rollout_routing_replay is True


@pytest.mark.parametrize(("method", "kind"), [("icepop", "dense"), ("seq_mis", "replay")])
def test_hydra_composes_the_overrides(method: str, kind: str, results: dict[str, dict[str, Any]]) -> None:
    text = export_config(results[kind], "verl", method=method).text
    engine = MEGATRON if kind == "replay" else ()
    assert in_verl(text, *engine) == verl_defaults(*engine, *shell_words(text))


def test_routing_replay_needs_the_trainer_that_the_note_names(results: dict[str, dict[str, Any]]) -> None:
    from omegaconf.errors import ConfigKeyError

    exported = export_config(results["replay"], "verl")
    assert any("Megatron" in note and "FSDP has none" in note for note in exported.notes)
    with pytest.raises(ConfigKeyError, match="megatron"):
        in_verl(exported.text)


def test_verl_refuses_a_key_that_it_does_not_have() -> None:
    """Without this the tests above would pass for any text."""
    from omegaconf.errors import ConfigKeyError

    with pytest.raises(ConfigKeyError):
        in_verl("algorithm:\n  rollout_correction:\n    rollout_iss: token\n")


@pytest.mark.parametrize(
    ("method", "low", "high"), [("geo_rs", 0.97, 1.0), ("seq_mis", 0.97, 1.0), ("k3_rs", 0.9, 1.0)]
)
def test_exported_bounds_keep_in_verl_what_they_were_fitted_to(method: str, low: float, high: float) -> None:
    """The tokens of the run itself through verl's rejection: a band read the wrong way round would drop them."""
    from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_and_rejection_mask

    noise, length = 0.1, 40
    result = build(noise=noise, length=length, explained=None)
    generator = np.random.default_rng(0)
    log_ratio = torch.from_numpy(generator.normal(-(noise**2) / 2, noise, 200 * length).reshape(200, length))
    rollout = torch.full_like(log_ratio, -1.0)
    keys = in_verl(export_config(result, "verl", method=method).text).algorithm.rollout_correction
    _, mask, _ = compute_rollout_correction_and_rejection_mask(
        rollout + log_ratio,
        rollout,
        torch.ones_like(rollout),
        rollout_is=keys.rollout_is,
        rollout_is_threshold=keys.rollout_is_threshold,
        rollout_rs=keys.rollout_rs,
        rollout_rs_threshold=keys.rollout_rs_threshold,
    )
    assert low <= float(mask.mean()) <= high


def test_trl_parses_the_yaml(
    subtests: pytest.Subtests, results: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    for method, kind, config in exported("trl"):
        with subtests.test(method=method, kind=kind):
            read = trl_config(config.text, tmp_path)
            for name, value in yaml.safe_load(config.text).items():
                assert getattr(read, name) == value, name


@pytest.mark.parametrize("method", ["vespo", "gspo", "two_sided"])
def test_trl_builds_a_trainer_of_it(method: str, results: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """All checks of its constructor come before it looks for the vLLM server, here at a port where none is."""
    import requests

    config = trl_config(export_config(results["dense"], "trl", method=method).text, tmp_path)
    with pytest.raises(requests.exceptions.ConnectionError, match="vLLM server can't be reached"):
        build_trainer(config)


def build_trainer(config: Any) -> Any:
    from datasets import Dataset
    from trl import GRPOTrainer

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [0.0] * len(completions)

    prompts = Dataset.from_dict({"prompt": ["1 + 1 ="] * 8})
    return GRPOTrainer(model=str(CHECKPOINT), reward_funcs=reward, args=config, train_dataset=prompts)


def test_trl_refuses_what_the_export_avoids(results: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """VESPO with TRL's own default mode: the reason why the export names another one."""
    from trl import GRPOConfig

    keys = yaml.safe_load(export_config(results["dense"], "trl", method="vespo").text)
    keys["vllm_importance_sampling_mode"] = GRPOConfig.vllm_importance_sampling_mode
    config = GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], **keys)
    with pytest.raises(ValueError, match="VESPO loss requires"):
        build_trainer(config)
    with pytest.raises(TypeError, match="unexpected keyword"):
        GRPOConfig(output_dir=str(tmp_path), vespo_kpos=2.0)
