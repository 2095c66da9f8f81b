"""Where this project differs from verl or TRL on purpose, or cannot say what they do: each in the stated way.

docs/parity.md lists every test here by its name, with the reason.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from parity import trl_side, verl_side
from parity.batches import Tokens, discrepancy, draw, slope

from mismatch_probe.errors import ConfigError
from mismatch_probe.stats.effective_size import effective_sample_size
from mismatch_probe.stats.naming import framework_metrics
from mismatch_probe.weights import Batch, WeightMethod, get_method, get_method_as_coded
from mismatch_probe.weights.aggregation import Aggregation

BY_SEQUENCE: Aggregation = "seq-mean-token-mean"


def ours(
    method: WeightMethod,
    tokens: Tokens,
    aggregation: Aggregation = "token-mean",
    *,
    bypass: bool = False,
    **counts: float,
) -> torch.Tensor:
    return slope(method.loss(tokens.batch(bypass=bypass), aggregation, **counts), tokens)


def planted(
    log_ratio: float, advantage: float, *, dtype: torch.dtype = torch.float64, logprob: float = -60.0
) -> Tokens:
    """Ordinary responses, and one token of the first with the given log pi - log pi_old and advantage."""
    tokens = draw(dtype, mismatch=0.0, staleness=0.01)
    train, old, rollout = tokens.train.detach().clone(), tokens.old.clone(), tokens.rollout.clone()
    train[0, 1], old[0, 1], rollout[0, 1] = logprob, logprob - log_ratio, logprob - log_ratio
    advantages = tokens.advantages.clone()
    advantages[0] = advantage
    return replace(tokens, train=train.requires_grad_(), old=old, rollout=rollout, advantages=advantages)


def phi(gradient: torch.Tensor, tokens: Tokens, at: tuple[int, int] = (0, 1)) -> float:
    """The coefficient on A grad log pi of one token, from a gradient in token-mean."""
    return -float(gradient[at]) * int(tokens.mask.sum()) / float(tokens.advantages[at[0]])


def without_first(tokens: Tokens) -> Tokens:
    mask = tokens.mask.clone()
    mask[0] = False
    return replace(tokens, mask=mask)


# verl: losses


def test_verl_vanilla_is_a_dual_clip() -> None:
    tokens = planted(math.log(3.5), -1.0)
    theirs = verl_side.loss_gradient("vanilla", tokens)
    assert phi(theirs, tokens) == 0.0
    assert phi(ours(get_method("ppo_clip"), tokens), tokens) == pytest.approx(3.5)
    assert phi(ours(get_method_as_coded("verl", "dual_clip"), tokens), tokens) == 0.0


@pytest.mark.parametrize("log_ratio", [-21.0, 21.0])
def test_verl_has_no_gradient_beyond_twenty_nats(log_ratio: float) -> None:
    tokens = planted(log_ratio, 1.0 if log_ratio < 0 else -1.0)
    theirs = verl_side.loss_gradient("vanilla", tokens, clip_ratio_c=1e12)
    assert phi(theirs, tokens) == 0.0
    assert phi(ours(get_method("ppo_clip"), tokens), tokens) == pytest.approx(math.exp(log_ratio))
    assert discrepancy(theirs, ours(get_method_as_coded("verl", "dual_clip", c=1e12), tokens)) <= 1e-10


def test_verl_dppo_takes_ratios_below_e_minus_20_for_that() -> None:
    tokens = planted(-25.0, 1.0)
    theirs = verl_side.loss_gradient("dppo_tv", tokens)
    assert phi(theirs, tokens) == pytest.approx(math.exp(-20.0), rel=1e-9)
    assert phi(ours(get_method_as_coded("verl", "dppo_tv"), tokens), tokens) == pytest.approx(math.exp(-25.0))


def test_verl_gspo_has_no_gradient_above_e10() -> None:
    tokens = draw(torch.float64, mismatch=0.0, staleness=0.01)
    shifted = replace(tokens, old=tokens.old - 11.0 * (tokens.advantages < 0)[:, None])
    theirs = verl_side.loss_gradient("gspo", shifted)
    assert float(theirs[tokens.advantages < 0].abs().max()) == 0.0
    assert phi(ours(get_method("gspo"), shifted), shifted, (1, 0)) == pytest.approx(math.exp(10.0))
    assert discrepancy(theirs, ours(get_method_as_coded("verl", "gspo"), shifted)) <= 1e-10


def test_verl_dppo_kl_caps_the_divergence_of_certain_tokens() -> None:
    tokens = draw(torch.float64, mismatch=0.0, staleness=0.01)
    train, old = tokens.train.detach().clone(), tokens.old.clone()
    train[0, 1], old[0, 1] = math.log1p(-1e-14), math.log1p(-3e-3)
    tokens = replace(tokens, train=train.requires_grad_(), old=old)
    config = {"clip_ratio_low": 0.05, "clip_ratio_high": 0.05}
    theirs = verl_side.loss_gradient("dppo_kl", tokens, **config)
    assert phi(theirs, tokens) == pytest.approx(1.003, abs=1e-3)
    assert phi(ours(get_method("dppo_kl", reads="train/old"), tokens), tokens) == 0.0
    assert discrepancy(theirs, ours(get_method_as_coded("verl", "dppo_kl", delta=0.05), tokens)) <= 1e-10


def test_verl_dppo_is_anchored_on_the_recomputed_policy() -> None:
    tokens = draw(torch.float64, mismatch=0.5, staleness=0.01)
    theirs = verl_side.loss_gradient("dppo_tv", tokens)
    paper = get_method("dppo_tv", delta=0.2, cap=3.0)
    assert discrepancy(theirs, ours(paper, tokens)) > 0.1
    assert discrepancy(verl_side.loss_gradient("dppo_tv", tokens, bypass=True), ours(paper, tokens)) <= 1e-10


@pytest.mark.parametrize(("loss_mode", "method"), [("sapo", "sapo"), ("geo_mean", "gmpo")])
def test_verl_ignores_the_aggregation_of_sapo_and_gmpo(loss_mode: str, method: str) -> None:
    tokens = draw(torch.float64, mismatch=0.1, staleness=0.1)
    theirs = verl_side.loss_gradient(loss_mode, tokens, "token-mean")
    coded = get_method_as_coded("verl", method)
    assert torch.equal(theirs, verl_side.loss_gradient(loss_mode, tokens, "token-sum"))
    assert discrepancy(theirs, ours(coded, tokens, BY_SEQUENCE)) <= 3e-8
    assert discrepancy(theirs, ours(coded, tokens, "token-mean")) > 0.1


def test_verl_gmpo_counts_sequences_without_tokens() -> None:
    tokens = without_first(draw(torch.float64, mismatch=0.1, staleness=0.1))
    theirs = verl_side.loss_gradient("geo_mean", tokens)
    coded = get_method_as_coded("verl", "gmpo")
    assert discrepancy(theirs, ours(coded, tokens, BY_SEQUENCE) * 7 / 8) <= 3e-8
    assert discrepancy(theirs, ours(coded, tokens, BY_SEQUENCE, num_sequences=8)) <= 3e-8


def test_verl_gmpo_averages_advantages_over_a_response() -> None:
    tokens = draw(torch.float64, mismatch=0.1, staleness=0.01)
    advantages = tokens.per_token.clone()
    advantages[:, 0] *= 3.0
    from verl.trainer.ppo.core_algos import get_policy_loss_fn

    loss, _ = get_policy_loss_fn("geo_mean")(
        tokens.old, tokens.train, advantages, tokens.counts, config=verl_side.actor_config()
    )
    theirs = slope(loss, tokens)
    batch = Batch.from_padded(tokens.train, tokens.rollout, advantages, tokens.mask, old_logprobs=tokens.old)
    mine = slope(get_method_as_coded("verl", "gmpo").loss(batch), tokens)
    ratio = mine[0, :2] / theirs[0, :2]
    length = int(tokens.mask[0].sum())
    assert ratio.tolist() == pytest.approx([3 * length / (length + 2), length / (length + 2)], rel=1e-6)


def test_verl_gmpo_takes_the_geometric_mean_of_weights() -> None:
    tokens = draw(torch.float64, mismatch=0.3, staleness=0.1)
    weights, _, _ = verl_side.correction(tokens, rollout_is="token", rollout_is_threshold=2.0)
    assert weights is not None
    theirs = verl_side.loss_gradient("geo_mean", tokens, weights=weights)
    plain = ours(get_method_as_coded("verl", "gmpo"), tokens, BY_SEQUENCE)
    mean = ((weights.log().masked_fill(~tokens.mask, 0.0)).sum(-1) / tokens.mask.sum(-1)).exp()
    assert discrepancy(theirs, plain * mean[:, None]) <= 3e-8
    assert discrepancy(theirs, plain * weights) > 0.05


# verl: correction


@pytest.mark.parametrize(
    ("option", "method", "changes"),
    [
        ("token_k1", "icepop", {"variant": "verl_token_k1"}),
        ("seq_sum_k1", "seq_mis", {"variant": "verl", "weighting": "none"}),
        ("seq_mean_k1", "geo_rs", {"variant": "verl"}),
    ],
)
def test_verl_k1_bounds_act_on_the_inverse_ratio(option: str, method: str, changes: dict[str, str]) -> None:
    tokens = draw(torch.float64, mismatch=0.15, staleness=0.0)
    keys = {"rollout_rs": option, "rollout_rs_threshold": "0.95_1.5"}
    _, mask, _ = verl_side.correction(tokens, **keys)
    band = {"low": 0.95, "high": 1.5}
    coded = get_method(method, **band, **changes).coefficients(tokens.batch())
    plain = {"weighting": "none", **{k: v for k, v in changes.items() if k != "variant"}}
    stated = get_method(method, **band, **plain).coefficients(tokens.batch())
    inverse = get_method(method, low=1 / 1.5, high=1 / 0.95, **plain).coefficients(tokens.batch())
    assert torch.equal(mask > 0, coded > 0)
    assert torch.equal(mask > 0, inverse > 0)
    assert not torch.equal(mask > 0, stated > 0)


def test_verl_divides_by_what_rejection_leaves() -> None:
    tokens = draw(torch.float64, mismatch=0.15, staleness=0.1)
    keys = {"rollout_rs": "seq_mean_k1", "rollout_rs_threshold": "0.97_1.03"}
    _, mask, _ = verl_side.correction(tokens, **keys)
    theirs = verl_side.loss_gradient("vanilla", tokens, mask=mask)
    coded = get_method_as_coded("verl", "geo_rs", low=0.97, high=1.03)
    share = float(mask.sum()) / float(tokens.mask.sum())
    assert 0 < share < 1
    assert discrepancy(theirs * share, ours(coded, tokens)) <= 1e-10


def test_verl_token_rejection_shortens_a_response() -> None:
    """With a mean over each response's tokens no count of ours gives what verl divides by: it differs by response."""
    tokens = draw(torch.float64, mismatch=0.15, staleness=0.1)
    _, mask, _ = verl_side.correction(tokens, rollout_rs="token_k1", rollout_rs_threshold="0.9_1.1")
    theirs = verl_side.loss_gradient("vanilla", tokens, BY_SEQUENCE, mask=mask)
    coded = get_method_as_coded("verl", "icepop", variant="verl_token_k1", low=0.9, high=1.1)
    mine = ours(coded, tokens, BY_SEQUENCE)
    left, length = mask.sum(dim=-1), tokens.mask.sum(dim=-1)
    responses = float((left > 0).sum())
    expected = mine * (length / left.clamp(min=1.0))[:, None] * len(length) / responses
    assert discrepancy(theirs, expected) <= 3e-8
    assert len(set((length / left.clamp(min=1.0)).tolist())) > 1


