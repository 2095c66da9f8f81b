"""TRL's correction of vLLM's mismatch, through its own trainer: sampled tokens in, logged metrics and gradients out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from parity.batches import LENGTHS, Tokens, discrepancy, draw, kept_share, slope
from parity.conftest import DTYPES, Agree
from parity.trl_side import make_trainer, read_log_probabilities

from mismatch_probe.stats.naming import framework_metrics
from mismatch_probe.weights import Batch, WeightMethod, get_method_as_coded

PROMPT = [3, 4, 5, 6]
REWARDS = [1.0, 0.0, 0.5, 0.0, 2.0, 0.0, 0.25, 1.0]


@dataclass(frozen=True)
class Mode:
    """A mode of TRL's correction, and the method that has its weights.

    Attributes:
        name: vllm_importance_sampling_mode.
        low: vllm_importance_sampling_clip_min.
        high: vllm_importance_sampling_clip_max.
        method: Ours, as coded in TRL.
        changes: Its bounds.
    """

    name: str
    low: float | None
    high: float
    method: str
    changes: dict[str, Any]

    def make(self) -> WeightMethod:
        return get_method_as_coded("trl", self.method, **self.changes)

    @property
    def config(self) -> dict[str, Any]:
        return {
            "vllm_importance_sampling_mode": self.name,
            "vllm_importance_sampling_clip_min": self.low,
            "vllm_importance_sampling_clip_max": self.high,
        }

    def __str__(self) -> str:
        return f"{self.name}-{self.low}-{self.high}"


MODES = [
    Mode("token_truncate", None, 3.0, "token_tis", {}),
    Mode("token_truncate", 0.8, 1.2, "token_tis", {"floor": 0.8, "cap": 1.2}),
    Mode("token_mask", None, 3.0, "icepop", {}),
    Mode("token_mask", 0.8, 1.2, "icepop", {"low": 0.8, "high": 1.2}),
    Mode("sequence_truncate", None, 3.0, "seq_tis", {}),
    Mode("sequence_truncate", None, 1.2, "seq_tis", {"cap": 1.2}),
    Mode("sequence_mask", None, 3.0, "seq_mis", {}),
    Mode("sequence_mask", 0.5, 2.0, "seq_mis", {"low": 0.5, "high": 2.0}),
]
VESPO = [
    Mode("token_truncate", None, 3.0, "vespo", {}),
    Mode("token_truncate", 0.8, 1.2, "vespo", {"is_min": 0.8, "is_max": 1.2}),
    Mode("token_mask", 0.6, 1.6, "vespo", {"is_mode": "token_mask", "is_min": 0.6, "is_max": 1.6}),
]


def sampled(tokens: Tokens, completions: list[list[int]] | None = None) -> dict[str, Any]:
    """What a rollout_func of TRL returns: token ids, and the log-probabilities of the rollout engine."""
    rows = range(len(tokens.mask))
    lengths = [int(row.sum()) for row in tokens.mask]
    return {
        "prompt_ids": [PROMPT for _ in rows],
        "completion_ids": completions or [[7] * length for length in lengths],
        "logprobs": [tokens.rollout[i, : lengths[i]].tolist() for i in rows],
    }


def run_trl(tokens: Tokens, **config: Any) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
    """TRL from sampled tokens to the loss, with given log-probabilities of old and train.

    Returns:
        The gradient in log pi, the advantages, and the metrics that it logged.
    """
    width = max(LENGTHS)
    trainer = make_trainer(rollout=lambda prompts, trainer: sampled(tokens), rewards=REWARDS, **config)
    # TRL pads to the longest response, so the columns that no response reaches are cut off.
    read_log_probabilities(trainer, tokens.old[:, :width], tokens.train[:, :width])
    batch = trainer._generate_and_score_completions([{"prompt": "1 + 1 ="}] * len(tokens.mask))
    loss = trainer._compute_loss(trainer.model, batch)
    metrics = {name: float(values[-1]) for name, values in trainer._metrics["train"].items()}
    return slope(loss, tokens), batch["advantages"].to(tokens.train.dtype), metrics


def compare(mode: Mode, loss_type: str, tokens: Tokens, agree: Agree, *, within: float) -> float:
    theirs, advantages, _ = run_trl(tokens, loss_type=loss_type, **mode.config)
    batch = replace(tokens, advantages=advantages).batch()
    method = mode.make()
    aggregation = "token-mean" if loss_type in ("dapo", "vespo") else "seq-mean-token-mean"
    (ours,) = torch.autograd.grad(method.loss(batch, aggregation), tokens.train)
    agree(f"TRL|`{loss_type}`, {mode.name}|`{mode.method}`|{aggregation}", theirs, ours, within)
    return kept_share(method, batch)


@DTYPES
@pytest.mark.usefixtures("dtype_of_numbers")
@pytest.mark.parametrize("loss_type", ["dapo", "grpo"])
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_mode(mode: Mode, loss_type: str, dtype: torch.dtype, agree: Agree) -> None:
    shares = []
    for seed, (mismatch, staleness) in enumerate([(0.03, 0.02), (0.2, 0.05), (0.6, 0.4)]):
        tokens = draw(dtype, mismatch=mismatch, staleness=staleness, seed=seed)
        shares.append(
            compare(mode, loss_type, tokens, agree, within=1e-6 if dtype == torch.float32 else 1e-10)
        )
    assert max(shares) > 0.5
    if "mask" in mode.name:
        assert min(shares) < max(shares)


@DTYPES
@pytest.mark.usefixtures("dtype_of_numbers")
@pytest.mark.parametrize("mode", VESPO, ids=str)
def test_vespo_takes_the_mismatch_into_the_weight(mode: Mode, dtype: torch.dtype, agree: Agree) -> None:
    for seed, (mismatch, staleness) in enumerate([(0.03, 0.02), (0.15, 0.1), (0.3, 0.05)]):
        tokens = draw(dtype, mismatch=mismatch, staleness=staleness, seed=seed)
        compare(mode, "vespo", tokens, agree, within=1e-6 if dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize("mismatch", [0.02, 0.4])
def test_logged_metrics_are_those_of_the_report(mismatch: float) -> None:
    """The names that the report gives to TRL, with TRL's default mode."""
    tokens = draw(torch.float32, mismatch=mismatch, staleness=0.05)
    _, _, logged = run_trl(tokens)
    inside = tokens.mask
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    ours = framework_metrics(
        tokens.old[inside].double().numpy(), tokens.rollout[inside].double().numpy(), offsets
    )
    reported = {metric.name: metric.value for metric in ours if metric.framework == "TRL"}
    assert set(reported) == {name for name in logged if name.startswith("sampling/")}
    for name, value in reported.items():
        assert logged[name] == pytest.approx(value, rel=2e-6, abs=1e-7), name


