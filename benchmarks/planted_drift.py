"""Drift with known properties, for the simulation study and its small version in the tests.

Two makers. `draw_log_ratios` plants log-ratios directly (fast; for bias and coverage of intervals).
`draw_laws` plants whole next-token laws on both sides, samples from one of them and logs both, so that every
identity that real data obey (E[rho] = 1, mean log p = -entropy) holds or is broken exactly as a given fault
breaks it (for the validity checks).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mismatch_probe.stats.validity import round_to_bfloat16


@dataclass(frozen=True)
class Drift:
    """How log-ratios are drawn.

    Attributes:
        name: For the tables.
        variance: Mean per-token variance v; Gaussian shapes have mean -v/2, so that E[rho] = 1.
        prompt_spread: Log-normal sigma of the standard deviation between prompts.
        shape: `gaussian`, `laplace`, or `outliers` (0.3 % of the tokens with standard deviation 1, the rest
            0.03).
        sequence_share: Share of the variance common to the tokens of a sequence.
        prompt_share: Share of the variance common to the sequences of a prompt.
        autocorrelation: Coefficient of a first-order autoregression along the sequence.
    """

    name: str
    variance: float = 2e-3
    prompt_spread: float = 0.0
    shape: str = "gaussian"
    sequence_share: float = 0.0
    prompt_share: float = 0.0
    autocorrelation: float = 0.0


DRIFTS = (
    Drift("Gaussian, independent"),
    Drift("Gaussian, prompts differ by 25 %", prompt_spread=0.25),
    Drift("Gaussian, prompts differ by 35 %", prompt_spread=0.35),
    Drift("Laplace tails, prompts differ by 25 %", prompt_spread=0.25, shape="laplace"),
    Drift("rare outlier tokens", shape="outliers"),
    Drift("errors shared by sequence (25 %) and prompt (9 %)", sequence_share=0.25, prompt_share=0.09),
    Drift("autocorrelated along the sequence (0.8)", autocorrelation=0.8, prompt_spread=0.25),
)
OUTSIDE_CLAIM = (Drift("Gaussian, prompts differ by 50 %", prompt_spread=0.5),)


@dataclass(frozen=True)
class LogRatios:
    """Planted tokens: flat log_ratio, offsets, clusters."""

    log_ratio: np.ndarray
    offsets: np.ndarray
    clusters: np.ndarray


def draw_log_ratios(
    drift: Drift, prompts: int, samples: int, length: int, rng: np.random.Generator
) -> LogRatios:
    """Draws sequences of log-normal length around `length` (sigma 0.5)."""
    size = prompts * samples
    lengths = np.maximum(2, np.rint(length * np.exp(rng.normal(0.0, 0.5, size)))).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    clusters = np.repeat(np.arange(prompts), samples)
    sequence = np.repeat(np.arange(size), lengths)
    scale = np.sqrt(drift.variance) * np.exp(
        drift.prompt_spread * rng.normal(size=prompts) - drift.prompt_spread**2
    )
    sd = scale[clusters][sequence]
    noise = rng.normal(size=offsets[-1])
    if drift.autocorrelation:
        noise = _autoregress(noise, offsets, drift.autocorrelation)
    if drift.shape == "laplace":
        noise = noise * np.sqrt(rng.exponential(1.0, noise.size))
    if drift.shape == "outliers":
        sd = np.where(rng.random(noise.size) < 0.003, 1.0, 0.03)
    shared = drift.sequence_share + drift.prompt_share
    if shared:
        noise = np.sqrt(1.0 - shared) * noise
        noise += np.sqrt(drift.sequence_share) * rng.normal(size=size)[sequence]
        noise += np.sqrt(drift.prompt_share) * rng.normal(size=prompts)[clusters][sequence]
    log_ratio = sd * noise
    # log E exp of the noise, so that E[rho] = 1 token by token: v/2 for Gaussian, -log(1 - v/2) for Laplace.
    log_ratio += np.log1p(-0.5 * sd**2) if drift.shape == "laplace" else -0.5 * sd**2
    return LogRatios(log_ratio, offsets, clusters)


def _autoregress(noise: np.ndarray, offsets: np.ndarray, coefficient: float) -> np.ndarray:
    from scipy.signal import lfilter

    innovation = np.sqrt(1.0 - coefficient**2) * noise
    starts = offsets[:-1]
    # Restart at each sequence: cancel what the filter would carry over.
    innovation[starts] = noise[starts]
    out = np.empty_like(noise)
    for start, stop in zip(starts, offsets[1:], strict=True):
        out[start:stop] = lfilter([1.0], [1.0, -coefficient], innovation[start:stop])
    return out


@dataclass(frozen=True)
class Laws:
    """What both sides log about sampled tokens.

    Attributes:
        train: float64 [tokens] log pi.
        rollout: float64 [tokens] log mu.
        entropy: float64 [tokens] entropy of pi.
        offsets: int64 [sequences + 1].
        clusters: int64 [sequences].
    """

    train: np.ndarray
    rollout: np.ndarray
    entropy: np.ndarray
    offsets: np.ndarray
    clusters: np.ndarray


@dataclass(frozen=True)
class LawModel:
    """How the two laws relate.

    Attributes:
        noise: Standard deviation of the noise on each logit of each side.
        heavy: Noise is Student's t with 3 degrees of freedom times `noise`, as where routes flip.
        prompt_spread: Log-normal sigma of the noise between prompts.
        rollout_temperature: Of sampling.
        train_temperature: Of the training forward.
        top_p: Nucleus that sampling keeps.
        top_k: Tokens that sampling keeps, 0 for all.
        log_raw: Rollout logs its law before temperature and cut.
        bfloat16: Logits are rounded to bfloat16 on both sides.
        vocabulary: Tokens of the law.
    """

    noise: float = 0.05
    heavy: bool = False
    prompt_spread: float = 0.25
    rollout_temperature: float = 1.0
    train_temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    log_raw: bool = False
    bfloat16: bool = False
    vocabulary: int = 64


def draw_laws(model: LawModel, prompts: int, samples: int, length: int, rng: np.random.Generator) -> Laws:
    """Draws next-token laws with entropies spread like a language model's: most near-certain, some open."""
    size = prompts * samples
    lengths = np.maximum(4, np.rint(length * np.exp(rng.normal(0.0, 0.4, size)))).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    clusters = np.repeat(np.arange(prompts), samples)
    tokens = int(offsets[-1])
    shape = (tokens, model.vocabulary)
    sharpness = np.exp(rng.normal(1.0, 0.7, tokens))[:, None]
    # Around 20, where the bfloat16 spacing is 0.125 as it is for the top logits of real models.
    clean = 20.0 + sharpness * rng.gumbel(size=shape) - sharpness * np.log(model.vocabulary)
    spread = np.exp(model.prompt_spread * rng.normal(size=prompts))[np.repeat(clusters, lengths)][:, None]
    logits = [clean + model.noise * spread * _noise(rng, shape, model.heavy) for _ in range(2)]
    if model.bfloat16:
        logits = [round_to_bfloat16(side) for side in logits]
    sampling = _truncated(_log_softmax(logits[1] / model.rollout_temperature), model)
    uniform = rng.random((tokens, 1))
    drawn = np.argmax(np.cumsum(np.exp(sampling), axis=1) > uniform * (1.0 - 1e-12), axis=1)
    rows = np.arange(tokens)
    train = _log_softmax(logits[0] / model.train_temperature)
    logged = _log_softmax(logits[1]) if model.log_raw else sampling
    entropy = -np.sum(np.exp(train) * train, axis=1)
    return Laws(train[rows, drawn], logged[rows, drawn], entropy, offsets, clusters)