def test_verl_raises_where_no_weight_is_left() -> None:
    tokens = draw(torch.float64, mismatch=0.3, staleness=0.1)
    far = replace(tokens, rollout=tokens.rollout - 5.0)
    with pytest.raises(ZeroDivisionError):
        verl_side.correction(far, rollout_is="token", rollout_is_threshold="0.5_5.0")
    assert float(get_method_as_coded("verl", "icepop").coefficients(far.batch()).abs().max()) == 0.0


def test_verl_effective_sample_size_is_of_truncated_token_weights() -> None:
    tokens = draw(torch.float64, mismatch=0.5, staleness=0.0)
    keys = {"rollout_is": "sequence", "rollout_is_threshold": 2.0}
    weights, _, logged = verl_side.correction(tokens, **keys)
    assert weights is not None
    theirs = logged["rollout_corr/rollout_is_eff_sample_size"]
    applied = weights[tokens.mask]
    assert theirs == pytest.approx(float(applied.mean() ** 2 / applied.square().mean()), rel=1e-6)
    log_weight = ((tokens.old - tokens.rollout) * tokens.counts).sum(-1).numpy()
    kish = effective_sample_size(log_weight).fraction
    raw = np.exp(log_weight)
    assert kish == pytest.approx(raw.sum() ** 2 / (raw**2).sum() / len(raw))
    assert theirs > kish + 0.1, "truncated weights, one a token, look healthier than what was sampled"


