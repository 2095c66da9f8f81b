"""Every policy loss that verl registers: its gradient against that of the method it stands for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from parity.batches import AGGREGATIONS, WIDTH, draw, kept_share
from parity.conftest import DTYPES, Agree
from parity.verl_side import loss_gradient

from mismatch_probe.weights import WeightMethod, get_method, get_method_as_coded
from mismatch_probe.weights.aggregation import Aggregation
from mismatch_probe.weights.signals import penalised_coefficient

# verl adds 1e-8 to the count of a sequence's tokens before it divides by it: 1e-8 of a response of one token's gradient
# and, in geo_mean, which divides the log-ratios and the advantages so, twice that.
COUNT_OFFSET = 3e-8


@dataclass(frozen=True)
class Case:
    """A policy loss of verl and the method that has its gradient.

    Attributes:
        loss_mode: verl's name.
        method: Ours, as coded in verl.
        changes: Hyperparameters other than verl's defaults.
        config: The same for verl's ActorConfig.
        policy_loss: The same for its PolicyLossConfig.
        drops: Whether some tokens get nothing.
        aggregations: verl's modes that reach the loss.
    """

    loss_mode: str
    method: str
    changes: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    policy_loss: dict[str, Any] = field(default_factory=dict)
    drops: bool = True
    aggregations: tuple[Aggregation, ...] = AGGREGATIONS

    def make(self) -> WeightMethod:
        return get_method_as_coded("verl", self.method, **self.changes)

    def __str__(self) -> str:
        return f"{self.loss_mode}-{self.method}"


OWN: tuple[Aggregation, ...] = ("seq-mean-token-mean",)
CASES = [
    Case("vanilla", "dual_clip"),
    Case(
        "vanilla",
        "dual_clip",
        {"eps_high": 0.28, "c": 10.0},
        {"clip_ratio_high": 0.28, "clip_ratio_c": 10.0},
    ),
    Case("dppo_tv", "dppo_tv"),
    Case("dppo_tv", "dppo_tv", {"delta": 0.05, "cap": 1.5}, {"clip_ratio_low": 0.05, "clip_ratio_high": 0.05, "clip_ratio_c": 1.5}),
    Case("dppo_kl", "dppo_kl", {"delta": 0.02}, {"clip_ratio_low": 0.02, "clip_ratio_high": 0.02}),
    Case("gspo", "gspo", {"eps_low": 3e-4, "eps_high": 4e-4}, {"clip_ratio_low": 3e-4, "clip_ratio_high": 4e-4}),
    Case("gspo", "gspo"),
    Case("sapo", "sapo", drops=False, aggregations=OWN),
    Case("sapo", "sapo", {"tau_pos": 0.5, "tau_neg": 2.0}, {"tau_pos": 0.5, "tau_neg": 2.0}, drops=False, aggregations=OWN),
    Case("geo_mean", "gmpo", aggregations=OWN),
    Case("geo_mean", "gmpo", {"eps_low": 0.4, "eps_high": 0.3}, {"clip_ratio_low": 0.4, "clip_ratio_high": 0.3}, aggregations=OWN),
    Case("cispo", "cispo", drops=False),
    Case("cispo", "cispo", {"eps_high": 0.28}, {"clip_ratio_high": 0.28}, drops=False),
    Case("gpg", "reinforce", drops=False),
]  # fmt: skip


@DTYPES
@pytest.mark.parametrize("case", CASES, ids=str)
def test_policy_loss(case: Case, dtype: torch.dtype, agree: Agree) -> None:
    method = case.make()
    shares = []
    for seed, (mismatch, staleness) in enumerate([(0.02, 0.005), (0.3, 0.1), (0.2, 0.6)]):
        tokens = draw(dtype, mismatch=mismatch, staleness=staleness, seed=seed)
        for bypass in (False, True):
            batch = tokens.batch(bypass=bypass)
            shares.append(kept_share(method, batch))
            for aggregation in case.aggregations:
                theirs = loss_gradient(
                    case.loss_mode,
                    tokens,
                    aggregation,
                    bypass=bypass,
                    policy_loss=case.policy_loss,
                    **case.config,
                )
                loss = method.loss(batch, aggregation, horizon=WIDTH)
                (ours,) = torch.autograd.grad(loss, tokens.train)
                row = f"verl|`{case.loss_mode}`|`{case.method}`|{aggregation}"
                agree(row, theirs, ours, _allowed(aggregation, dtype))
    if case.drops:
        assert min(shares) < 1.0 and max(shares) > 0.0, (
            "no bound was reached: nothing of the mask is compared"
        )


def _allowed(aggregation: str, dtype: torch.dtype) -> float:
    if dtype == torch.float32:
        return 1e-6
    return COUNT_OFFSET if aggregation == "seq-mean-token-mean" else 1e-10


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_micro_batch_of_a_global_batch(aggregation: str, agree: Agree) -> None:
    """verl divides by the counts of the global batch where it has them; dp_size undoes the mean over ranks."""
    tokens = draw(torch.float64, mismatch=0.3, staleness=0.3)
    info: dict[str, Any] = {
        "dp_size": 1,
        "batch_num_tokens": 4000,
        "global_batch_size": 64,
        "loss_scale_factor": 512,
    }
    method = get_method_as_coded("verl", "dual_clip")
    theirs = loss_gradient("vanilla", tokens, aggregation, global_batch_info=info)
    loss = method.loss(tokens.batch(), aggregation, num_tokens=4000, num_sequences=64, horizon=512)
    (ours,) = torch.autograd.grad(loss, tokens.train)
    agree(f"verl|`agg_loss`|global counts|{aggregation}", theirs, ours, _allowed(aggregation, torch.float64))
    ranks = loss_gradient("vanilla", tokens, aggregation, global_batch_info={**info, "dp_size": 4})
    agree(
        f"verl|`agg_loss`|global counts|{aggregation}", ranks, 4 * ours, _allowed(aggregation, torch.float64)
    )


def test_losses_without_a_method_are_what_is_said_of_them(agree: Agree) -> None:
    """clip_cov and kl_cov choose tokens by the covariance of A and log pi; without that choice they are known."""
    tokens = draw(torch.float64, mismatch=0.3, staleness=0.3)
    clip = loss_gradient("clip_cov", tokens, policy_loss={"clip_cov_lb": 1e6, "clip_cov_ub": 2e6})
    (ours,) = torch.autograd.grad(get_method("ppo_clip").loss(tokens.batch(), "token-mean"), tokens.train)
    agree("verl|`clip_cov`, none chosen|`ppo_clip`|token-mean", clip, ours, 1e-10)
    free = loss_gradient("kl_cov", tokens, bypass=True, policy_loss={"ppo_kl_coef": 0.0})
    (ours,) = torch.autograd.grad(
        get_method("token_is").loss(tokens.batch(bypass=True), "token-mean"), tokens.train
    )
    agree("verl|`kl_cov`, coefficient 0|`token_is`|token-mean", free, ours, 1e-10)
    chosen = loss_gradient(
        "clip_cov", tokens, policy_loss={"clip_cov_lb": -1e6, "clip_cov_ub": 1e6, "clip_cov_ratio": 0.5}
    )
    assert float((chosen != 0).to(torch.float64).sum()) < float((clip != 0).to(torch.float64).sum())
    penalised = loss_gradient(
        "kl_cov", tokens, bypass=True, policy_loss={"ppo_kl_coef": 1.0, "kl_cov_ratio": 0.5}
    )
    assert bool(((penalised - free).abs() * tokens.mask > 1e-4).any())


@DTYPES
def test_dro(dtype: torch.dtype, agree: Agree) -> None:
    """A signal that is no multiple of A, and so no method: the coefficient stands by itself."""
    tokens = draw(dtype, mismatch=0.1, staleness=0.3)
    theirs = loss_gradient("dro", tokens, policy_loss={"dro_beta": 0.5})
    log_ratio = (tokens.train.detach().double() - tokens.old.double()).numpy()
    coefficient = torch.from_numpy(penalised_coefficient(log_ratio, tokens.per_token.double().numpy(), 0.5))
    ours = -(coefficient * tokens.mask / tokens.mask.sum())
    agree("verl|`dro`|`penalised_coefficient`|token-mean", theirs, ours, _allowed("token-mean", dtype))


def test_every_registered_loss_is_compared() -> None:
    from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY

    compared = {case.loss_mode for case in CASES}
    elsewhere = {"bypass_mode", "clip_cov", "kl_cov", "dro"}
    assert compared | elsewhere == set(POLICY_LOSS_REGISTRY) and not compared & elsewhere
