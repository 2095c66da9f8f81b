"""Every loss of TRL's GRPOTrainer, at both levels of its ratio: its gradient against that of our method."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from parity.batches import LENGTHS, Tokens, draw, kept_share
from parity.conftest import DTYPES, Agree
from parity.trl_side import MAX_COMPLETION_LENGTH, loss_gradient

from mismatch_probe.weights import Batch, get_method, get_method_as_coded

# How each loss_type of TRL turns token losses into one number.
AGGREGATION = {
    "grpo": "seq-mean-token-mean",
    "sapo": "seq-mean-token-mean",
    "bnpo": "token-mean",
    "dapo": "token-mean",
    "cispo": "token-mean",
    "vespo": "token-mean",
    "dr_grpo": "seq-mean-token-sum-norm",
    "luspo": "seq-mean-token-sum",
}
CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")


@dataclass(frozen=True)
class Case:
    """A loss of TRL and the method that has its gradient.

    Attributes:
        loss_type: TRL's name.
        method: Ours, as coded in TRL.
        changes: Hyperparameters other than TRL's defaults.
        config: The same for TRL's GRPOConfig.
        aggregation: Ours, where it is not that of the loss_type.
        drops: Whether some tokens get nothing.
    """

    loss_type: str
    method: str
    changes: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    aggregation: str | None = None
    drops: bool = True

    def __str__(self) -> str:
        return "-".join([self.loss_type, self.method, *self.config])


SEQUENCE = {"importance_sampling_level": "sequence"}
TIGHT = ({"eps_low": 3e-4, "eps_high": 4e-4}, {**SEQUENCE, "epsilon": 3e-4, "epsilon_high": 4e-4})
VESPO = {"is_mode": "none", "reads": "train/old"}
CASES = [
    *(Case(loss, "ppo_clip") for loss in CLIPPED),
    *(Case(loss, "dapo", {"eps_high": 0.28}, {"epsilon_high": 0.28}) for loss in CLIPPED),
    *(Case(loss, "two_sided", {"eps_high": 0.28, "delta": 1.6}, {"epsilon_high": 0.28, "delta": 1.6}) for loss in CLIPPED),
    *(Case(loss, "opsm", {"delta": 0.05}, {"off_policy_mask_threshold": 0.05}) for loss in CLIPPED),
    *(Case(loss, "gspo", {}, SEQUENCE) for loss in CLIPPED if loss != "luspo"),
    *(Case(loss, "gspo", *TIGHT) for loss in CLIPPED if loss != "luspo"),
    Case("luspo", "luspo", {}, SEQUENCE, "seq-mean-token-mean"),
    Case("luspo", "luspo", {"eps_low": 2e-3, "eps_high": 2.5e-3}, {**SEQUENCE, "epsilon": 2e-3, "epsilon_high": 2.5e-3}, "seq-mean-token-mean"),
    Case("cispo", "cispo", drops=False),
    Case("cispo", "cispo", {"cap": 1.28}, {"epsilon_high": 1.28}, drops=False),
    Case("sapo", "sapo", drops=False),
    Case("sapo", "sapo", {"tau_pos": 0.5, "tau_neg": 2.0}, {"sapo_temperature_pos": 0.5, "sapo_temperature_neg": 2.0}, drops=False),
    Case("vespo", "vespo", VESPO, drops=False),
    Case(
        "vespo",
        "vespo",
        {**VESPO, "k_pos": 1.5, "lambda_pos": 2.5, "k_neg": 0.5, "lambda_neg": 4.0},
        {"vespo_k_pos": 1.5, "vespo_lambda_pos": 2.5, "vespo_k_neg": 0.5, "vespo_lambda_neg": 4.0},
        drops=False,
    ),
]  # fmt: skip


def our_gradient(case: Case, tokens: Tokens, batch: Batch, num_tokens: float | None = None) -> torch.Tensor:
    method = get_method_as_coded("trl", case.method, **case.changes)
    loss = method.loss(
        batch,
        case.aggregation or AGGREGATION[case.loss_type],
        num_tokens=num_tokens,
        num_sequences=len(tokens.mask),
        horizon=MAX_COMPLETION_LENGTH,
    )
    (gradient,) = torch.autograd.grad(loss, tokens.train)
    return gradient


def allowed(case: Case, dtype: torch.dtype) -> float:
    # TRL forms SAPO's temperatures in float32 whatever the inputs are, and 1.05 is no float32.
    return 1e-6 if dtype == torch.float32 else 1e-7 if case.loss_type == "sapo" else 1e-10


@DTYPES
@pytest.mark.parametrize("case", CASES, ids=str)
def test_loss(case: Case, dtype: torch.dtype, agree: Agree) -> None:
    method = get_method_as_coded("trl", case.method, **case.changes)
    shares = []
    for seed, (mismatch, staleness) in enumerate([(0.02, 0.005), (0.15, 0.1), (0.2, 0.5)]):
        tokens = draw(dtype, mismatch=mismatch, staleness=staleness, seed=seed)
        theirs = loss_gradient(tokens, loss_type=case.loss_type, **case.config)
        level = case.config.get("importance_sampling_level", "token")
        row = f"TRL|`{case.loss_type}`, {level} level|`{case.method}`|{case.aggregation or AGGREGATION[case.loss_type]}"
        agree(row, theirs, our_gradient(case, tokens, tokens.batch()), allowed(case, dtype))
        shares.append(kept_share(method, tokens.batch()))
    if case.drops:
        assert min(shares) < 1.0 and max(shares) > 0.0, (
            "no bound was reached: nothing of the mask is compared"
        )


@pytest.mark.parametrize("loss_type", AGGREGATION)
def test_gradient_accumulation(loss_type: str, agree: Agree) -> None:
    """Of four accumulated micro-batches each counts a quarter; in dapo, cispo and vespo all tokens count alike."""
    case = next(case for case in CASES if case.loss_type == loss_type)
    tokens = draw(torch.float64, mismatch=0.1, staleness=0.1)
    theirs = loss_gradient(
        tokens, loss_type=loss_type, num_items=1000.0, gradient_accumulation_steps=4, steps_per_generation=4
    )
    ours = our_gradient(
        case, tokens, tokens.batch(), num_tokens=1000.0 if loss_type in ("dapo", "cispo", "vespo") else None
    )
    if loss_type not in ("dapo", "cispo", "vespo"):
        ours = ours / 4
    agree(
        f"TRL|`{loss_type}`, 4 accumulated|`{case.method}`|{AGGREGATION[loss_type]}",
        theirs,
        ours,
        allowed(case, torch.float64),
    )


@DTYPES
def test_vespo_kernel(dtype: torch.dtype, agree: Agree) -> None:
    """`get_gamma_weights`, phi itself, with and without the ratio of vLLM, from ordinary to absurd log W."""
    from trl import GRPOTrainer

    for seed, (mismatch, staleness) in enumerate([(0.02, 0.02), (0.2, 0.1), (0.5, 1.5), (4.0, 4.0)]):
        tokens = draw(dtype, mismatch=mismatch, staleness=staleness, seed=seed)
        update = tokens.train.detach() - tokens.old
        ratio = ((tokens.old - tokens.rollout) * tokens.counts).exp()
        modes: dict[str, torch.Tensor | None] = {
            "none": None,
            "token_truncate": ratio.clamp(0.5, 3.0),
            "token_mask": ratio.masked_fill((ratio < 0.5) | (ratio > 3.0), 0.0),
        }
        for mode, treated in modes.items():
            theirs = GRPOTrainer.get_gamma_weights(tokens.advantages[:, None], update, tokens.counts, treated)
            reads = "train/old" if mode == "none" else "train/rollout"
            method = get_method("vespo", variant="trl", is_mode=mode, is_min=0.5, is_max=3.0, reads=reads)
            phi = method.coefficients(tokens.batch())
            far = ", log W to 20" if seed > 1 else ""
            within = 1e-10 if dtype == torch.float64 else 1e-6
            agree(f"TRL|`get_gamma_weights`, {mode}{far}|`vespo`|phi", theirs * tokens.counts, phi, within)


def test_off_policy_mask_without_vllm(agree: Agree) -> None:
    """Without the rollout's log-probabilities TRL compares pi with pi_old."""
    from trl import GRPOTrainer

    tokens = draw(torch.float64, mismatch=0.0, staleness=0.3, seed=1)
    theirs = GRPOTrainer.get_off_policy_mask(
        tokens.advantages[:, None], tokens.train, tokens.old, tokens.counts, off_policy_threshold=0.02
    )
    method = get_method("opsm", delta=0.02, drift="train/old", eps_low=1.0, eps_high=1e6)
    phi = method.coefficients(tokens.batch())
    agree("TRL|`get_off_policy_mask`|`opsm`|mask", theirs * tokens.counts, (phi > 0).to(torch.float64), 0.0)
    assert 0 < float(theirs.sum()) < len(LENGTHS)
