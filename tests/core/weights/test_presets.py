"""One name, different weights: what each framework makes of the same tokens."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mismatch_probe.errors import ConfigError
from mismatch_probe.weights import (
    FRAMEWORKS,
    Batch,
    framework_methods,
    get_method,
    get_method_as_coded,
)


def weigh(
    method: Any, log_ratio: list[float], adv: float = 1.0, *, old: list[float] | None = None
) -> list[float]:
    rollout = [-2.0 - abs(x) for x in log_ratio]
    batch = Batch.from_sequences(
        train_logprobs=[[mu + x for mu, x in zip(rollout, log_ratio, strict=True)]],
        rollout_logprobs=[rollout],
        advantages=[adv],
        old_logprobs=None if old is None else [[mu + x for mu, x in zip(rollout, old, strict=True)]],
    )
    return [float(x) for x in method.coefficients(batch)]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_every_preset_makes_a_method(framework: str) -> None:
    assert framework_methods(framework)
    for name in framework_methods(framework):
        method = get_method_as_coded(framework, name)
        weights = weigh(method, [0.0, 0.0])
        # Everything weighs 1 on-policy, but for an unset epsilon_high that is read as an absolute cap.
        capped = name == "cispo" and framework in ("trl", "ms_swift")
        assert weights[0] == (0.2 if capped else 2.0 if name == "luspo" else 1.0)


def test_cispo_means_a_cap_in_trl_and_a_distance_in_verl() -> None:
    assert weigh(get_method_as_coded("trl", "cispo", cap=0.28), [0.0, 0.5]) == pytest.approx([0.28, 0.28])
    assert weigh(get_method_as_coded("verl", "cispo", eps_high=0.28), [0.0, 0.5]) == pytest.approx(
        [1.0, 1.28]
    )


def test_verl_geo_bounds_act_on_the_inverse_and_skyrl_ones_do_not() -> None:
    drifted = [-0.009] * 4  # s = .99104
    assert weigh(get_method_as_coded("skyrl", "geo_rs"), drifted) == [1.0] * 4
    verl = get_method_as_coded("verl", "geo_rs", low=0.99, high=1.005)  # keeps s in [.99502, 1.0101]
    assert weigh(verl, drifted) == [0.0] * 4
    assert weigh(verl, [0.009] * 4) == [1.0] * 4


def test_sequence_truncation_is_of_the_product_or_of_the_geometric_mean() -> None:
    ratio = [0.5, 0.5]
    assert weigh(get_method_as_coded("verl", "seq_tis"), ratio) == pytest.approx([2.0, 2.0])
    assert weigh(get_method_as_coded("ms_swift", "seq_tis"), ratio) == pytest.approx([math.exp(0.5)] * 2)


def test_what_survives_a_geometric_mask_keeps_its_token_ratio_in_nemo_rl() -> None:
    ratio = [0.3, -0.3]
    assert weigh(get_method_as_coded("nemo_rl", "geo_rs"), ratio) == pytest.approx(
        [math.exp(0.3), math.exp(-0.3)]
    )
    assert weigh(get_method_as_coded("verl", "geo_rs"), ratio) == [1.0, 1.0]
    truncated = get_method("geo_rs", weighting="token", cap=1.1)
    assert weigh(truncated, ratio) == pytest.approx([1.1, math.exp(-0.3)])
    whole = get_method("geo_rs", weighting="sequence", low=0.5, high=2.0)
    assert weigh(whole, [0.1, 0.2]) == pytest.approx([math.exp(0.3)] * 2)


def test_areal_k3_counts_unlikely_tokens_exponentially() -> None:
    unlikely = [-3.0] + [0.0] * 99
    assert weigh(get_method("k3_rs", bound=0.05), unlikely)[0] == 1.0  # (e^-3 - 1 + 3) / 100 = .0205
    assert (
        weigh(get_method_as_coded("areal", "k3_rs", bound=0.05), unlikely)[0] == 0.0
    )  # (e^3 - 4) / 100 = .161


def test_slime_opsm_default_drops_ordinary_negative_responses() -> None:
    drifted = [-1e-3] * 10
    assert weigh(get_method_as_coded("slime", "opsm"), drifted, -1.0) == [0.0] * 10
    assert weigh(get_method_as_coded("slime", "opsm"), drifted, 1.0) == [1.0] * 10
    assert weigh(get_method("opsm"), drifted, -1.0) == [1.0] * 10


def test_a_broadcast_sequence_weight_enters_vespo_once_per_token() -> None:
    mismatch = [0.01] * 10
    once = weigh(get_method("vespo", variant="repo"), mismatch, old=mismatch)
    broadcast = get_method("vespo", variant="repo", is_mode="sequence_broadcast", is_max=None)
    assert weigh(broadcast, mismatch, old=mismatch)[0] == pytest.approx(
        weigh(get_method("vespo"), [1.0 / 10] * 10)[0]  # log W = 10 * (10 * .01)
    )
    assert once[0] == pytest.approx(weigh(get_method("vespo"), mismatch)[0])


def test_one_masked_token_silences_vespo_in_trl() -> None:
    old = [0.0, 0.0, -2.0]
    mask = get_method_as_coded("trl", "vespo", is_mode="token_mask", is_min=0.5)
    assert max(weigh(mask, old, old=old)) < 1e-14
    truncated = get_method_as_coded("trl", "vespo", is_min=0.5)
    assert weigh(truncated, old, old=old)[0] == pytest.approx(weigh(get_method("vespo"), [math.log(0.5)])[0])


def test_unknown_pairs_are_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'verl'"):
        get_method_as_coded("verll", "gspo")
    with pytest.raises(ConfigError, match="has no 'vespo'"):
        get_method_as_coded("verl", "vespo")
    with pytest.raises(ConfigError, match="vespo"):
        get_method_as_coded("verl", "vesp")
