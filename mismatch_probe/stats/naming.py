"""The drift under the names that training frameworks log, computed the way each of them codes it.

The same word means different numbers: verl's `kl` is the mean of rollout minus training log-probabilities,
AReaL's `behave_approx_kl` has the other sign; verl averages over tokens, slime over sequences; a K3 is
clamped here and not there; the `chi2_seq` of verl squares the product of ratios, that of ms-swift their
geometric mean. With `t` the training and `s` the rollout log-probability of a token, `convention` says which
one a number is.

Read at: verl 1dda039, TRL 1.16.0, slime 624b824, miles, NeMo-RL, prime-rl 559b447, SkyRL a956457, OpenRLHF
0.11.2, AReaL cbff54d, ROLL 8eb27cc, ms-swift and tinker-cookbook of August 2026.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import ConfigError
from mismatch_probe.stats.kl import CLAMP, token_k3
from mismatch_probe.stats.layout import FloatArray, SequenceLayout, finite_array

TRL_CLIP_MAX = 3.0
K3_OUTPUT_CLAMP = 10.0


@dataclass(frozen=True, slots=True)
class FrameworkMetric:
    """One number of a framework's dashboard.

    Attributes:
        framework: Whose.
        name: The key it is logged under.
        value: The number; None where it leaves float64 or is not defined.
        convention: What it is, with t the training and s the rollout log-probability.
    """

    framework: str
    name: str
    value: float | None
    convention: str


class _Batch:
    """What the formulas below read; sequences without tokens are left out."""

    def __init__(self, train: FloatArray, rollout: FloatArray, layout: SequenceLayout) -> None:
        self.t, self.s, self.lr = train, rollout, train - rollout
        kept = layout.lengths > 0
        self.lengths = layout.lengths[kept]
        self._layout, self._kept = layout, kept
        self.mean_t, self.mean_s = self.seq_mean(train), self.seq_mean(rollout)
        self.sum_lr = self.seq_sum(self.lr)
        self.mean_lr = self.sum_lr / self.lengths

    def seq_sum(self, values: FloatArray) -> FloatArray:
        return self._layout.sequence_sums(values)[self._kept]

    def seq_mean(self, values: FloatArray) -> FloatArray:
        return self.seq_sum(values) / self.lengths


Rows = Iterator[tuple[str, float, str]]


def framework_metrics(
    train_logprobs: npt.ArrayLike, rollout_logprobs: npt.ArrayLike, offsets: npt.ArrayLike
) -> list[FrameworkMetric]:
    """Computes every name that needs only both sides' log-probabilities, with each framework's defaults.

    `t` is what was passed as training side. Frameworks differ in what theirs is: the old policy recomputed by
    the trainer (verl, TRL, NeMo-RL, SkyRL, OpenRLHF, ROLL, slime) or the current one (prime-rl and bypass
    modes, which mix the update into the mismatch). Sequences without tokens are left out.

    Args:
        train_logprobs: [tokens] nats.
        rollout_logprobs: [tokens] nats.
        offsets: int64 [sequences + 1].

    Raises:
        ConfigError: The arrays do not fit together.
        InconclusiveError: No tokens, or tokens that are not finite.
    """
    train = finite_array(train_logprobs, "train_logprobs")
    rollout = finite_array(rollout_logprobs, "rollout_logprobs")
    if train.shape != rollout.shape:
        raise ConfigError("train and rollout log-probabilities must be of one length")
    batch = _Batch(train, rollout, SequenceLayout.from_arrays(offsets, num_tokens=train.size))
    rows: list[FrameworkMetric] = []
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for framework, formulas in _FRAMEWORKS:
            for name, number, convention in formulas(batch):
                value = float(number)
                rows.append(
                    FrameworkMetric(framework, name, value if np.isfinite(value) else None, convention)
                )
    return rows


def _clamped(log_ratio: FloatArray) -> FloatArray:
    return np.clip(log_ratio, -CLAMP, CLAMP)


def _clamped_k3(log_ratio: FloatArray) -> FloatArray:
    return np.clip(token_k3(log_ratio), -K3_OUTPUT_CLAMP, K3_OUTPUT_CLAMP)


def _perplexities(b: _Batch, prefix: str) -> Rows:
    gap = b.mean_s - b.mean_t
    yield f"{prefix}training_ppl", np.exp(-b.mean_t).mean(), "mean over sequences of exp(-mean t)"
    yield f"{prefix}training_log_ppl", (-b.mean_t).mean(), "mean over sequences of -mean t"
    yield f"{prefix}rollout_ppl", np.exp(-b.mean_s).mean(), "mean over sequences of exp(-mean s)"
    yield f"{prefix}rollout_log_ppl", (-b.mean_s).mean(), "mean over sequences of -mean s"
    yield f"{prefix}log_ppl_diff", gap.mean(), "mean over sequences of mean(s - t)"
    yield f"{prefix}log_ppl_abs_diff", np.abs(gap).mean(), "mean over sequences of |mean(s - t)|"
    yield f"{prefix}ppl_ratio", np.exp(gap).mean(), "mean over sequences of exp(mean(s - t))"


def _verl(b: _Batch) -> Rows:
    p, q = np.exp(b.t), np.exp(b.s)
    gap = np.abs(p - q)
    yield "rollout_corr/kl", -b.lr.mean(), "K1: token mean of s - t"
    yield "rollout_corr/k3_kl", token_k3(b.lr).mean(), "token mean of K3 of t - s, not clamped"
    yield from _perplexities(b, "rollout_corr/")
    yield "rollout_corr/log_ppl_diff_max", (b.mean_s - b.mean_t).max(), "largest mean(s - t) of a sequence"
    yield "rollout_corr/log_ppl_diff_min", (b.mean_s - b.mean_t).min(), "smallest mean(s - t) of a sequence"
    yield (
        "rollout_corr/chi2_token",
        np.exp(2 * _clamped(b.lr)).mean() - 1,
        "token mean of rho^2, minus 1, t - s within 20",
    )
    yield (
        "rollout_corr/chi2_seq",
        np.exp(2 * _clamped(b.sum_lr)).mean() - 1,
        "sequence mean of W^2, minus 1, W the product of ratios, log W within 20",
    )
    yield (
        "training/rollout_probs_diff_mean",
        gap.mean(),
        "token mean of |e^t - e^s|: probabilities, not logarithms",
    )
    yield "training/rollout_probs_diff_max", gap.max(), "largest |e^t - e^s|"
    yield "training/rollout_probs_diff_std", _std(gap), "standard deviation (n - 1) of |e^t - e^s|"
    yield (
        "training/rollout_actor_probs_pearson_corr",
        _correlation(p, q),
        "Pearson correlation of e^t and e^s",
    )


def _trl(b: _Batch) -> Rows:
    gap, weight = np.abs(b.lr), np.exp(b.sum_lr)
    kept = np.where(weight > TRL_CLIP_MAX, 0.0, weight)
    default = "product ratio of a sequence, 0 above 3 (mode sequence_mask)"
    yield "sampling/sampling_logp_difference/mean", gap.mean(), "token mean of |t - s|"
    yield "sampling/sampling_logp_difference/max", gap.max(), "largest |t - s|"
    yield "sampling/importance_sampling_ratio/min", kept.min(), f"smallest {default}"
    yield "sampling/importance_sampling_ratio/mean", kept.mean(), f"mean {default}"
    yield "sampling/importance_sampling_ratio/max", kept.max(), f"largest {default}"


def _slime(b: _Batch) -> Rows:
    gap = b.seq_mean(np.abs(b.lr)).mean()
    yield "train/train_rollout_logprob_abs_diff", gap, "sequence mean of token mean |t - s|"
    yield "mis_kl", -b.mean_lr.mean(), "K1: sequence mean of token mean s - t"
    yield (
        "mis_k3_kl",
        b.seq_mean(token_k3(b.lr)).mean(),
        "sequence mean of token mean K3 of t - s, not clamped",
    )
    yield from _perplexities(b, "mis_")
    chi2 = b.seq_mean(np.exp(2 * _clamped(b.lr))).mean() - 1
    yield "mis_chi2_token", chi2, "sequence mean of token mean rho^2, minus 1, t - s within 20"
    yield (
        "mis_chi2_seq",
        np.exp(2 * _clamped(b.sum_lr)).mean() - 1,
        "sequence mean of W^2, minus 1, log W within 20",
    )


def _miles(b: _Batch) -> Rows:
    gap = b.seq_mean(np.abs(b.lr)).mean()
    yield "train/train_rollout_logprob_abs_diff", gap, "sequence mean of token mean |t - s|"
    yield (
        "train/train_rollout_kl",
        b.seq_mean(_clamped_k3(b.lr)).mean(),
        "sequence mean of K3 of t - s, K3 within 10",
    )


def _nemo(b: _Batch) -> Rows:
    error = np.exp(np.abs(b.lr))
    by_sequence = b.seq_mean(error)
    mixture = np.logaddexp(b.t, b.s) - np.log(2.0)
    js = 0.5 * token_k3(b.t - mixture) + 0.5 * token_k3(b.s - mixture)
    yield "token_mult_prob_error", error.mean(), "TME: token mean of exp|t - s|; 1 is exact"
    yield (
        "gen_kl_error",
        token_k3(b.lr).mean(),
        "token mean of K3 of t - s, not clamped: KL(rollout || training)",
    )
    yield (
        "policy_kl_error",
        token_k3(-b.lr).mean(),
        "token mean of K3 of s - t, not clamped: explodes on rare tokens",
    )
    yield "js_divergence_error", js.mean(), "token mean of the K3 of both sides to their mixture, halved"
    yield "sampling_importance_ratio", np.exp(b.lr).mean(), "token mean of exp(t - s)"
    yield "max_seq_mult_prob_error", by_sequence.max(), "largest mean exp|t - s| of a sequence"
    yield "mean_seq_mult_prob_error", by_sequence.mean(), "sequence mean of token mean exp|t - s|"
    yield "min_seq_mult_prob_error", by_sequence.min(), "smallest mean exp|t - s| of a sequence"


def _prime(b: _Batch) -> Rows:
    k3 = token_k3(b.lr)
    yield (
        "mismatch_kl/all/mean",
        k3.mean(),
        "token mean of K3 of t - s, not clamped; t is the current policy there",
    )
    yield "mismatch_kl/all/max", k3.max(), "largest K3 of t - s"


def _skyrl(b: _Batch) -> Rows:
    gap = np.abs(b.lr)
    yield "policy/rollout_train_logprobs_abs_diff_mean", gap.mean(), "token mean of |s - t|"
    yield "policy/rollout_train_logprobs_abs_diff_std", _std(gap), "standard deviation (n - 1) of |s - t|"
    yield "policy/rollout_train_logprobs_abs_diff_max", gap.max(), "largest |s - t|"
    yield "policy/rollout_train_logprobs_abs_diff_min", gap.min(), "smallest |s - t|"


def _openrlhf(b: _Batch) -> Rows:
    yield "vllm_kl", -b.lr.mean(), "K1: token mean of s - t"


def _areal(b: _Batch) -> Rows:
    yield "behave_approx_kl", b.lr.mean(), "token mean of t - s: the other sign than K1"
    yield "behave_imp_weight", np.exp(b.lr).mean(), "token mean of exp(t - s), nothing rejected"


def _roll(b: _Batch) -> Rows:
    difference = np.exp(b.t) - np.exp(b.s)
    yield (
        "actor/train_infer_ratio_token_mean@sum",
        b.seq_mean(np.exp(b.lr)).mean(),
        "sequence mean of token mean exp(t - s)",
    )
    yield (
        "actor/train_infer_ratio_geometric_mean@sum",
        np.exp(b.mean_lr).mean(),
        "sequence mean of exp(mean(t - s))",
    )
    yield (
        "actor/train_infer_ratio_sequence_mean@sum",
        np.exp(b.sum_lr).mean(),
        "sequence mean of the product, not clamped",
    )
    yield (
        "actor/train_infer_diff_token_mean@sum",
        b.seq_mean(difference).mean(),
        "sequence mean of token mean e^t - e^s",
    )


def _swift(b: _Batch) -> Rows:
    k3 = np.minimum(token_k3(_clamped(b.lr)), K3_OUTPUT_CLAMP)
    yield "rollout_correction/kl", -b.lr.mean(), "K1: token mean of s - t"
    yield "rollout_correction/k3_kl", k3.mean(), "token mean of K3 of t - s, t - s within 20 and K3 within 10"
    yield from _perplexities(b, "rollout_correction/")
    yield (
        "rollout_correction/chi2_token",
        np.exp(2 * _clamped(b.lr)).mean() - 1,
        "token mean of rho^2, minus 1",
    )
    yield (
        "rollout_correction/chi2_seq",
        np.exp(2 * _clamped(b.mean_lr)).mean() - 1,
        "sequence mean of the squared geometric-mean ratio, minus 1 (the product elsewhere)",
    )


def _tinker(b: _Batch) -> Rows:
    yield "optim/kl_sample_train_v1", -b.lr.mean(), "K1: token mean of s - t"
    yield "optim/kl_sample_train_v2", 0.5 * np.square(b.lr).mean(), "K2: half the token mean of (s - t)^2"


_FRAMEWORKS = (
    ("verl", _verl),
    ("TRL", _trl),
    ("slime", _slime),
    ("miles", _miles),
    ("NeMo-RL", _nemo),
    ("prime-rl", _prime),
    ("SkyRL", _skyrl),
    ("OpenRLHF", _openrlhf),
    ("AReaL", _areal),
    ("ROLL", _roll),
    ("ms-swift", _swift),
    ("tinker-cookbook", _tinker),
)


def _std(values: FloatArray) -> float:
    return float(values.std(ddof=1)) if values.size > 1 else float("nan")


def _correlation(one: FloatArray, two: FloatArray) -> float:
    a, b = one - one.mean(), two - two.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else float("nan")