def test_verl_metrics_count_sequences_without_tokens() -> None:
    tokens = without_first(draw(torch.float64, mismatch=0.2, staleness=0.0))
    _, _, logged = verl_side.correction(tokens)
    lengths = tokens.mask.sum(-1).numpy()
    rows = framework_metrics(
        tokens.old[tokens.mask].numpy(),
        tokens.rollout[tokens.mask].numpy(),
        np.concatenate([[0], np.cumsum(lengths)]),
    )
    mine = {row.name: row.value for row in rows if row.framework == "verl"}
    name = "rollout_corr/training_ppl"
    assert mine[name] is not None
    assert logged[name] == pytest.approx((7 * mine[name] + 1.0) / 8, rel=1e-7)
    assert logged["rollout_corr/kl"] == pytest.approx(mine["rollout_corr/kl"], rel=1e-7)


def test_verl_constant_length_is_the_padded_width() -> None:
    tokens = draw(torch.float64, mismatch=0.1, staleness=0.1)
    theirs = verl_side.loss_gradient("vanilla", tokens, "seq-mean-token-sum-norm")
    mine = ours(get_method_as_coded("verl", "dual_clip"), tokens, "seq-mean-token-sum-norm")
    longest, width = int(tokens.mask.sum(-1).max()), tokens.mask.shape[1]
    assert longest < width
    assert discrepancy(theirs * width / longest, mine) <= 1e-10


