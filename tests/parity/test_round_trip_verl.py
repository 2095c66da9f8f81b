"""What is predicted of a config for verl is what verl then does: its own classes load it and drive its own correction and loss."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import torch
from parity.batches import discrepancy
from parity.conftest import DTYPES
from parity.measured import Run, Summary
from parity.round_trip import apart, config_of, exported, product, through_verl

from mismatch_probe.errors import ConfigError
from mismatch_probe.export import export_config
from mismatch_probe.export.annotated import Value
from mismatch_probe.export.applied.verl import methods
from mismatch_probe.weights import framework_methods

CORRECTION = "algorithm.rollout_correction."
ACTOR = "actor_rollout_ref.actor."
# Nothing is dropped by what holds a clipped ratio constant, fades, or has no ratio.
KEEP_ALL = {"cispo", "reinforce", "sapo"}


def allowed(dtype: torch.dtype) -> float:
    return 1e-6 if dtype == torch.float32 else 1e-8


@DTYPES
def test_every_method_that_can_be_exported(
    subtests: pytest.Subtests, planted: Run, dtype: torch.dtype
) -> None:
    seen = set()
    for method, config in exported("verl", planted):
        with subtests.test(method=method):
            tokens = planted.tokens(dtype)
            done = through_verl(config.text, tokens)
            did, predicted = Summary.of(done.phi, tokens), Summary.predicted(config.applies, planted)
            assert predicted.apart(did) <= allowed(dtype), (predicted, did)
            # One by one as well: three sums could agree by chance.
            assert discrepancy(done.phi, product(config.applies, tokens)) <= 1e-6
            assert did.kept_fraction == 1.0 if method in KEEP_ALL else 0.3 < did.kept_fraction < 1.0
            seen.add(method)
    assert set(framework_methods("verl")) <= seen


def test_weights_masks_and_logged_metrics(subtests: pytest.Subtests, planted: Run) -> None:
    """The parts by themselves: verl's tensors, and what it logs of them, against the effect of the factors alone."""
    tokens = planted.tokens()
    weighed = dropped = 0
    for method, config in exported("verl", planted):
        done = through_verl(config.text, tokens)
        assert done.logged is not None and done.mask is not None
        with subtests.test(method=method):
            keys = {entry.key: entry.value for entry in config.entries}
            has_weights = keys[f"{CORRECTION}rollout_is"] is not None
            factors, rejection = config.applies[1 : 1 + has_weights], config.applies[1 + has_weights :]
            assert has_weights == (done.weights is not None)
            if done.weights is not None and method != "gmpo":
                effect = Summary.predicted(factors, planted)
                assert discrepancy(done.weights * tokens.mask, product(factors, tokens)) <= 1e-12
                logged = done.logged
                assert logged["rollout_corr/rollout_is_mean"] == pytest.approx(effect.mean_weight, abs=1e-6)
                assert logged["rollout_corr/rollout_is_eff_sample_size"] == pytest.approx(
                    effect.ess, abs=1e-6
                )
                if keys[f"{CORRECTION}rollout_is"] == "token" and method != "icepop":
                    assert logged["rollout_corr/rollout_is_ratio_fraction_high"] > 0, "nothing was truncated"
                weighed += 1
            if rejection:
                kept = Summary.predicted(rejection, planted).kept_fraction
                assert torch.equal(done.mask > 0, (product(rejection, tokens) > 0) & tokens.mask)
                masked = done.logged["rollout_corr/rollout_rs_masked_fraction"]
                assert masked == pytest.approx(1 - kept, abs=1e-6) and 0 < masked < 1
                dropped += 1
    assert weighed >= 7 and dropped >= 4


