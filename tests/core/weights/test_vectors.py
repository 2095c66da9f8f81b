"""Every weight against exact values (60-digit arithmetic), at the tolerance of each case."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mismatch_probe.weights import Batch, get_method
from mismatch_probe.weights.divergences import binary_kl, logit_displacement, total_variation
from mismatch_probe.weights.kernel import kernel, kernel_constants, surrogate
from mismatch_probe.weights.signals import (
    budgeted_rejection,
    confidence_capped_weight,
    penalised_coefficient,
    regression_coefficient,
    smallest_before,
    soft_value,
)

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "weights.json").read_text())["suites"]


def cases(suite: str) -> Any:
    return pytest.mark.parametrize(
        "case", VECTORS[suite], ids=[f"{suite}-{i}" for i in range(len(VECTORS[suite]))]
    )


def check(got: Any, expect: Any, rtol: float) -> None:
    if isinstance(expect, list):
        assert len(got) == len(expect)
        for g, e in zip(got, expect, strict=True):
            check(g, e, rtol)
    elif isinstance(expect, bool):
        assert bool(got) == expect
    else:
        assert abs(float(got) - expect) <= rtol * abs(expect) + 1e-300, (float(got), expect)


def batch_of(
    log_ratio: list[float],
    adv: float,
    *,
    rollout: list[float] | None = None,
    mismatch: list[float] | None = None,
) -> Batch:
    """One sequence; with `mismatch`, log_ratio is pi / pi_old and mismatch is pi_old / mu."""
    mu = (
        torch.zeros(len(log_ratio), dtype=torch.float64)
        if rollout is None
        else torch.tensor(rollout, dtype=torch.float64)
    )
    ratio = torch.tensor(log_ratio, dtype=torch.float64)
    old = None if mismatch is None else mu + torch.tensor(mismatch, dtype=torch.float64)
    train = (mu if old is None else old) + ratio
    return Batch.from_sequences(
        train_logprobs=[train],
        rollout_logprobs=[mu],
        advantages=[adv],
        old_logprobs=None if old is None else [old],
    )


def spread(log_w: float, length: int, adv: float) -> Batch:
    """One sequence of `length` tokens with that log W: all in the first token, so that the sum is exact."""
    return batch_of([log_w] + [0.0] * (length - 1), adv)


def phi(method: str, batch: Batch, **hyperparameters: Any) -> torch.Tensor:
    return get_method(method, **hyperparameters).coefficients(batch)


@cases("vespo_phi")
def test_vespo(case: Any) -> None:
    a = case["args"]
    check(phi("vespo", batch_of([a["log_w"]], a["adv"]))[0], case["expect"], case["rtol"])


@cases("vespo_phi_custom")
def test_vespo_with_other_hyperparameters(case: Any) -> None:
    a = case["args"]
    got = phi(
        "vespo",
        batch_of([a["log_w"] / 2, a["log_w"] / 2], -1.0),
        k_neg=a["c1"],
        lambda_neg=a["c2"],
    )
    check(got[1], case["expect"], case["rtol"])
    check(kernel(a["log_w"], a["c1"], a["c2"]), case["expect"], case["rtol"])


@cases("vespo_phi_from_tokens")
def test_vespo_variants(case: Any) -> None:
    a, expect = case["args"], case["expect"]
    weights = a.get("is_weights")
    if weights is None:
        mismatch, options = None, {}
    else:
        # A weight of 0 is what token_mask makes of a ratio outside its bounds.
        mismatch = [math.log(w if w > 0 else 50.0) for w in weights]
        options = {"is_mode": "token_mask", "is_max": 10.0}
    batch = batch_of(a["log_ratio"], a["adv"], mismatch=mismatch)
    batch = Batch.from_arrays(
        batch.train_logprobs,
        batch.rollout_logprobs,
        batch.offsets,
        batch.advantages,
        old_logprobs=batch.old_logprobs,
        mask=a["mask"],
    )
    for variant in ("repo", "trl"):
        method = get_method("vespo", variant=variant, **options)
        check(method.log_weight(batch.ratios())[0], expect[variant]["log_w_clamped"], case["rtol"])
        check(method.coefficients(batch)[0], expect[variant]["phi"], case["rtol"])
    if "phi_exact" in expect:
        check(phi("vespo", batch)[0], expect["phi_exact"], case["rtol"])
    assert all(value == 0 for value, inside in zip(phi("vespo", batch), a["mask"], strict=True) if not inside)


@cases("vespo_f")
def test_surrogate(case: Any) -> None:
    a, expect = case["args"], case["expect"]
    check(surrogate(a["w"], a["c1"], a["c2"]), expect["f"], case["rtol"])
    got = float(kernel(math.log(a["w"]), a["c1"], a["c2"]))
    check(got, expect["phi"], case["rtol"])
    check(got / a["w"], expect["fprime"], case["rtol"])


@cases("vespo_constants")
def test_constants(case: Any) -> None:
    a, expect = case["args"], case["expect"]
    got = kernel_constants(a["c1"], a["c2"])
    check(got.peak_weight, expect["argmax"], case["rtol"])
    check(got.peak, expect["phi_max"], case["rtol"])
    if expect["K"] is None:
        assert got.variance_constant is None
    else:
        check(got.variance_constant, expect["K"], case["rtol"])
        check(got.variance_weight, expect["K_argmax"], case["rtol"])


@cases("vespo_length_normalised")
def test_vespo_normalised_by_length(case: Any) -> None:
    a = case["args"]
    batch = spread(a["log_w"], a["T"], a["adv"])
    for name, key in (("vespo", "none"), ("vespo_sqrt", "sqrt"), ("vespo_lin", "lin")):
        check(phi(name, batch)[-1], case["expect"][key], case["rtol"])


@pytest.mark.parametrize(
    ("suite", "method"),
    [("ppo_clip", "ppo_clip"), ("dapo_clip", "dapo"), ("dual_clip", "dual_clip"), ("two_sided", "two_sided")],
)
def test_clipped(suite: str, method: str) -> None:
    for case in VECTORS[suite]:
        a = case["args"]
        extra = {key: a[key] for key in ("c", "delta") if key in a}
        got = phi(method, batch_of([a["log_ratio"]], a["adv"]), eps_low=a["el"], eps_high=a["eh"], **extra)
        check(got[0], case["expect"], case["rtol"])
        check(phi(method, batch_of([a["log_ratio"]], a["adv"]))[0], case["expect"], case["rtol"])


def test_minirl_mask() -> None:
    for case in VECTORS["minirl_mask_ratio"]:
        a = case["args"]
        got = phi("ppo_clip", batch_of([a["log_ratio"]], a["adv"]), eps_low=a["el"], eps_high=a["eh"])
        check(got[0], case["expect"], case["rtol"])


@cases("sapo")
def test_sapo(case: Any) -> None:
    a = case["args"]
    check(phi("sapo", batch_of([a["log_ratio"]], a["adv"]))[0], case["expect"], case["rtol"])


@cases("cispo")
def test_cispo(case: Any) -> None:
    expect = case["expect"]
    for adv in (1.0, -1.0):
        batch = batch_of([case["args"]["log_ratio"]], adv)
        check(phi("cispo", batch)[0], expect["verl_02_028"], case["rtol"])
        check(phi("cispo", batch, variant="absolute")[0], expect["cap_5"], case["rtol"])
        check(phi("cispo", batch, variant="absolute", cap=1.28)[0], expect["cap_1_28"], case["rtol"])


@cases("token_is")
def test_token_weights(case: Any) -> None:
    expect, batch = case["expect"], batch_of([case["args"]["log_ratio"]], 1.0)
    for method, options, key in (
        ("token_is", {}, "is_"),
        ("token_tis", {}, "tis_2"),
        ("token_tis", {"cap": 5.0}, "tis_5"),
        ("icepop", {}, "icepop_05_5"),
        ("icepop", {"high": 2.0}, "mis_05_2"),
        ("token_tis", {"cap": 1.0}, "roll_tis_01"),
    ):
        check(phi(method, batch, **options)[0], expect[key], case["rtol"])


@cases("seq_is")
def test_sequence_weights(case: Any) -> None:
    expect, log_w = case["expect"], case["args"]["log_w"]
    for method, options, key, adv in (
        ("seq_is", {}, "is_", 1.0),
        ("seq_tis", {}, "tis_2", 1.0),
        ("seq_tis", {"cap": 8.0}, "tis_8", -1.0),
        ("seq_mis", {}, "mis_05_2", 1.0),
        ("seq_mis", {"low": 0.0, "high": 3.0}, "trl_seqmask_3", 1.0),
        ("topr", {}, "topr_pos", 1.0),
        ("topr", {}, "topr_neg", -1.0),
    ):
        check(phi(method, spread(log_w, 3, adv), **options)[-1], expect[key], case["rtol"])


@cases("prefix_is")
def test_prefix(case: Any) -> None:
    ratio = case["args"]["log_ratio"]
    check(phi("prefix_is", batch_of(ratio, 1.0)), case["expect"]["prefix"], case["rtol"])
    check(smallest_before(ratio), case["expect"]["min_prefix_ratio"], case["rtol"])


@cases("gspo")
def test_gspo(case: Any) -> None:
    a, expect = case["args"], case["expect"]
    batch = spread(a["log_w"], a["T"], a["adv"])
    got = phi("gspo", batch, eps_low=a["el"], eps_high=a["eh"])
    check(got[-1], expect["phi"], case["rtol"])
    check(phi("gspo_token", batch)[0], expect["phi"], case["rtol"])
    check(phi("luspo", batch, eps_low=a["el"], eps_high=a["eh"])[0] / a["T"], expect["phi"], case["rtol"])
    check(-_gradient("gspo", batch)[0] / a["adv"], expect["coef_per_token"], case["rtol"])


@cases("gmpo")
def test_gmpo(case: Any) -> None:
    a, expect = case["args"], case["expect"]
    batch = batch_of(a["log_ratio"], a["adv"])
    got = phi("gmpo", batch, eps_low=a["el"], eps_high=a["eh"])
    assert {float(value) for value in got} <= {0.0, float(got.max())}
    check((-_gradient("gmpo", batch) / a["adv"]).tolist(), expect["coef_per_token"], case["rtol"])
    if any(expect["coef_per_token"]):
        check(got.max(), expect["s"], case["rtol"])


def _gradient(method: str, batch: Batch) -> torch.Tensor:
    """Gradient of the loss in train_logprobs for a batch of one sequence."""
    train = batch.train_logprobs.clone().requires_grad_()
    differentiable = Batch.from_arrays(train, batch.rollout_logprobs, batch.offsets, batch.advantages)
    get_method(method).loss(differentiable).backward()
    assert train.grad is not None
    return train.grad


@cases("minirl")
def test_minirl(case: Any) -> None:
    a = case["args"]
    got = phi("minirl", batch_of([a["l_stale"]], a["adv"], mismatch=[a["l_mis"]]), cap=a["C"])
    check(got[0], case["expect"]["phi"], case["rtol"])


@cases("decoupled_ppo_tis")
def test_decoupled(case: Any) -> None:
    a = case["args"]
    batch = batch_of([a["l_stale"]], a["adv"], mismatch=[a["l_mis"]])
    check(phi("token_tis", batch)[0], case["expect"]["tis"], case["rtol"])
    check(phi("icepop", batch)[0], case["expect"]["icepop"], case["rtol"])


@cases("geo_k3_opsm")
def test_sequence_masks(case: Any) -> None:
    expect, ratio = case["expect"], case["args"]["log_ratio"]
    up, down = batch_of(ratio, 1.0), batch_of(ratio, -1.0)
    check(phi("geo_rs", up)[0] == 1, expect["keep_geo_001"], 0)
    check(phi("geo_rs", up, low=0.99, high=1.01)[0] == 1, expect["keep_geo_01"], 0)
    check(phi("k3_rs", up)[0] == 1, expect["keep_k3_001"], 0)
    check(phi("seq_mis", up)[0] > 0, expect["keep_seq_05_2"], 0)
    check(phi("geo_rs", up, low=0.0, high=1e9, veto=1e-4)[0] == 0, expect["veto_1e4"], 0)
    check(phi("k3_rs", up, bound=1e9, veto=1e-4)[0] == 0, expect["veto_1e4"], 0)
    check(phi("opsm", up)[0] == 1, expect["opsm_keep_pos"], 0)
    check(phi("opsm", down)[0] == 1, expect["opsm_keep_neg"], 0)


@cases("verl_rs_sign")
def test_verl_bounds_act_on_the_inverse_ratio(case: Any) -> None:
    a, expect = case["args"], case["expect"]
    batch, bounds = batch_of([a["log_ratio"]], 1.0), {"low": a["lo"], "high": a["hi"]}
    check(phi("icepop", batch, variant="verl_token_k1", **bounds)[0] == 1, expect["token_k1_keep"], 0)
    check(phi("geo_rs", batch, variant="verl", **bounds)[0] == 1, expect["token_k1_keep"], 0)
    check(phi("icepop", batch, **bounds)[0], expect["is_weight"], case["rtol"])
    check(phi("icepop", batch, **bounds)[0] > 0, expect["is_threshold_keep"], 0)


@cases("m2po")
def test_m2po(case: Any) -> None:
    a, expect = case["args"], case["expect"]
    kept = phi("m2po", batch_of(a["log_ratio"], 1.0), tau=a["tau"]) > 0
    assert int((~kept).sum()) == expect["n_dropped"]
    squares = [x * x for x in a["log_ratio"]]
    if len(set(squares)) == len(squares):  # between equal squares the choice is free
        assert kept.int().tolist() == expect["keep"]


@cases("dppo")
def test_dppo(case: Any) -> None:
    a, expect = case["args"], case["expect"]
    batch = Batch.from_sequences(
        train_logprobs=[[a["logp_train"]]], rollout_logprobs=[[a["logp_rollout"]]], advantages=[a["adv"]]
    )
    check(phi("dppo_tv", batch)[0], expect["tv_015"]["phi"], case["rtol"])
    check(phi("dppo_kl", batch)[0], expect["kl_005"]["phi"], case["rtol"])
    check(phi("dppo_tv", batch, delta=0.2, cap=5.0)[0], expect["tv_020_C5"]["phi"], case["rtol"])


@cases("prime_rl")
def test_prime_rl(case: Any) -> None:
    a, expect = case["args"], case["expect"]
    train = torch.tensor([a["logp_train"]], dtype=torch.float64, requires_grad=True)
    batch = Batch.from_sequences(
        train_logprobs=[train], rollout_logprobs=[[a["logp_rollout"]]], advantages=[a["adv"]]
    )
    check(phi("prime_dppo", batch)[0], expect["default"]["phi"], case["rtol"])
    check(phi("ipo", batch)[0], expect["ipo"]["phi"], case["rtol"])
    get_method("prime_dppo").regulariser(batch).backward()
    assert train.grad is not None
    check(-train.grad[0], expect["default"]["reg_coef"], case["rtol"])


@cases("drpo")
def test_drpo(case: Any) -> None:
    a, expect = case["args"], case["expect"]
    batch = Batch.from_sequences(
        train_logprobs=[[a["logp_train"]]], rollout_logprobs=[[a["logp_rollout"]]], advantages=[a["adv"]]
    )
    check(phi("drpo", batch)[0], expect["delta_12_5"], case["rtol"])
    check(phi("drpo", batch, delta=2.5)[0], expect["delta_2_5"], case["rtol"])


@cases("binary_divergences")
def test_binary_divergences(case: Any) -> None:
    train = torch.tensor([case["args"]["logp_train"]], dtype=torch.float64)
    rollout = torch.tensor([case["args"]["logp_rollout"]], dtype=torch.float64)
    expect = case["expect"]
    check(total_variation(train, rollout)[0], expect["tv"], case["rtol"])
    check(logit_displacement(train, rollout)[0], expect["eps"], case["rtol"])
    check(binary_kl(train, rollout)[0], expect["kl_train_infer"], case["rtol"])
    check(binary_kl(rollout, train)[0], expect["kl_infer_train"], case["rtol"])
    batch = Batch.from_sequences(train_logprobs=[train], rollout_logprobs=[rollout], advantages=[1.0])
    for bound, key in ((2.0, "keep_2_0"), (0.5, "keep_0_5"), (0.1, "keep_0_1")):
        check(phi("kpop", batch, bound=bound)[0] == 1, expect[key], 0)
    displacement = float(logit_displacement(train, rollout)[0])
    ratio = math.exp(float(train[0] - rollout[0]))
    # The identity k = e^eps / (1 - q + q e^eps), q of the rollout.
    assert ratio == pytest.approx(expect["k"], rel=case["rtol"])
    q = math.exp(float(rollout[0]))
    assert ratio == pytest.approx(1 / (q + (1 - q) * math.exp(-displacement)), rel=1e-6)


@cases("cis")
def test_confidence_capped_weight(case: Any) -> None:
    a = case["args"]
    for slope, key in ((1.0, "lam_1"), (0.25, "lam_0_25")):
        got = confidence_capped_weight([a["logp_train"]], [a["logp_rollout"]], slope)
        check(got, [case["expect"][key]["weight"]], case["rtol"])


@cases("dro")
def test_penalised_coefficient(case: Any) -> None:
    a = case["args"]
    check(penalised_coefficient(a["log_ratio"], a["adv"], a["beta"]), case["expect"], case["rtol"])


@cases("oapl")
def test_regression_coefficient(case: Any) -> None:
    a, expect = case["args"], case["expect"]
    value = soft_value(a["group_rewards"], a["beta"])
    check(value, expect["V"], case["rtol"])
    got = regression_coefficient(a["log_w"], a["r"], value, a["beta"])
    check(got, expect["oapl_coef"], case["rtol"])


@cases("jackpot_obrs")
def test_budgeted_rejection(case: Any) -> None:
    a, expect, token = case["args"], case["expect"], case["args"]["token"]
    free = budgeted_rejection(a["p_train"], a["q_infer"], a["lam"])
    got = budgeted_rejection(a["p_train"], a["q_infer"], a["lam"], cap=a["c1"])
    check(got.accepted, expect["Z"], case["rtol"])
    check(got.acceptance[token], expect["accept"], case["rtol"])
    check(free.weight[token], expect["weight_uncapped"], case["rtol"])
    check(got.weight[token], expect["weight_capped"], case["rtol"])
    check(got.acceptance[token] * got.weight[token], expect["expected_capped"], case["rtol"])
    check(got.law.tolist(), expect["p_obrs"], case["rtol"])


def test_every_suite_is_run() -> None:
    """A suite that no test names would pass by not being there."""
    text = Path(__file__).read_text() + Path(__file__).with_name("test_golden.py").read_text()
    text += (Path(__file__).parents[1] / "simulate" / "test_variational.py").read_text()
    for suite in VECTORS:
        assert f'"{suite}"' in text, suite
