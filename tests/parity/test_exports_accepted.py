"""What `export` writes for OpenRLHF, SkyRL, AReaL and ms-swift is taken by their own parsers and config classes, and a wrong key is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml
from parity import config_side
from parity.exported import exported, runs
from parity.loading import in_areal, in_openrlhf, in_skyrl, in_swift, overrides_of

from mismatch_probe.export import export_config


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        found |= flat(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return found


def at(config: Any, path: str) -> Any:
    for part in path.split("."):
        config = getattr(config, part)
    return config


def test_openrlhf_parses_the_arguments(subtests: pytest.Subtests) -> None:
    seen = set()
    for method, kind, config in exported("openrlhf"):
        with subtests.test(method=method, kind=kind):
            parsed, loss = in_openrlhf(config.text)
            for entry in config.entries:
                value = list(entry.value) if isinstance(entry.value, tuple) else entry.value
                read = parsed[entry.key]
                assert read == value or read == [value], entry.key
            assert loss.is_correction_level in ("off", "token", "seq")
            seen.add(method)
    assert {"token_tis", "icepop", "geo_rs", "gspo", "dual_clip"} <= seen


def test_openrlhf_truncates_at_the_exported_cap() -> None:
    result = runs()["dense"]
    _, loss = in_openrlhf(export_config(result, "openrlhf", method="token_tis").text)
    cap = max(loss.is_correction_threshold)
    rollout = torch.full((1, 2), -1.0)
    old = rollout + torch.tensor([[0.0, 2.0]])
    mask, advantage = torch.ones(1, 2), torch.ones(1, 2)
    value, *_ = loss(old, old, advantage, mask, rollout, batch_num_tokens=2, global_batch_size=1)
    assert float(value) == pytest.approx(-(1.0 + cap) / 2, rel=1e-5)


@pytest.mark.parametrize(
    "wrong",
    ["--algo.advantage.is_correction_type tis", "--algo.advantage.is_correction_level sequence"],
    ids=["the key of 0.11.0", "a level that there is not"],
)
def test_openrlhf_refuses_a_planted_key(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = export_config(runs()["dense"], "openrlhf").text
    in_openrlhf(text)
    with pytest.raises(SystemExit):
        in_openrlhf(text.replace("MISMATCH_ARGS=(", f"MISMATCH_ARGS=(\n  {wrong}"))
    assert "is_correction" in capsys.readouterr().err


def test_skyrl_takes_yaml_and_overrides(subtests: pytest.Subtests) -> None:
    from omegaconf import OmegaConf

    seen = set()
    for method, kind, config in exported("skyrl"):
        with subtests.test(method=method, kind=kind):
            build = config_side.skyrl().SkyRLTrainConfig.from_dict_config(OmegaConf.create(config.text))
            checked = in_skyrl(overrides_of(config.text)) if kind != "replay" else build
            for entry in config.entries:
                assert at(build, entry.key) == at(checked, entry.key) == entry.value, entry.key
            seen.add(method)
    assert {"token_tis", "seq_tis", "icepop", "seq_mis", "geo_rs", "cispo", "dppo_tv", "gspo"} <= seen


def test_skyrl_refuses_a_planted_key() -> None:
    good = overrides_of(export_config(runs()["dense"], "skyrl").text)
    in_skyrl(good)
    with pytest.raises(ValueError, match="Invalid fields"):
        in_skyrl([*good, "trainer.algorithm.off_policy_correction.tis_ratio=token"])
    with pytest.raises(AssertionError, match="tis_ratio_type"):
        in_skyrl([*good, "trainer.algorithm.off_policy_correction.tis_ratio_type=sentence"])


def test_areal_takes_the_yaml(subtests: pytest.Subtests) -> None:
    seen = set()
    for method, kind, config in exported("areal"):
        if (
            kind == "replay not worth it"
        ):  # AReaL has no key for routes, and its defaults take a second to build
            continue
        with subtests.test(method=method, kind=kind):
            actor, sampling = in_areal(config.text)
            for key, value in flat(yaml.safe_load(config.text)).items():
                root, _, rest = key.partition(".")
                assert at(actor if root == "actor" else sampling, rest) == value, key
            seen.add(method)
    assert {"token_tis", "icepop", "geo_rs", "seq_mis", "k3_rs", "m2po", "gspo", "sapo"} <= seen


def test_areal_refuses_a_planted_key_and_what_the_export_avoids() -> None:
    from omegaconf.errors import ConfigKeyError

    text = export_config(runs()["dense"], "areal", method="token_tis").text
    in_areal(text)
    with pytest.raises(ConfigKeyError):
        in_areal(text.replace("    upper:", "    uppper:"))
    # KPop, as AReaL's own examples have it: the reason why the export refuses it.
    with pytest.raises(ValueError, match="binary_kl"):
        in_areal(
            text.replace('action: "clamp"', 'action: "mask"').replace(
                'metric: "ratio"', 'metric: "binary_kl"'
            )
        )
    with pytest.raises(ValueError, match="behave_imp_weight_cap"):
        in_areal(
            text.replace(
                "  use_decoupled_loss: true", "  use_decoupled_loss: true\n  behave_imp_weight_cap: 5.0"
            )
        )


def test_ms_swift_takes_the_yaml(subtests: pytest.Subtests) -> None:
    seen = set()
    for method, kind, config in exported("ms-swift"):
        with subtests.test(method=method, kind=kind):
            keys = yaml.safe_load(config.text)
            arguments = in_swift(keys)
            for key, value in keys.items():
                assert key in config_side.swift_own_fields() or getattr(arguments, key) == value, key
            seen.add(method)
    assert {"token_tis", "icepop", "geo_rs", "opsm", "cispo", "sapo", "two_sided"} <= seen


def test_ms_swift_refuses_a_planted_key(capsys: pytest.CaptureFixture[str]) -> None:
    keys = yaml.safe_load(export_config(runs()["dense"], "ms-swift").text)
    in_swift(keys)
    with pytest.raises(ValueError, match="rollout_importance_sampling_clip"):
        in_swift({**keys, "rollout_importance_sampling_clip": 2.0})
    with pytest.raises(SystemExit):
        in_swift({**keys, "rollout_importance_sampling_mode": "sequence_is"})
    assert "sequence_is" in capsys.readouterr().err
