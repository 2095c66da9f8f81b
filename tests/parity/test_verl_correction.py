"""verl's rollout correction: weights, rejection and bypass mode, up to the gradient that they leave."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from parity.batches import AGGREGATIONS, Tokens, draw, kept_share
from parity.conftest import DTYPES, Agree
from parity.verl_side import correction, loss_gradient, normalisers, preset_keys

from mismatch_probe.stats.kl import token_k1, token_k2, token_k3
from mismatch_probe.weights import WeightMethod, get_method, get_method_as_coded

# verl's means add 1e-8 to the count that they divide by: of the tokens of a sequence, or of all weights.
COUNT_OFFSET = 3e-8


def spreads(name: str) -> tuple[float, ...]:
    """Spreads of a token's log-ratio that leave some responses inside and some outside of verl's bands."""
    return (0.001, 0.005) if name == "geo_rs" else (0.02, 0.15) if name == "k3_rs" else (0.02, 0.3, 0.6)


PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "decoupled_token_is": ("token_tis", {}),
    "decoupled_seq_is": ("seq_tis", {}),
    "decoupled_token_icepop": ("icepop", {}),
    "decoupled_seq_is_rs": ("seq_mis", {}),
    "decoupled_geo_rs": ("geo_rs", {}),
    "decoupled_geo_rs_seq_tis": ("geo_rs", {"weighting": "sequence", "cap": 2.0}),
    "decoupled_geo_rs_token_tis": ("geo_rs", {"weighting": "token", "cap": 2.0}),
    "decoupled_k3_rs": ("k3_rs", {}),
    "decoupled_k3_rs_seq_tis": ("k3_rs", {"weighting": "sequence", "cap": 2.0}),
    "decoupled_k3_rs_token_tis": ("k3_rs", {"weighting": "token", "cap": 2.0}),
}
# The bounds are lopsided on purpose: symmetric ones would hide which way the ratio is read.
KEYS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("token_tis", {"cap": 1.2, "normalise": "mean"}, {"rollout_is": "token", "rollout_is_threshold": 1.2, "rollout_is_batch_normalize": True}),
    ("seq_tis", {"cap": 1.5, "normalise": "mean"}, {"rollout_is": "sequence", "rollout_is_threshold": 1.5, "rollout_is_batch_normalize": True}),
    ("icepop", {"low": 0.9, "high": 1.5, "normalise": "mean"}, {"rollout_is": "token", "rollout_is_threshold": "0.9_1.5", "rollout_is_batch_normalize": True}),
    ("icepop", {"low": 0.9, "high": 1.5}, {"rollout_is": "token", "rollout_is_threshold": "0.9_1.5"}),
    ("seq_mis", {"variant": "ratio", "low": 0.8, "high": 1.5, "cap": None}, {"rollout_is": "sequence", "rollout_is_threshold": "0.8_1.5"}),
    ("icepop", {"variant": "verl_token_k1", "low": 0.9, "high": 1.5}, {"rollout_rs": "token_k1", "rollout_rs_threshold": "0.9_1.5"}),
    ("seq_mis", {"low": 0.9, "high": 2.0, "weighting": "none", "cap": None}, {"rollout_rs": "seq_sum_k1", "rollout_rs_threshold": "0.9_2.0"}),
    ("seq_mis", {"low": 0.8, "high": 1.25, "weighting": "none", "cap": None}, {"rollout_rs": "seq_sum_k1", "rollout_rs_threshold": 1.25}),
    ("geo_rs", {"low": 0.98, "high": 1.05}, {"rollout_rs": "seq_mean_k1", "rollout_rs_threshold": "0.98_1.05"}),
    ("k3_rs", {"bound": 0.004}, {"rollout_rs": "seq_mean_k3", "rollout_rs_threshold": 0.004}),
]  # fmt: skip


def tokens_of(dtype: torch.dtype, spread: float, seed: int) -> Tokens:
    return draw(dtype, mismatch=spread, staleness=0.15, seed=seed)


def compare(agree: Agree, row: str, method: WeightMethod, tokens: Tokens, keys: dict[str, Any]) -> float:
    """verl's clipped loss with its weights and mask against ours; returns the share of tokens that ours keeps."""
    weights, mask, _ = correction(tokens, **keys)
    batch = tokens.batch()
    for aggregation in AGGREGATIONS:
        if str(keys.get("rollout_rs")).startswith("token") and aggregation == "seq-mean-token-mean":
            continue  # verl divides by the tokens that are left: see test_differences
        theirs = loss_gradient("vanilla", tokens, aggregation, weights=weights, mask=mask)
        (ours,) = torch.autograd.grad(method.loss(batch, aggregation, **normalisers(mask)), tokens.train)
        offset = aggregation == "seq-mean-token-mean" or keys.get("rollout_is_batch_normalize")
        exact = COUNT_OFFSET if offset else 1e-10
        agree(f"{row}|{aggregation}", theirs, ours, 1e-6 if tokens.train.dtype == torch.float32 else exact)
    return kept_share(method, batch)