def _noise(rng: np.random.Generator, shape: tuple[int, int], heavy: bool) -> np.ndarray:
    return rng.standard_t(3, size=shape) if heavy else rng.normal(size=shape)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _truncated(log_p: np.ndarray, model: LawModel) -> np.ndarray:
    if model.top_p >= 1.0 and not model.top_k:
        return log_p
    order = np.argsort(-log_p, axis=1)
    ranked = np.take_along_axis(log_p, order, axis=1)
    mass_before = np.cumsum(np.exp(ranked), axis=1) - np.exp(ranked)
    keep = mass_before < model.top_p
    if model.top_k:
        keep[:, model.top_k :] = False
    cut = np.where(keep, ranked, -np.inf)
    cut -= np.log(np.exp(cut).sum(axis=1, keepdims=True))
    out = np.empty_like(log_p)
    np.put_along_axis(out, order, cut, axis=1)
    return out


def shifted(laws: Laws, by: int, sequences: np.ndarray | None = None) -> Laws:
    """The training side of the chosen sequences (default all) rolled by `by` tokens."""
    train = laws.train.copy()
    for index in range(laws.clusters.size) if sequences is None else sequences:
        part = slice(laws.offsets[index], laws.offsets[index + 1])
        train[part] = np.roll(train[part], by)
    return replace(laws, train=train)