def responses(vocabulary: int) -> list[list[int]]:
    """Token ids for the embedded model to score; what they say does not matter."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, vocabulary, (length,), generator=generator).tolist() for length in LENGTHS]


@pytest.mark.parametrize("mode", [MODES[1], MODES[3], MODES[5], MODES[7], VESPO[1]], ids=str)
def test_the_gradient_of_a_model(mode: Mode) -> None:
    """Nothing is put in anywhere: the embedded model scores, takes a step, and TRL's loss reaches its weights."""
    loss_type = "vespo" if mode.method == "vespo" else "dapo"
    noise = draw(torch.float32, mismatch=0.15, staleness=0.0)

    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        # What the engine reports: the model's own log-probabilities, with noise.
        ids = responses(trainer.model.config.vocab_size)
        engine = score(trainer, ids) - (noise.old - noise.rollout)[:, : max(LENGTHS)]
        return sampled(replace(noise, rollout=engine), ids)

    trainer = make_trainer(rollout=rollout, rewards=REWARDS, loss_type=loss_type, **mode.config)
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in parameters]
    try:
        inputs = trainer._generate_and_score_completions([{"prompt": "1 + 1 ="}] * len(LENGTHS))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in parameters:
                p += 2e-3 * float(p.std()) * torch.randn(p.shape, generator=generator)
        theirs = gradient(trainer._compute_loss(trainer.model, inputs), parameters)

        train, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            inputs["completion_ids"].size(1),
        )
        batch = Batch.from_padded(
            train,
            inputs["sampling_per_token_logps"],
            inputs["advantages"],
            inputs["completion_mask"],
            old_logprobs=inputs["old_per_token_logps"],
        )
        update = (train - inputs["old_per_token_logps"]).detach()[batch.mask]
        ours = gradient(mode.make().loss(batch, "token-mean"), parameters)
    finally:
        with torch.no_grad():
            for p, before in zip(parameters, start, strict=True):
                p.copy_(before)
    assert 0.001 < float(update.std()) < 1.0, "the step is too small or too large to mean anything"
    # Two float32 backward passes through a model on several threads: sums are taken in another order.
    assert discrepancy(theirs, ours) <= 5e-6


def score(trainer: Any, ids: list[list[int]]) -> torch.Tensor:
    """The model's log-probabilities of the responses after the prompt, right-padded with 0."""
    width = max(len(row) for row in ids)
    scores = torch.zeros(len(ids), width)
    with torch.no_grad():
        for i, row in enumerate(ids):
            logits = trainer.model(torch.tensor([PROMPT + row])).logits[0, len(PROMPT) - 1 : -1].float()
            scores[i, : len(row)] = logits.log_softmax(-1).gather(1, torch.tensor(row)[:, None])[:, 0]
    return scores


def gradient(loss: torch.Tensor, parameters: list[torch.Tensor]) -> torch.Tensor:
    """The gradient in all weights, flat; those that the loss does not reach have 0."""
    pieces = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat(
        [
            torch.zeros(p.numel()) if g is None else g.reshape(-1)
            for p, g in zip(parameters, pieces, strict=True)
        ]
    )


def test_a_token_that_vllm_could_not_score() -> None:
    """TRL takes its ratio for 1; a batch here refuses it, and masking it gives TRL's gradient on all other tokens."""
    tokens = draw(torch.float32, mismatch=0.2, staleness=0.05)
    tokens.rollout[3, 2] = math.nan
    theirs, advantages, logged = run_trl(tokens, vllm_importance_sampling_mode="token_truncate")
    assert math.isfinite(logged["sampling/sampling_logp_difference/max"])
    mask = tokens.mask.clone()
    mask[3, 2] = False
    batch = replace(tokens, advantages=advantages, mask=mask).batch()
    loss = get_method_as_coded("trl", "token_tis").loss(batch, "token-mean", num_tokens=sum(LENGTHS))
    (ours,) = torch.autograd.grad(loss, tokens.train)
    assert discrepancy(theirs.masked_fill(~mask, 0.0), ours) <= 1e-6
    assert float(theirs[3, 2]) != 0.0
