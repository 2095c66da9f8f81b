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


def test_what_is_beyond_e20_has_no_gradient_in_verl() -> None:
    huge = [0.0, 21.0]
    assert weigh(get_method("dual_clip", c=1e12), huge, -1.0)[1] == pytest.approx(math.exp(21.0))
    assert weigh(get_method_as_coded("verl", "dual_clip", c=1e12), huge, -1.0) == [1.0, 0.0]
    assert weigh(get_method_as_coded("verl", "sapo"), huge) == [1.0, 0.0]


def test_verl_clips_twice_under_every_correction() -> None:
    old = [0.0, 0.0]
    moved = [0.0, math.log(3.5)]  # the update; pi_old = mu
    assert weigh(get_method("token_tis"), moved, -1.0, old=old) == pytest.approx([1.0, 3.5])
    assert weigh(get_method_as_coded("verl", "token_tis"), moved, -1.0, old=old) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("variant", "weight"), [("capped", math.exp(10.0)), ("paper", math.exp(12.0)), ("verl", 0.0)]
)
def test_gspo_above_e10(variant: str, weight: float) -> None:
    assert weigh(get_method("gspo", variant=variant), [12.0] * 3, -1.0) == pytest.approx([weight] * 3)
    assert weigh(get_method("gspo", variant=variant), [12.0] * 3, 1.0) == [0.0] * 3


def test_opsm_of_slime_does_not_see_the_mismatch() -> None:
    drifted = [-1e-3] * 10
    assert weigh(get_method_as_coded("slime", "opsm"), drifted, -1.0, old=drifted) == [1.0] * 10
    assert weigh(get_method_as_coded("trl", "opsm", delta=1e-4), drifted, -1.0, old=drifted) == [0.0] * 10
    assert get_method_as_coded("slime", "opsm").reads == "train/old"


def test_dppo_of_verl_is_anchored_on_the_recomputed_policy() -> None:
    moved, old = [1.0], [1.0]  # all of it mismatch
    assert weigh(get_method("dppo_tv", delta=0.01), moved, old=old) == [0.0]
    assert weigh(get_method_as_coded("verl", "dppo_tv", delta=0.01), moved, old=old) == [1.0]


def test_dppo_kl_of_verl_caps_the_divergence_of_certain_tokens() -> None:
    train, rollout = math.log1p(-1e-14), math.log1p(-0.003)
    batch = Batch.from_sequences(train_logprobs=[[train]], rollout_logprobs=[[rollout]], advantages=[1.0])
    # D = .997 log .997 + .003 log(.003 / q) with q = 1e-14, or 1e-8 as coded: .0763 and .0348
    assert float(get_method("dppo_kl").coefficients(batch)[0]) == 0.0
    assert float(get_method("dppo_kl", variant="verl").coefficients(batch)[0]) > 1.0


def test_masks_without_weights() -> None:
    ratio = [math.log(1.5), math.log(3.0)]
    assert weigh(get_method_as_coded("skyrl", "icepop"), ratio) == [1.0, 0.0]
    assert weigh(get_method("icepop", high=2.0), ratio) == pytest.approx([1.5, 0.0])
    assert weigh(get_method_as_coded("roll", "geo_rs"), [0.1, 0.1]) == [1.0, 1.0]


def test_rollout_is_of_skyrl_has_no_clip_and_open_bounds() -> None:
    method = get_method_as_coded("skyrl", "icepop", variant="skyrl_rollout_is", low=0.5, high=2.0)
    assert method.reads == "train/rollout"
    got = weigh(method, [math.log(1.9), math.log(2.0), math.log(0.6)], old=[math.log(1.9), 0.0, 0.0])
    assert got == pytest.approx([1.9, 0.0, 0.6])


def test_areal_weighs_what_survives() -> None:
    ratio = [0.2, -0.1]
    assert weigh(get_method_as_coded("areal", "k3_rs"), ratio) == pytest.approx(
        [math.exp(0.2), math.exp(-0.1)]
    )
    assert weigh(get_method_as_coded("areal", "geo_rs"), ratio) == pytest.approx([math.exp(0.05)] * 2)
    assert weigh(get_method_as_coded("areal", "kpop"), ratio) == pytest.approx(
        [math.exp(0.2), math.exp(-0.1)]
    )
    assert weigh(get_method("kpop"), ratio) == [1.0, 1.0]


