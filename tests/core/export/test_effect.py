"""What a config is said to do to a run's tokens, against numbers worked out by hand."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from core.export.conftest import Make, simulate
from core.export.reading import load
from hypothesis import given
from hypothesis import strategies as st

from mismatch_probe.errors import ConfigError
from mismatch_probe.export import available_exporters, export_config
from mismatch_probe.export.effect import expected_effect
from mismatch_probe.recommendation import recommend
from mismatch_probe.result import to_json
from mismatch_probe.simulate.responses import Responses
from mismatch_probe.weights import Batch, available_methods, get_method

# Two prompts with two responses of two tokens each; ratios pi_old / mu and pi / pi_old of every token.
MISMATCH = np.array([1.0, 4.0, 0.25, 1.0, 1.0, 1.0, 2.0, 2.0])
UPDATE = np.array([1.0, 1.0, 1.0, 1.1, 1.5, 1.0, 1.0, 0.5])
ADVANTAGES = np.array([1.0, -1.0, 1.0, -1.0])


def responses(*, old: bool = True, advantages: np.ndarray | None = ADVANTAGES) -> Responses:
    mu = np.full(8, -3.0)
    pi_old = mu + np.log(MISMATCH)
    pi = pi_old + np.log(UPDATE)
    return Responses.of(
        pi, mu, [0, 2, 4, 6, 8], [0, 0, 1, 1], advantages, old_logprobs=pi_old if old else None
    )


def test_the_clip_and_a_cap_by_hand() -> None:
    factors = (get_method("ppo_clip"), get_method("token_tis", cap=3.0, objective="none"))
    effect = expected_effect(factors, responses(), resamples=200)
    # The fifth token is clipped (A > 0, 1.5), the last one too (A < 0, 0.5); the second is truncated at 3.
    phi = np.array([1.0, 3.0, 0.25, 1.1, 0.0, 1.0, 2.0, 0.0])
    assert effect.kept_fraction.value == pytest.approx(6 / 8)
    assert effect.mean_weight.value == pytest.approx(phi.mean())
    assert effect.ess.value == pytest.approx(phi.sum() ** 2 / (8 * np.square(phi).sum()))
    assert effect.kept_fraction.n == 8
    assert effect.reads == ("train/old", "old/rollout")
    assert not effect.assumed_old and not effect.assumed_signs
    assert "keeps 75 %" in effect.sentence() and "Assumed" not in effect.sentence()


def test_without_pi_old_and_advantages_it_says_what_it_assumes() -> None:
    factors = (get_method("dual_clip"), get_method("icepop", objective="none"))
    effect = expected_effect(factors, responses(old=False, advantages=None), resamples=0)
    # pi stands for pi_old: no token is clipped, and the ratio to mu is the whole drift.
    ratio = MISMATCH * UPDATE
    phi = np.where((ratio >= 0.5) & (ratio <= 5.0), ratio, 0.0)
    assert effect.mean_weight.value == pytest.approx(phi.mean())
    assert effect.kept_fraction.value == pytest.approx((phi > 0).mean())
    assert effect.assumed_old and effect.assumed_signs
    assert "pi_old = pi" in effect.sentence() and "both signs" in effect.sentence()


def test_intervals_are_over_prompts_and_hold_the_value() -> None:
    _, simulated = simulate(noise=0.3, length=20)
    effect = expected_effect((get_method("seq_tis", objective="none"),), simulated, resamples=200)
    for estimate in (effect.mean_weight, effect.ess):
        assert estimate.value is not None and estimate.ci_low is not None and estimate.ci_high is not None
        assert estimate.ci_low < estimate.value < estimate.ci_high


def test_a_config_of_which_nothing_is_known_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing is known"):
        expected_effect((), responses())


def test_all_dropped_has_no_effective_size() -> None:
    effect = expected_effect((get_method("icepop", low=7.0, high=9.0),), responses(), resamples=50)
    assert effect.kept_fraction.value == 0.0 and effect.ess.value is None
    assert "not known" in effect.sentence()


DECOUPLED = ("token_tis", "seq_tis", "icepop", "seq_mis", "geo_rs", "k3_rs", "kpop", "opsm")


@given(st.sampled_from(DECOUPLED), st.integers(0, 1000))
def test_the_clip_and_the_factor_of_the_mismatch_make_the_method(name: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    mu, drift = -generator.exponential(1.0, 12), generator.normal(0, 0.6, (2, 12))
    batch = Batch.from_arrays(
        mu + drift.sum(axis=0), mu, [0, 5, 6, 12], [1.0, -1.0, -2.0], old_logprobs=mu + drift[0]
    )
    whole = get_method(name).coefficients(batch)
    parts = get_method("ppo_clip").coefficients(batch) * get_method(name, objective="none").coefficients(
        batch
    )
    np.testing.assert_allclose(parts.numpy(), whole.numpy(), rtol=1e-12)


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("truncated_geometric", math.sqrt(2.5)),
        ("truncated_arithmetic", 1.75),
        ("mean", 2.5),
        ("sequence", 2.5),
    ],
)
def test_means_of_truncated_ratios(scope: str, expected: float) -> None:
    pi = [-3.0, -3.0 + math.log(9.0)]
    batch = Batch.from_arrays(pi, [-3.0, -3.0], [0, 2], [1.0], old_logprobs=pi)
    phi = get_method("seq_tis", cap=2.5, scope=scope).coefficients(batch)
    assert phi.tolist() == pytest.approx([expected, expected])


@pytest.fixture(scope="module")
def drifting() -> tuple[dict[str, Any], Responses]:
    result, simulated = simulate(noise=0.3)
    result["recommendation"] = to_json(recommend(result, simulated, resamples=50))
    return result, simulated


@pytest.mark.parametrize("to", available_exporters())
def test_every_config_says_what_it_does(drifting: tuple[dict[str, Any], Responses], to: str) -> None:
    result, simulated = drifting
    seen = 0
    for method in available_methods():
        try:
            plain = export_config(result, to, method=method)
        except ConfigError:
            continue
        told = export_config(result, to, method=method, responses=simulated)
        assert plain.effect is None and told.effect is not None
        assert told.applies == plain.applies and told.applies
        assert load(told) == load(plain) and told.entries == plain.entries
        head = " ".join(line.lstrip("# ") for line in told.text.splitlines())
        assert told.effect.sentence() in head and "On this run" not in plain.text
        seen += 1
    assert seen


@pytest.mark.parametrize(
    ("to", "method", "key", "name"),
    [
        ("trl", "seq_tis", "vllm_importance_sampling_clip_max", "cap"),
        ("skyrl", "seq_tis", "sequence_tis_ratio_clip_high", "cap"),
        ("nemo-rl", "token_tis", "truncated_importance_sampling_ratio", "cap"),
        ("ms-swift", "opsm", "off_policy_sequence_mask_delta", "delta"),
        ("prime-rl", "prime_dppo", "dppo_mask_low", "mask_low"),
    ],
)
def test_what_it_does_has_the_numbers_that_were_written(
    drifting: tuple[dict[str, Any], Responses], to: str, method: str, key: str, name: str
) -> None:
    config = export_config(drifting[0], to, method=method)
    (written,) = (entry.value for entry in config.entries if entry.key.endswith(key))
    assert written in [getattr(factor, name, None) for factor in config.applies]


def test_a_policy_that_cannot_be_weighed_is_said_in_a_note(
    drifting: tuple[dict[str, Any], Responses],
) -> None:
    result, simulated = drifting
    broken = dataclasses.replace(simulated, old=np.full_like(simulated.train, np.nan))
    config = export_config(result, "verl", method="token_tis", responses=broken)
    assert config.effect is None and "On this run" not in config.text
    assert any("is not known: old_logprobs holds NaN" in note for note in config.notes)


@pytest.mark.parametrize("to", available_exporters())
def test_a_result_without_numbers_gives_the_frameworks_own(make_result: Make, to: str) -> None:
    """No quantile and no fit: what is written leaves thresholds out, and is read with the framework's defaults."""
    result = make_result()
    for path in (
        ("token", "quantiles"),
        ("sequence", "log_weight"),
        ("sequence", "length_law"),
        ("legs", "floor"),
    ):
        del result[path[0]][path[1]]
    result["recommendation"]["candidates"] = {}
    for method in available_methods():
        try:
            config = export_config(result, to, method=method)
        except ConfigError as error:
            assert "cannot express" in str(error)
            continue
        assert config.applies


def test_in_bypass_mode_the_weights_read_the_update_as_well() -> None:
    factors = (
        get_method("reinforce"),
        get_method("token_tis", cap=3.0, objective="none", mismatch="train/rollout"),
    )
    effect = expected_effect(factors, responses(), resamples=0)
    assert effect.mean_weight.value == pytest.approx(np.minimum(MISMATCH * UPDATE, 3.0).mean())
    assert effect.reads == ("none", "train/rollout")
