"""The `routing` section of a result: agreement by layer, flips by token, what replay explains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mismatch_probe.routing.agreement import compare_routes, flips_before
from mismatch_probe.stats.estimate import Estimate
from mismatch_probe.stats.intervals import POSITIVE_MEAN, Statistic, cluster_bootstrap
from mismatch_probe.stats.kl import token_k3
from mismatch_probe.trace.trace import Trace

_MAX_FLIP_ROWS = 8
# Columns: what is left with replay, what there is without.
_EXPLAINED_SHARE = Statistic(lambda sums: 1.0 - np.divide(sums[..., 0], sums[..., 1]))


def routing_section(
    trace: Trace, legs: Sequence[str], *, layers: Sequence[int], num_experts: int, ordered: bool
) -> dict[str, Any]:
    """Compares the experts of `rollout/decode` and `train/forward` over every fed token.

    Args:
        trace: The run.
        legs: Legs that were read.
        layers: Index in the model of each MoE layer.
        num_experts: Experts per layer.
        ordered: Whether the rollout engine listed its experts in order of gate weight.
    """
    rollout = trace.rollout
    recorded, offsets = trace.routes("rollout/decode")
    trained, _ = trace.routes("train/forward")
    compared = compare_routes(recorded, trained)
    clusters, lengths = rollout.prompt_index, np.diff(offsets)
    token_clusters = np.repeat(clusters, lengths)
    agree = ~compared.flipped
    flips = compared.flipped_layers
    return {
        "available": True,
        "num_tokens": compared.num_tokens,
        "num_layers": compared.num_layers,
        "top_k": compared.top_k,
        "num_experts": num_experts,
        "layers": [
            {
                "layer": int(layers[index]),
                "set_agreement": _mean(agree[:, index].astype(np.float64), token_clusters),
                "jaccard": float(compared.jaccard[:, index].mean()),
                "top1_agreement": float(compared.same_top1[:, index].mean()) if ordered else None,
            }
            for index in range(compared.num_layers)
        ],
        "set_agreement": _mean(agree.mean(axis=1), token_clusters),
        "token_any_flip_rate": _mean((flips > 0).astype(np.float64), token_clusters),
        "mean_flipped_layers": _mean(flips.astype(np.float64), token_clusters),
        "flipped_layers_histogram": np.bincount(flips, minlength=compared.num_layers + 1),
        "log_ratio_by_flips": _by_flips(trace, flips),
        "top1_reason": None
        if ordered
        else "the rollout engine does not list its experts in order of gate weight",
        "completeness": {"tokens": compared.num_tokens, "missing": int(compared.missing.any(axis=1).sum())},
        "replay": _replay(trace, legs),
    }


def _by_flips(trace: Trace, flips: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
    """How far tokens drift by how many layers flipped at the position that predicted them; the last row is "or more"."""
    rollout = trace.rollout
    prompt_lengths = np.diff(rollout.prompt_offsets)
    charged = flips_before(flips, prompt_lengths, rollout.lengths)
    log_ratio = trace.logprobs("train/forward") - rollout.logprobs
    top = min(int(charged.max(initial=0)), _MAX_FLIP_ROWS)
    rows = []
    for count in range(top + 1):
        chosen = charged == count if count < top else charged >= count
        if not chosen.any():
            continue
        rows.append(
            {
                "flips": count,
                "or_more": bool(count == top and charged.max() > top),
                "n": int(chosen.sum()),
                "mean_abs_log_ratio": float(np.abs(log_ratio[chosen]).mean()),
                "k3": float(token_k3(log_ratio[chosen]).mean()),
            }
        )
    return rows


def _replay(trace: Trace, legs: Sequence[str]) -> dict[str, Any]:
    if "train/replay" not in legs:
        reason = "the leg train/replay was not taken"
        return {"k3_forward": None, "k3_replay": None, "explained": None, "note": reason}
    rollout = trace.rollout
    forward = token_k3(trace.logprobs("train/forward") - rollout.logprobs)
    replay = token_k3(trace.logprobs("train/replay") - rollout.logprobs)
    token_clusters = np.repeat(rollout.prompt_index, rollout.lengths)
    explained = cluster_bootstrap(
        np.stack([replay, forward], axis=1), token_clusters, statistic=_EXPLAINED_SHARE
    )
    note = None
    if explained.value is not None and explained.value < 0:
        note = "with the rollout's experts the trainer is further from the rollout than with its own"
    return {
        "k3_forward": _mean(forward, token_clusters),
        "k3_replay": _mean(replay, token_clusters),
        "explained": explained,
        "note": note,
    }


def _mean(values: npt.NDArray[np.float64], clusters: npt.NDArray[np.int64]) -> Estimate:
    """Mean of values that are at least 0, with an interval that resamples prompts."""
    return cluster_bootstrap(values, clusters, statistic=POSITIVE_MEAN)
