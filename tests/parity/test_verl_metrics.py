"""What verl logs of the mismatch, against the numbers that the report gives under the same names."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from parity.batches import LENGTHS, Tokens, draw
from parity.conftest import DTYPES
from parity.verl_side import correction

from mismatch_probe.stats.naming import framework_metrics
from mismatch_probe.weights import get_method_as_coded

# verl adds 1e-8 to the counts that its means divide by.
OFFSET = 3e-8


def reported(tokens: Tokens) -> dict[str, float | None]:
    lengths = tokens.mask.sum(dim=-1).numpy()
    ours = framework_metrics(
        tokens.old[tokens.mask].double().numpy(),
        tokens.rollout[tokens.mask].double().numpy(),
        np.concatenate([[0], np.cumsum(lengths)]),
    )
    return {metric.name: metric.value for metric in ours if metric.framework == "verl"}


@pytest.mark.parametrize(
    ("dtype", "within"), [(torch.float32, 2e-6), (torch.float64, OFFSET)], ids=["float32", "float64"]
)
@pytest.mark.parametrize("mismatch", [0.01, 0.3, 3.0])
def test_every_offpolicy_metric(mismatch: float, dtype: torch.dtype, within: float) -> None:
    from verl.trainer.ppo.rollout_corr_helper import compute_rollout_corr_metrics_from_logprobs

    tokens = draw(dtype, mismatch=mismatch, staleness=0.0)
    logged = compute_rollout_corr_metrics_from_logprobs(tokens.old, tokens.rollout, tokens.counts)
    ours = {name: value for name, value in reported(tokens).items() if name.startswith("rollout_corr/")}
    assert set(ours) == set(logged)
    for name, value in ours.items():
        assert value is not None
        # In float32 a K3 or a chi-squared of 1e-4 is what is left of two numbers near 1, and exp of a sum of ten nats
        # has ten times the rounding of the sum.
        rounding = 4e-7 * max(1.0, mismatch) if dtype == torch.float32 else OFFSET
        assert logged[name] == pytest.approx(value, rel=within * (1 + 10 * mismatch), abs=rounding), name


@DTYPES
def test_every_probability_metric(dtype: torch.dtype) -> None:
    from verl.protocol import DataProto
    from verl.utils.debug.metrics import calculate_debug_metrics

    tokens = draw(dtype, mismatch=0.2, staleness=0.0)
    batch = DataProto.from_dict(
        tensors={
            "rollout_log_probs": tokens.rollout,
            "old_log_probs": tokens.old,
            "response_mask": tokens.counts,
            "responses": torch.zeros_like(tokens.mask, dtype=torch.long),
        }
    )
    logged = calculate_debug_metrics(batch)
    ours = {name: value for name, value in reported(tokens).items() if name.startswith("training/")}
    assert logged.pop("training/rollout_probs_diff_valid") == 1
    assert set(ours) == set(logged)
    for name, value in ours.items():
        assert float(logged[name]) == pytest.approx(value, rel=2e-6 if dtype == torch.float32 else 1e-12), (
            name
        )


def test_the_safety_bound() -> None:
    """Beyond 20 nats verl's chi-squared stands still, here as there; its K3 does not."""
    tokens = draw(torch.float64, mismatch=0.1, staleness=0.0)
    tokens.rollout[0, :3] -= 30.0
    _, _, logged = correction(tokens)
    ours = reported(tokens)
    for name in ("rollout_corr/chi2_token", "rollout_corr/chi2_seq", "rollout_corr/k3_kl"):
        assert logged[name] == pytest.approx(ours[name], rel=OFFSET), name
    assert logged["rollout_corr/chi2_seq"] == pytest.approx(np.exp(40.0) / len(LENGTHS), rel=1e-6)
    assert logged["rollout_corr/k3_kl"] > 1e10


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_logged_weights_are_those_applied(level: str) -> None:
    """verl's mean and spread of weights are of the truncated ones, one a token even at sequence level."""
    tokens = draw(torch.float64, mismatch=0.3, staleness=0.0)
    weights, _, logged = correction(tokens, rollout_is=level, rollout_is_threshold=1.5)
    name = {"token": "token_tis", "sequence": "seq_tis"}[level]
    # pi_old stands for pi, so that the update factor is 1 and phi is the weight.
    batch = Tokens(tokens.old, tokens.old, tokens.rollout, tokens.mask, tokens.advantages).batch()
    phi = get_method_as_coded("verl", name, cap=1.5).coefficients(batch)[tokens.mask]
    assert weights is not None
    assert torch.allclose(weights[tokens.mask], phi, rtol=1e-12)
    assert logged["rollout_corr/rollout_is_mean"] == pytest.approx(float(phi.mean()), rel=OFFSET)
    assert logged["rollout_corr/rollout_is_std"] == pytest.approx(float(phi.std(correction=0)), rel=1e-6)