@DTYPES
@pytest.mark.parametrize("preset", PRESETS)
def test_preset(preset: str, dtype: torch.dtype, agree: Agree) -> None:
    name, changes = PRESETS[preset]
    method = get_method_as_coded("verl", name, **changes)
    keys = preset_keys(preset)
    shares = [
        compare(agree, f"verl|`{preset}`|`{name}`", method, tokens_of(dtype, spread, seed), keys)
        for seed, spread in enumerate(spreads(name))
    ]
    assert max(shares) > 0.5 and min(shares) < max(shares)


@DTYPES
@pytest.mark.parametrize(("name", "changes", "keys"), KEYS, ids=lambda value: str(value)[:60])
def test_keys(
    name: str, changes: dict[str, Any], keys: dict[str, Any], dtype: torch.dtype, agree: Agree
) -> None:
    method = get_method_as_coded("verl", name, **changes)
    what = keys.get("rollout_rs") or f"rollout_is={keys['rollout_is']}"
    what += ", normalised" if keys.get("rollout_is_batch_normalize") else ""
    for seed, spread in enumerate((0.08, 0.1)):
        tokens = tokens_of(dtype, spread, seed)
        compare(agree, f"verl|`{what}`|`{name}`", method, tokens, keys)
        phi = method.coefficients(tokens.batch())[tokens.mask]
        assert len(phi.unique()) > 1


STATISTICS = {"k1": token_k1, "k2": token_k2, "k3": token_k3}


@pytest.mark.parametrize("option", sorted({f"{r}_k{k}" for r in ("token", "seq_sum", "seq_mean", "seq_max") for k in (1, 2, 3)} - {"seq_max_k1"}))  # fmt: skip
def test_every_rejection_statistic(option: str) -> None:
    """What verl compares with its thresholds, from the K1, K2 and K3 that this project reports."""
    from verl.trainer.ppo.rollout_corr_helper import SUPPORTED_ROLLOUT_RS_OPTIONS

    assert option in SUPPORTED_ROLLOUT_RS_OPTIONS and len(SUPPORTED_ROLLOUT_RS_OPTIONS) == 11
    tokens = draw(torch.float64, mismatch=0.3, staleness=0.1)
    level, kind = option.rsplit("_", 1)
    values = torch.from_numpy(STATISTICS[kind]((tokens.old - tokens.rollout).numpy()))
    values = values.masked_fill(~tokens.mask, 0.0)
    if level != "token":
        over = {
            "seq_sum": values.sum(-1),
            "seq_mean": values.sum(-1) / tokens.mask.sum(-1),
            "seq_max": values.amax(-1),
        }
        values = over[level][:, None].expand(tokens.mask.shape)
    inside = values[tokens.mask]
    low, high = (float(inside.quantile(q)) for q in (0.2, 0.7))
    threshold = f"{math.exp(low)}_{math.exp(high)}" if kind == "k1" else str(high)
    expected = tokens.mask & (values <= high) & ((values >= low) if kind == "k1" else True)
    # A statistic that is itself the quantile sits on the threshold, which verl's text form rounds.
    clear = ((values - high).abs() > 1e-9) & ((values - low).abs() > 1e-9)
    _, mask, metrics = correction(tokens, rollout_rs=option, rollout_rs_threshold=threshold)
    assert torch.equal((mask > 0) & clear, expected & clear)
    assert 0 < float(expected.sum()) < float(tokens.mask.sum())
    dropped = 1 - float(mask.sum()) / float(tokens.mask.sum())
    assert metrics["rollout_corr/rollout_rs_masked_fraction"] == pytest.approx(dropped, abs=1e-8)


def test_several_options_are_an_and() -> None:
    tokens = draw(torch.float64, mismatch=0.15, staleness=0.1)
    _, both, _ = correction(tokens, rollout_rs="token_k1,seq_mean_k3", rollout_rs_threshold="0.8_1.3,0.011")
    by_token = get_method_as_coded("verl", "icepop", variant="verl_token_k1", low=0.8, high=1.3)
    by_response = get_method_as_coded("verl", "k3_rs", bound=0.011)
    kept = [method.coefficients(tokens.batch()) > 0 for method in (by_token, by_response)]
    free = get_method_as_coded("verl", "dual_clip").coefficients(tokens.batch()) > 0
    assert torch.equal((both > 0) & free, kept[0] & kept[1])
    assert not torch.equal(kept[0] & kept[1], kept[0]) and not torch.equal(kept[0] & kept[1], kept[1])