def test_m2po_of_areal_keeps_the_clip_and_not_the_mismatch() -> None:
    old, train = [0.1, 0.9, 0.0], [0.2, 0.9, 0.5]
    assert weigh(get_method("m2po"), train, old=old) == pytest.approx([math.exp(0.2), 0.0, math.exp(0.5)])
    assert weigh(get_method_as_coded("areal", "m2po"), train, old=old) == pytest.approx(
        [math.exp(0.1), 0.0, 0.0]
    )


def test_slime_mis_truncates_masks_vetoes_and_normalises() -> None:
    method = get_method_as_coded("slime_mis", "token_tis")
    weights = [1.5, 3.0, 0.4, 1.0]
    mean = (1.5 + 2.0 + 0.4 + 1.0) / 4  # of the truncated weights, rejected tokens included
    assert weigh(method, [math.log(w) for w in weights]) == pytest.approx([1.5 / mean, 0.0, 0.0, 1.0 / mean])
    assert weigh(method, [0.0, math.log(5e-5)]) == [0.0, 0.0]


def test_batch_normalised_weights_have_mean_1() -> None:
    ratio = [math.log(w) for w in (0.5, 1.0, 3.0)]
    for options, name in (({}, "token_tis"), ({"high": 2.0}, "icepop")):
        got = weigh(get_method_as_coded("verl", name, normalise="mean", **options), ratio)
        assert sum(got) / 3 == pytest.approx(1.0)
    assert weigh(get_method("seq_tis", normalise="mean"), [0.3, 0.4]) == pytest.approx([1.0, 1.0])


def test_verl_sequence_bounds_act_on_the_inverse() -> None:
    heavy = [0.5, 0.6]  # W = e^1.1 = 3.004
    assert weigh(get_method("seq_mis", low=0.2, high=2.0), heavy) == [0.0, 0.0]
    verl = get_method_as_coded("verl", "seq_mis", low=0.2, high=2.0)
    assert weigh(verl, heavy) == pytest.approx([2.0, 2.0])  # kept, and truncated at the cap


def test_outliers_veto_a_response_on_either_side() -> None:
    vetoed = get_method("seq_mis", low=0.0, high=1e9, weighting="none", veto=1e-4, veto_high=100.0)
    assert weigh(vetoed, [4.7, -4.0]) == [0.0, 0.0]
    assert weigh(vetoed, [-9.3, 4.0]) == [0.0, 0.0]
    assert weigh(vetoed, [4.5, -4.0]) == [1.0, 1.0]


def test_cispo_of_roll_with_a_unified_mask() -> None:
    masked = get_method_as_coded("roll", "cispo", variant="unified_mask")
    assert weigh(masked, [0.5, -0.5]) == pytest.approx([0.0, 0.9])
    assert weigh(masked, [0.5, -0.5], -1.0) == pytest.approx([1.1, 0.0])
    assert weigh(get_method_as_coded("roll", "cispo"), [0.5, -0.5]) == pytest.approx([1.1, 0.9])


def test_roll_reads_the_update_alone_in_topr() -> None:
    old, train = [-1.0, -1.0], [-1.5, -0.5]
    method = get_method_as_coded("roll", "topr")
    assert weigh(method, train, -1.0, old=old) == pytest.approx([math.exp(-0.5), 1.0])
    assert weigh(get_method("topr"), train, -1.0, old=old) == pytest.approx([math.exp(-2.0)] * 2)


def test_unknown_pairs_are_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'verl'"):
        get_method_as_coded("verll", "gspo")
    with pytest.raises(ConfigError, match="has no 'vespo'"):
        get_method_as_coded("verl", "vespo")
    with pytest.raises(ConfigError, match="vespo"):
        get_method_as_coded("verl", "vesp")