# TRL


def test_trl_cispo_takes_epsilon_high_for_the_cap() -> None:
    tokens = draw(torch.float64, mismatch=0.1, staleness=0.1)
    theirs = trl_side.loss_gradient(tokens, loss_type="cispo", epsilon_high=0.28)
    assert phi(theirs, tokens, (0, 0)) == pytest.approx(0.28)
    assert phi(ours(get_method("cispo", eps_high=0.28), tokens), tokens, (0, 0)) > 0.8
    assert discrepancy(theirs, ours(get_method_as_coded("trl", "cispo", cap=0.28), tokens)) <= 1e-10


def test_trl_rounds_temperatures_to_float32() -> None:
    tokens = draw(torch.float64, mismatch=0.1, staleness=0.3)
    theirs = trl_side.loss_gradient(tokens, loss_type="sapo")
    exact = ours(get_method_as_coded("trl", "sapo"), tokens, BY_SEQUENCE)
    rounded = ours(get_method("sapo", tau_neg=float(np.float32(1.05))), tokens, BY_SEQUENCE)
    assert 1e-10 < discrepancy(theirs, exact) < 1e-7
    assert discrepancy(theirs, rounded) <= 1e-12


def test_trl_ratios_overflow() -> None:
    """TRL bounds no log-ratio before exp: where float32 overflows its gradient is NaN, and ours is the clip's 0."""
    tokens = planted(90.0, 1.0, dtype=torch.float32)
    theirs = trl_side.loss_gradient(tokens, loss_type="dapo")
    assert math.isnan(float(theirs[0, 1]))
    mine = ours(get_method_as_coded("trl", "dapo"), tokens)
    assert float(mine[0, 1]) == 0.0
    assert discrepancy(theirs.masked_fill(theirs.isnan(), 0.0), mine) <= 1e-6


