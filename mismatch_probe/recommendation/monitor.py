"""What to watch during training, and from which value on this drift no longer explains it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import MismatchProbeError
from mismatch_probe.export.measured import look_up
from mismatch_probe.recommendation.action import estimate_at
from mismatch_probe.simulate.responses import Responses
from mismatch_probe.simulate.sums import ground_of, sum_weights
from mismatch_probe.stats.estimate import Estimate
from mismatch_probe.stats.intervals import Statistic, interval_from_table
from mismatch_probe.stats.kl import token_k1, token_k3
from mismatch_probe.weights.method import WeightMethod

FloatArray = npt.NDArray[np.float64]

# One batch in a thousand of this drift lies beyond an alarm, as far as so many prompts tell.
_LEVEL = 0.001
_DRAWS = 2000
# Below this many prompts the tail of a batch's number cannot be told.
MIN_PROMPTS = 16
# An alarm further from the value than this factor says nothing but that a few prompts carry it.
_FARTHEST = 100.0
_CHUNK = 4_000_000
# The names under which frameworks log the same number, computed the same way; see `mismatch_probe.stats.naming`.
_LOGGED: dict[str, tuple[tuple[str, str], ...]] = {
    "k3": (
        ("verl", "rollout_corr/k3_kl"),
        ("NeMo-RL", "gen_kl_error"),
        ("prime-rl", "mismatch_kl/all/mean"),
        ("ms-swift", "rollout_correction/k3_kl"),
    ),
    "k1": (
        ("verl", "rollout_corr/kl"),
        ("OpenRLHF", "vllm_kl"),
        ("ms-swift", "rollout_correction/kl"),
        ("tinker-cookbook", "optim/kl_sample_train_v1"),
    ),
    "mean_abs": (
        ("TRL", "sampling/sampling_logp_difference/mean"),
        ("SkyRL", "policy/rollout_train_logprobs_abs_diff_mean"),
    ),
    "sequence_k3": (("slime", "mis_k3_kl"),),
}


@dataclass(frozen=True, slots=True)
class Watched:
    """One number to watch.

    Attributes:
        name: Its key.
        quantity: What it is, with its unit.
        expected: What this run measured, or None.
        alarm: The value beyond which one batch in a thousand of this drift lies; None with the reason below.
        side: Whether values above or below it alarm.
        num_prompts: Prompts of the batch that the alarm is for; a larger batch varies less.
        logged: Framework and the name that it logs this number under.
        reason: Why there is no alarm, or None.
    """

    name: str
    quantity: str
    expected: Estimate | None
    alarm: float | None
    side: Literal["above", "below"]
    num_prompts: int
    logged: tuple[dict[str, str], ...]
    reason: str | None


def watch(
    result: Mapping[str, Any],
    responses: Responses,
    method: WeightMethod | None,
    *,
    kept: Estimate | None = None,
    seed: int = 0,
) -> tuple[Watched, ...]:
    """Numbers to watch, with alarms fitted to this drift.

    An alarm is where one in a thousand batches of as many prompts would lie if nothing but this drift were at work (see
    docs/recommendation.md for how often that was so). A number beyond it says that something has changed: weights that
    are stale, another engine version, longer responses.

    Args:
        result: result.json.
        responses: The run's responses.
        method: The correction that is recommended; None where there is none.
        kept: Share of tokens that it keeps here.
        seed: Of the resampling.
    """
    table, ratios = _table(responses, method)
    draws = _batches(table, seed)
    rows: list[tuple[str, str, Estimate | None, Literal["above", "below"]]] = [
        ("k3", "token K3, nats a token", estimate_at(result, "token.k3"), "above"),
        ("k1", "mean log mu - log pi, nats a token", estimate_at(result, "token.k1"), "above"),
        ("mean_abs", "mean |log pi - log mu|, nats a token", estimate_at(result, "token.mean_abs_log_ratio"), "above"),
        ("sequence_k3", "mean over responses of their token K3, nats a token", None, "above"),
        ("beyond_2", "share of tokens with a ratio beyond 2 either way", _beyond_two(result), "above"),
    ]  # fmt: skip
    if method is not None:
        rows += [
            ("kept", f"share of tokens that {method.label} keeps", kept, "below"),
            ("weight", f"mean weight of a token under {method.label}", None, "below"),
        ]
    made = []
    for name, quantity, expected, side in rows:
        if name not in ratios:
            continue
        top, bottom = ratios[name]
        made.append(
            _watched(name, quantity, expected, side, table, draws, _share(top, bottom), responses.num_prompts)
        )
    return tuple(made)


def _watched(
    name: str,
    quantity: str,
    expected: Estimate | None,
    side: Literal["above", "below"],
    table: FloatArray,
    draws: FloatArray | None,
    value_of: Callable[[FloatArray], FloatArray],
    prompts: int,
) -> Watched:
    here = float(value_of(table.sum(axis=0)))
    logged = tuple({"framework": framework, "name": key} for framework, key in _LOGGED.get(name, ()))
    alarm, reason = _alarm(name, here, side == "above", value_of, draws, prompts)
    return Watched(
        name=name,
        quantity=quantity,
        expected=expected
        or interval_from_table(table[table[:, 0] > 0], Statistic(value_of), n=prompts, resamples=500),
        alarm=alarm,
        side=side,
        num_prompts=prompts,
        logged=logged,
        reason=reason,
    )


def _alarm(
    name: str,
    here: float,
    above: bool,
    value_of: Callable[[FloatArray], FloatArray],
    draws: FloatArray | None,
    prompts: int,
) -> tuple[float | None, str | None]:
    """The alarm, or why there is none.

    Another batch and this one both vary, so their difference has sqrt(2) times the error of one; Student's t on prompts - 1
    degrees of freedom gives its end. Numbers that cannot be negative are taken on a log scale, a share kept by what is
    dropped.
    """
    from scipy.special import stdtrit

    if draws is None:
        return (
            None,
            f"{prompts} prompt{'s' if prompts != 1 else ''}: the spread of a batch needs {MIN_PROMPTS}",
        )
    with np.errstate(invalid="ignore"):
        error = float(np.std(value_of(draws)))
    if not np.isfinite(here) or not np.isfinite(error):
        return None, "the value leaves the range of float64"
    if error <= 1e-12 * abs(here):
        return None, "every prompt has the same value: this run does not tell how it varies"
    reach = np.sqrt(2.0) * float(stdtrit(prompts - 1, 1.0 - _LEVEL)) * error
    if name == "k1":
        return here + reach, None
    sign = 1.0 if above else -1.0
    if name == "kept":
        dropped = 1.0 - here
        alarm = 1.0 - dropped * float(np.exp(min(reach / dropped, 700.0)))
        return (
            (alarm, None)
            if alarm > 0.0
            else (None, "too few prompts drop a token to say how their share varies")
        )
    alarm = here * float(np.exp(sign * min(reach / here, 700.0)))
    if reach / here > np.log(_FARTHEST):
        return None, "a few prompts carry this number: how it varies cannot be told"
    return (None, "an alarm would lie beyond 1") if name == "beyond_2" and alarm >= 1.0 else (alarm, None)


def _table(
    responses: Responses, method: WeightMethod | None
) -> tuple[FloatArray, dict[str, tuple[int, int]]]:
    """Sums by prompt, float64 [prompts, columns], and which two columns each number is the quotient of."""
    half = slice((len(responses.offsets) - 1) // 2 if responses.assumed else None)
    ground = ground_of(responses)
    log_ratio = np.where(responses.mask, responses.train - responses.rollout, 0.0)
    lengths = responses.lengths()

    def by_prompt(per_sequence: FloatArray, clusters: npt.NDArray[np.int64]) -> FloatArray:
        return np.bincount(clusters, per_sequence, responses.num_prompts).astype(np.float64)

    def sums(values: FloatArray) -> FloatArray:
        return responses.sequence_sum(np.where(responses.mask, values, 0.0))[half]

    clusters = responses.clusters[half]
    counted = lengths[half] > 0
    k3 = sums(token_k3(log_ratio))
    mean_k3 = np.divide(k3, lengths[half], out=np.zeros(len(k3)), where=counted)
    columns = [
        lengths[half],
        counted.astype(np.float64),
        k3,
        sums(token_k1(log_ratio)),
        sums(np.abs(log_ratio)),
        mean_k3,
        sums((np.abs(log_ratio) > np.log(2.0)).astype(np.float64)),
    ]
    ratios = {"k3": (2, 0), "k1": (3, 0), "mean_abs": (4, 0), "sequence_k3": (5, 1), "beyond_2": (6, 0)}
    rows = [by_prompt(column, clusters) for column in columns]
    if method is not None:
        own = sum_weights({method.name: method}, responses, ground)[method.name]
        if not isinstance(own, MismatchProbeError):
            rows += [
                np.bincount(ground.clusters, column, ground.prompts).astype(np.float64)
                for column in (own.kept, own.weight, ground.lengths)
            ]
            ratios |= {"kept": (7, 9), "weight": (8, 9)}
    return np.stack(rows, axis=1), ratios


def _share(top: int, bottom: int) -> Callable[[FloatArray], FloatArray]:
    def value(sums: FloatArray) -> FloatArray:
        return np.asarray(sums[..., top] / sums[..., bottom], dtype=np.float64)

    return value


def _batches(table: FloatArray, seed: int) -> FloatArray | None:
    """Sums of resampled batches of as many prompts, float64 [draws, columns]; None with too few prompts."""
    table = table[table[:, 0] > 0]
    prompts = len(table)
    if prompts < MIN_PROMPTS:
        return None
    generator = np.random.default_rng(seed)
    share = np.full(prompts, 1.0 / prompts)
    rows = max(1, _CHUNK // prompts)
    pieces = []
    for start in range(0, _DRAWS, rows):
        counts = generator.multinomial(prompts, share, size=min(rows, _DRAWS - start))
        # A sum that left the range of float64 spoils its own column only, and that one gets no alarm.
        with np.errstate(invalid="ignore"):
            pieces.append(counts.astype(np.float64) @ table)
    return np.concatenate(pieces)


def _beyond_two(result: Mapping[str, Any]) -> Estimate | None:
    for row in look_up(result, "token.extreme") or []:
        if isinstance(row, Mapping) and row.get("tau") == 2:
            return estimate_at(row, "rate")
    return None