PRESETS = (
    *("decoupled_token_is", "decoupled_seq_is", "decoupled_token_icepop", "decoupled_seq_is_rs"),
    *("decoupled_geo_rs", "decoupled_geo_rs_seq_tis", "decoupled_geo_rs_token_tis"),
    *("decoupled_k3_rs", "decoupled_k3_rs_seq_tis", "decoupled_k3_rs_token_tis", "disabled"),
)
BYPASS = (
    *(
        "bypass_ppo_clip",
        "bypass_ppo_clip_geo_rs",
        "bypass_ppo_clip_k3_rs",
        "bypass_pg_is",
        "bypass_pg_token_icepop",
    ),
    *("bypass_pg_geo_rs", "bypass_pg_geo_rs_seq_tis", "bypass_pg_geo_rs_token_tis"),
)
OPTIONS: tuple[dict[str, Value], ...] = (
    {"rollout_rs": "token_k1", "rollout_rs_threshold": "0.8_1.5"},
    {"rollout_rs": "seq_sum_k1", "rollout_rs_threshold": 3.0},
    {"bypass_mode": True, "loss_type": "reinforce", "rollout_is": "token", "rollout_is_threshold": 1.2},
    {"rollout_rs": "token_k1,seq_mean_k3", "rollout_rs_threshold": "0.5_2.5,0.05"},
    {"rollout_is": "sequence", "rollout_is_threshold": "0.5_3.0"},
    {"rollout_is": "token", "rollout_is_threshold": 1.3, "rollout_is_batch_normalize": True},
    {"rollout_is": "sequence", "rollout_is_threshold": 1.3, "rollout_is_batch_normalize": True},
    {"rollout_is": "token", "rollout_is_threshold": "0.7_1.4", "rollout_is_batch_normalize": True},
)


def whole_preset(name: str) -> dict[str, Any]:
    """All keys of a preset of verl's RolloutCorrectionConfig."""
    from verl.trainer.config import RolloutCorrectionConfig

    config = getattr(RolloutCorrectionConfig, name)()
    return {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if not field.name.startswith("_")
    }


def test_every_preset_is_there() -> None:
    from verl.trainer.config import RolloutCorrectionConfig

    members = vars(RolloutCorrectionConfig).items()
    presets = {
        name for name, member in members if isinstance(member, classmethod) and not name.startswith("_")
    }
    assert presets == {*PRESETS, *BYPASS}


@pytest.mark.parametrize("keys", [*PRESETS, *BYPASS, *OPTIONS], ids=str)
def test_keys_that_no_export_writes(keys: str | dict[str, Value], planted: Run) -> None:
    """verl's own presets, and options besides them: read the same way, they come to what verl does."""
    given = whole_preset(keys) if isinstance(keys, str) else keys
    text, entries = config_of({f"{CORRECTION}{name}": value for name, value in given.items()})
    tokens = planted.tokens()
    done = through_verl(text, tokens)
    # verl adds 1e-8 to the count of the weights whose mean it divides by.
    assert Summary.predicted(methods(entries), planted).apart(Summary.of(done.phi, tokens)) <= 1e-7


@pytest.mark.parametrize(
    "keys",
    [
        *({f"{CORRECTION}rollout_rs": name, f"{CORRECTION}rollout_rs_threshold": 2.0} for name in (
            *("token_k2", "token_k3", "seq_sum_k2", "seq_sum_k3", "seq_mean_k2", "seq_max_k2", "seq_max_k3"),
        )),
        *({f"{ACTOR}policy_loss.loss_mode": name} for name in ("clip_cov", "kl_cov", "dro")),
        {f"{ACTOR}policy_loss.loss_mode": "geo_mean", f"{CORRECTION}rollout_is": "sequence"},
    ],
    ids=lambda keys: "-".join(map(str, keys.values())),
)  # fmt: skip
def test_what_no_method_stands_for_is_not_guessed(keys: dict[str, Value]) -> None:
    with pytest.raises(ConfigError, match="no method stands for"):
        methods(config_of(keys)[1])


@pytest.mark.parametrize(
    ("method", "key"),
    [("token_tis", "rollout_is_threshold"), ("icepop", "rollout_is_threshold"), ("geo_rs", "rollout_rs_threshold")],
)  # fmt: skip
def test_a_wrong_threshold_breaks_it(method: str, key: str, planted: Run) -> None:
    """Without this the equalities above could be those of numbers that nothing depends on."""
    config = export_config(planted.result, "verl", method=method)
    assert apart("verl", config, planted) <= 1e-8
    (written,) = re.findall(rf"^    {key}: (.+)$", config.text, re.MULTILINE)
    bounds = [float(bound) for bound in written.strip('"').split("_")]
    wrong = str(0.9 * bounds[-1])
    if len(bounds) == 2:
        wrong = f'"{bounds[0] + 0.3 * (bounds[1] - bounds[0])}_{bounds[1]}"'
    tokens = planted.tokens()
    did = Summary.of(through_verl(config.text.replace(written, wrong), tokens).phi, tokens)
    assert Summary.predicted(config.applies, planted).apart(did) > 1e-4