BYPASS: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    # In bypass mode with PPO's clip no method has both the clip and the mask of pi / mu: phi is the product of two.
    "bypass_ppo_clip": (("dual_clip", {}),),
    "bypass_ppo_clip_geo_rs": (("dual_clip", {}), ("geo_rs", {})),
    "bypass_ppo_clip_k3_rs": (("dual_clip", {}), ("k3_rs", {})),
    "bypass_pg_is": (("seq_tis", {}),),
    "bypass_pg_token_icepop": (("icepop", {}),),
    "bypass_pg_geo_rs": (("geo_rs", {}),),
    "bypass_pg_geo_rs_seq_tis": (("geo_rs", {"weighting": "sequence", "cap": 2.0}),),
    "bypass_pg_geo_rs_token_tis": (("geo_rs", {"weighting": "token", "cap": 2.0}),),
}


@DTYPES
@pytest.mark.parametrize("preset", BYPASS)
def test_bypass_mode(preset: str, dtype: torch.dtype, agree: Agree) -> None:
    """Two policies: the whole of pi / mu is in the ratio, and verl's loss computes weights and mask itself."""
    from verl.trainer.config import RolloutCorrectionConfig

    config = getattr(RolloutCorrectionConfig, preset)()
    methods = [get_method_as_coded("verl", name, **changes) for name, changes in BYPASS[preset]]
    names = " x ".join(f"`{name}`" for name, _ in BYPASS[preset])
    for seed, spread in enumerate(spreads(BYPASS[preset][-1][0])):
        tokens = draw(dtype, mismatch=spread, staleness=spread / 2, seed=seed)
        batch = tokens.batch(bypass=True)
        phi = math.prod((method.coefficients(batch) for method in methods), start=torch.ones(()))
        mask = tokens.mask.to(torch.float64)
        if config.rollout_rs:
            mask = mask * (get_method_as_coded("verl", BYPASS[preset][-1][0]).coefficients(batch) > 0)
        expected = -(phi * tokens.per_token.to(torch.float64) * mask / mask.sum()).to(dtype)
        theirs = loss_gradient("bypass_mode", tokens, bypass=True, policy_loss={"rollout_correction": config})
        agree(
            f"verl|`{preset}`|{names}|token-mean", theirs, expected, 1e-6 if dtype == torch.float32 else 1e-10
        )


def test_disabled_correction_is_the_clip_alone(agree: Agree) -> None:
    from verl.trainer.config import RolloutCorrectionConfig

    config = RolloutCorrectionConfig.disabled()
    assert config.rollout_is is None and config.rollout_rs is None
    tokens = draw(torch.float64, mismatch=0.2, staleness=0.3)
    weights, mask, _ = correction(tokens, rollout_is=None, rollout_rs=None)
    assert weights is None
    (ours,) = torch.autograd.grad(
        get_method_as_coded("verl", "dual_clip").loss(tokens.batch(), "token-mean"), tokens.train
    )
    agree("verl|`disabled`|`dual_clip`|token-mean", loss_gradient("vanilla", tokens, mask=mask), ours, 1e-10)


def test_weights_alone_without_a_clip(agree: Agree) -> None:
    """verl's REINFORCE with weights, as its bypass mode calls it: token weights have no preset."""
    from verl.trainer.config import RolloutCorrectionConfig

    config = RolloutCorrectionConfig(
        rollout_is="token", rollout_is_threshold=1.1, bypass_mode=True, loss_type="reinforce"
    )
    tokens = draw(torch.float64, mismatch=0.2, staleness=0.3)
    theirs = loss_gradient("bypass_mode", tokens, bypass=True, policy_loss={"rollout_correction": config})
    loss = get_method("token_tis", cap=1.1).loss(tokens.batch(bypass=True), "token-mean")
    (ours,) = torch.autograd.grad(loss, tokens.train)
    agree("verl|`loss_type=reinforce`, rollout_is=token|`token_tis`|token-mean", theirs, ours, 1e-10)


def test_every_preset_is_compared() -> None:
    from verl.trainer.config import RolloutCorrectionConfig

    presets = {
        name
        for name, member in vars(RolloutCorrectionConfig).items()
        if isinstance(member, classmethod) and not name.startswith("_")
    }
    assert presets == {*PRESETS, *BYPASS, "disabled"}
