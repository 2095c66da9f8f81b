"""Eight sequences from log-probabilities to weights, statistics and losses, against exact values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mismatch_probe.simulate import MethodResponse, simulate_methods
from mismatch_probe.stats import SequenceLayout, kl_estimates, token_k1, token_k3
from mismatch_probe.weights import Batch, get_method

GOLDEN = json.loads((Path(__file__).parents[2] / "vectors" / "weights.json").read_text())["suites"][
    "golden_sequences"
]
TRAIN = [np.array(case["args"]["logp_train"]) for case in GOLDEN]
ROLLOUT = [np.array(case["args"]["logp_rollout"]) for case in GOLDEN]
ADVANTAGES = np.array([case["args"]["adv"] for case in GOLDEN])
LENGTHS = np.array([len(row) for row in TRAIN])
OFFSETS = np.concatenate([[0], np.cumsum(LENGTHS)])
RTOL = max(case["rtol"] for case in GOLDEN)

# Our name, its hyperparameters, and the key of the expected values.
BY_SEQUENCE: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("vespo", {}, "vespo"),
    ("vespo_sqrt", {}, "vespo_sqrt"),
    ("vespo_lin", {}, "vespo_lin"),
    ("seq_is", {}, "seq_is"),
    ("seq_tis", {}, "seq_tis_2"),
    ("gspo", {}, "gspo"),
    ("topr", {}, "topr"),
)
BY_TOKEN: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("ppo_clip", {}, "grpo"),
    ("dapo", {}, "dapo"),
    ("dual_clip", {}, "dual"),
    ("sapo", {}, "sapo"),
    ("cispo", {}, "cispo_verl"),
    ("token_tis", {}, "tis_2"),
    ("icepop", {}, "icepop"),
    ("dppo_tv", {}, "dppo_tv"),
    ("dppo_kl", {}, "dppo_kl"),
    ("drpo", {}, "drpo"),
)


def expected(key: str) -> np.ndarray:
    """Phi of every token of all sequences, from a list per token or a number per sequence."""
    rows = [np.broadcast_to(case["expect"][key], n) for case, n in zip(GOLDEN, LENGTHS, strict=True)]
    return np.concatenate(rows)


def batch(*, padded: bool) -> Batch:
    flat = np.concatenate(TRAIN)
    if not padded:
        return Batch.from_arrays(
            torch.tensor(flat, requires_grad=True), np.concatenate(ROLLOUT), OFFSETS, ADVANTAGES
        )
    width = int(LENGTHS.max()) + 2
    rows = [
        [np.pad(row, (0, width - len(row)), constant_values=np.nan) for row in side]
        for side in (TRAIN, ROLLOUT)
    ]
    mask = np.arange(width) < LENGTHS[:, None]
    return Batch.from_padded(
        torch.tensor(np.stack(rows[0]), requires_grad=True), np.stack(rows[1]), ADVANTAGES, mask
    )


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("name", "options", "key"), BY_SEQUENCE + BY_TOKEN)
def test_weights_and_gradients(name: str, options: dict[str, Any], key: str, padded: bool) -> None:
    whole, method = batch(padded=padded), get_method(name, **options)
    phi = method.coefficients(whole)[whole.mask].numpy()
    np.testing.assert_allclose(phi, expected(key), rtol=RTOL, atol=1e-300)
    (gradient,) = torch.autograd.grad(method.loss(whole, "token-mean"), whole.train_logprobs)
    signed = -expected(key) * np.repeat(ADVANTAGES, LENGTHS) / LENGTHS.sum()
    np.testing.assert_allclose(gradient[whole.mask].numpy(), signed, rtol=RTOL, atol=1e-300)


def test_statistics() -> None:
    log_ratio = np.concatenate(TRAIN) - np.concatenate(ROLLOUT)
    np.testing.assert_allclose(log_ratio, expected_ratios(), rtol=RTOL, atol=1e-16)
    layout = SequenceLayout.from_arrays(OFFSETS)
    log_weight = layout.sequence_sums(log_ratio)
    for key, got in (
        ("log_w", log_weight),
        ("geo", np.exp(log_weight / LENGTHS)),
        ("mean_k1", layout.sequence_sums(token_k1(log_ratio)) / LENGTHS),
        ("mean_k3", layout.sequence_sums(token_k3(log_ratio)) / LENGTHS),
    ):
        np.testing.assert_allclose(got, [case["expect"][key] for case in GOLDEN], rtol=1e-10, err_msg=key)


def expected_ratios() -> np.ndarray:
    return np.concatenate([case["expect"]["log_ratio"] for case in GOLDEN])


def test_what_a_verdict_reads() -> None:
    """Token K1 and K3 over all tokens, and the mean weight of each method over its units."""
    log_ratio = np.concatenate(TRAIN) - np.concatenate(ROLLOUT)
    estimates = kl_estimates(log_ratio)
    for key, got in (("mean_k1", estimates.k1), ("mean_k3", estimates.k3)):
        mean = np.dot([case["expect"][key] for case in GOLDEN], LENGTHS) / LENGTHS.sum()
        assert got == pytest.approx(mean, rel=1e-10)
    methods = [get_method(name, **options) for name, options, _ in BY_SEQUENCE + BY_TOKEN]
    got = simulate_methods(
        np.concatenate(TRAIN),
        np.concatenate(ROLLOUT),
        OFFSETS,
        np.arange(len(GOLDEN)),
        ADVANTAGES,
        methods=methods,
        resamples=0,
    )
    for name, _, key in BY_SEQUENCE:
        response = got[name]
        assert isinstance(response, MethodResponse)
        assert response.mean.value == pytest.approx(
            np.mean([case["expect"][key] for case in GOLDEN]), rel=1e-9
        )
    for name, _, key in BY_TOKEN:
        response = got[name]
        assert isinstance(response, MethodResponse)
        assert response.mean.value == pytest.approx(expected(key).mean(), rel=1e-9)