def test_trl_vespo_clamps_log_ratios() -> None:
    tokens = planted(-30.0, 1.0)
    shifted = tokens.train.detach().clone()
    shifted[0, 2] = tokens.old[0, 2] + 20.0
    tokens = replace(tokens, train=shifted.requires_grad_())
    theirs = trl_side.loss_gradient(tokens, loss_type="vespo")
    exact = get_method("vespo", reads="train/old")
    coded = get_method_as_coded("trl", "vespo", is_mode="none", reads="train/old")
    assert phi(theirs, tokens, (0, 0)) == pytest.approx(1.0, abs=0.1)
    assert phi(ours(exact, tokens), tokens, (0, 0)) < 1e-6
    assert discrepancy(theirs, ours(coded, tokens)) <= 1e-10


def test_trl_token_mask_silences_vespo() -> None:
    tokens = draw(torch.float64, mismatch=0.01, staleness=0.01)
    from trl import GRPOTrainer

    ratio = ((tokens.old - tokens.rollout) * tokens.counts).exp()
    ratio[0, 1] = 0.0
    theirs = GRPOTrainer.get_gamma_weights(
        tokens.advantages[:, None], tokens.train - tokens.old, tokens.counts, ratio
    )
    assert float(theirs[0]) < 1e-13 and float(theirs[1:].min()) > 0.8
    assert float(get_method("vespo").coefficients(tokens.batch())[0, 0]) > 0.8


def test_trl_counts_sequences_without_tokens() -> None:
    tokens = without_first(draw(torch.float64, mismatch=0.1, staleness=0.1))
    coded = get_method_as_coded("trl", "ppo_clip")
    theirs = trl_side.loss_gradient(tokens, loss_type="grpo")
    mine = ours(coded, tokens, BY_SEQUENCE)
    assert discrepancy(theirs, mine * 7 / 8) <= 1e-10
    assert discrepancy(theirs, ours(coded, tokens, BY_SEQUENCE, num_sequences=8)) <= 1e-10


@pytest.mark.parametrize(("loss_type", "method"), [("cispo", "cispo"), ("sapo", "sapo")])
def test_trl_smooth_losses_at_sequence_level_have_no_method(loss_type: str, method: str) -> None:
    """The cap or the gate on the geometric mean; for cispo the gradient is still that of single tokens."""
    tokens = draw(torch.float64, mismatch=0.1, staleness=0.4)
    config = {"epsilon_high": 1.1} if loss_type == "cispo" else {}
    changes = {"cap": 1.1} if loss_type == "cispo" else {}
    theirs = trl_side.loss_gradient(
        tokens, loss_type=loss_type, importance_sampling_level="sequence", **config
    )
    coded = get_method_as_coded("trl", method, **changes)
    aggregation: Aggregation = "token-mean" if loss_type == "cispo" else BY_SEQUENCE
    assert discrepancy(theirs, ours(coded, tokens, aggregation)) > 0.05
    mean = ((tokens.train - tokens.old) * tokens.counts).sum(-1) / tokens.counts.sum(-1)
    averaged = replace(tokens, train=(tokens.old + mean[:, None]).detach().requires_grad_())
    on_means = slope(coded.loss(averaged.batch(), aggregation), averaged)
    assert discrepancy(theirs, on_means) <= (1e-10 if loss_type == "cispo" else 1e-7)


def test_trl_luspo_at_token_level_is_a_clip() -> None:
    tokens = draw(torch.float64, mismatch=0.1, staleness=0.1)
    theirs = trl_side.loss_gradient(tokens, loss_type="luspo")
    assert discrepancy(theirs, ours(get_method_as_coded("trl", "luspo"), tokens, BY_SEQUENCE)) > 0.1
    assert (
        discrepancy(theirs, ours(get_method_as_coded("trl", "ppo_clip"), tokens, "seq-mean-token-sum"))
        <= 1e-10
    )


def test_trl_takes_an_unscored_token_for_on_policy() -> None:
    """See also test_trl_sampling.test_a_token_that_vllm_could_not_score, which runs it."""
    tokens = draw(torch.float64, mismatch=0.1, staleness=0.1)
    tokens.rollout[0, 0] = math.nan
    with pytest.raises(ConfigError, match="rollout_logprobs"):
        tokens.batch()
    from trl import GRPOTrainer

    mask = GRPOTrainer.get_off_policy_mask(
        tokens.advantages[:, None], tokens.train, tokens.rollout, tokens.counts, off_policy_threshold=10.0
    )
    assert bool((mask == 1.0).all())
