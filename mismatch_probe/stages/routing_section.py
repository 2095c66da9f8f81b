"""The `routing` section of a result: agreement by layer, flips by token, how drift follows them, what replay explains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mismatch_probe.routing.accumulate import RoutedPart, RoutingAccumulator
from mismatch_probe.routing.agreement import FloatArray
from mismatch_probe.routing.expert_load import load_of
from mismatch_probe.routing.flips import predicting_positions
from mismatch_probe.stages.replay_section import replay_section
from mismatch_probe.stats.estimate import Estimate, without_wide_interval
from mismatch_probe.stats.intervals import POSITIVE_MEAN, Statistic, interval_from_table
from mismatch_probe.trace.trace import Trace

_UNORDERED = "the rollout engine does not list its experts in order of gate weight"
_NO_GATES = "gate weights were not recorded on both sides"
_NO_MARGINS = "the training side recorded no router scores"
_NO_FLIP = "no decision of this layer flipped"


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

    Raises:
        InconclusiveError: Routes do not cover every fed token.
    """
    routing = accumulate_routing(trace, num_experts=num_experts)
    num_layers, _, top_k = routing.shape
    by_layer, by_token = routing.by_layer.table(), routing.by_token.table()
    tokens, complete = by_layer[:, -1], by_token[:, 2]
    agreeing = by_layer[:, :num_layers].sum(axis=1)
    return {
        "available": True,
        "num_tokens": routing.num_tokens,
        "num_layers": num_layers,
        "top_k": top_k,
        "num_experts": num_experts,
        "layers": [
            _layer(routing, by_layer, index, int(layers[index]), ordered=ordered)
            for index in range(num_layers)
        ],
        "set_agreement": _mean(agreeing, num_layers * tokens, routing.num_tokens),
        "token_any_flip_rate": _mean(by_token[:, 0], complete, int(complete.sum())),
        "mean_flipped_layers": _mean(by_token[:, 1], complete, int(complete.sum())),
        "flipped_layers_histogram": routing.flips,
        "log_ratio_by_flips": _by_flips(routing),
        "log_ratio_by_first_flip": _by_first_flip(routing, layers),
        "flipped_tokens": _flipped_tokens(routing),
        "margins": _margins(routing),
        "expert_load": [
            {"layer": int(layers[index]), "rollout": routing.load[0, index], "train": routing.load[1, index]}
            for index in range(num_layers)
        ],
        "top1_reason": None if ordered else _UNORDERED,
        "completeness": {
            "tokens": routing.num_tokens,
            "missing": routing.num_tokens - int(complete.sum()),
            "missing_routes": int(routing.missing.sum()),
        },
        "replay": replay_section(trace, legs, layers=layers),
    }


def accumulate_routing(trace: Trace, *, num_experts: int) -> RoutingAccumulator:
    """Reads the routes of both sides part by part.

    Args:
        trace: The run.
        num_experts: Experts per layer.

    Raises:
        InconclusiveError: Routes do not cover every fed token.
    """
    rollout, recorded, counted = trace.rollout, trace.recorded, trace.counted
    log_ratio = trace.logprobs("train/forward") - rollout.logprobs
    prompt_lengths = np.diff(rollout.prompt_offsets)
    routing: RoutingAccumulator | None = None
    begin = 0
    for sampled, trained in zip(
        trace.route_parts("rollout/decode"), trace.route_parts("train/forward"), strict=True
    ):
        end = begin + len(sampled.sequence_id)
        if routing is None:
            _, num_layers, top_k = sampled.experts.shape
            routing = RoutingAccumulator(num_layers=num_layers, num_experts=num_experts, top_k=top_k)
        predicting = predicting_positions(prompt_lengths[begin:end], recorded.lengths[begin:end])
        if counted is not None:
            # Routes are compared wherever both sides ran; drift is that of the tokens that count.
            predicting = predicting[counted[recorded.offsets[begin] : recorded.offsets[end]]]
        routing.update(
            RoutedPart(
                rollout=sampled.experts,
                train=trained.experts,
                lengths=np.diff(sampled.offsets),
                prompts=rollout.prompt_index[begin:end],
                predicting=predicting,
                log_ratio=log_ratio[rollout.offsets[begin] : rollout.offsets[end]],
                rollout_gates=sampled.gates,
                train_gates=trained.gates,
                margins=trained.margins,
            )
        )
        begin = end
    assert routing is not None  # noqa: S101 - a rollout without sequences was refused before
    return routing


def _layer(
    routing: RoutingAccumulator, by_layer: FloatArray, index: int, layer: int, *, ordered: bool
) -> dict[str, Any]:
    num_layers, n = routing.shape[0], routing.num_tokens
    tokens = by_layer[:, -1]
    same_sets = float(by_layer[:, index].sum())
    row: dict[str, Any] = {
        "layer": layer,
        "set_agreement": _mean(by_layer[:, index], tokens, n),
        "jaccard": _mean(by_layer[:, num_layers + index], tokens, n),
        "top1_agreement": float(routing.same_top1[index] / n) if ordered else None,
        "order_changes": None,
        "missing": int(routing.missing[index]),
    }
    if not ordered:
        row["order_changes_reason"] = _UNORDERED
    elif same_sets:
        row["order_changes"] = 1.0 - float(routing.same_order[index]) / same_sets
    else:
        row["order_changes_reason"] = "the sets never agree"
    for names, means, absent in (
        (("gate_distance", "gate_distance_flipped"), routing.gates.means(index), _NO_GATES),
        (("margin_unflipped", "margin_flipped"), routing.margins.means(index), _NO_MARGINS),
    ):
        for name, value in zip(names, means, strict=True):
            row[name] = value
            if value is None:
                row[f"{name}_reason"] = absent if means == (None, None) else _NO_FLIP
    if routing.load[:, index].any():
        load = load_of(routing.load[0, index], routing.load[1, index])
        row |= {
            "load_total_variation": load.total_variation,
            "rollout_imbalance": load.rollout_imbalance,
            "train_imbalance": load.train_imbalance,
        }
    return row


def _by_flips(routing: RoutingAccumulator) -> list[dict[str, Any]]:
    """How far tokens drift by how many layers flipped at the position that predicted them; the last row is "or more"."""
    last = routing.flip_bins - 1
    return [
        {"flips": count, "or_more": count == last and last < routing.shape[0], **row}
        for count, row in _drift_rows(routing.by_flips.table())
    ]


def _by_first_flip(routing: RoutingAccumulator, layers: Sequence[int]) -> list[dict[str, Any]]:
    """How far tokens drift by the first layer that flipped; `layer` is null where none did."""
    return [
        {"layer": None if place == routing.shape[0] else int(layers[place]), **row}
        for place, row in _drift_rows(routing.by_first.table())
    ]


def _drift_rows(table: FloatArray) -> list[tuple[int, dict[str, Any]]]:
    bins = table.reshape(len(table), -1, 3)
    rows = []
    for place in range(bins.shape[1]):
        # A prompt without such a token says nothing of them.
        n, absolute, k3 = bins[bins[:, place, 0] > 0, place].T
        if n.size:
            count = int(n.sum())
            rows.append(
                (
                    place,
                    {
                        "n": count,
                        "mean_abs_log_ratio": without_wide_interval(_mean(absolute, n, count)),
                        "k3": without_wide_interval(_mean(k3, n, count)),
                    },
                )
            )
    return rows


def _flipped_tokens(routing: RoutingAccumulator) -> dict[str, Estimate]:
    """Which share of response tokens a flip predicted, and which share of all K3 they carry."""
    bins = routing.by_flips.table().reshape(-1, routing.flip_bins, 3)
    n = int(bins[..., 0].sum())
    of_rest = Statistic(_share_of_rest)

    def share(column: int) -> Estimate:
        sums = np.stack([bins[:, 0, column], bins[..., column].sum(axis=1)], axis=1)
        return interval_from_table(sums, of_rest, n=n)

    return {"share_of_tokens": share(0), "share_of_k3": share(2)}


def _share_of_rest(sums: FloatArray) -> FloatArray:
    return 1.0 - np.divide(sums[..., 0], sums[..., 1])


def _margins(routing: RoutingAccumulator) -> dict[str, Any]:
    bins = routing.margins.histogram()
    if not bins:
        return {"available": False, "reason": _NO_MARGINS}
    return {
        "available": True,
        "unit": "router score of the last expert chosen minus that of the first left out, training side",
        "bins": [
            {
                "low": edge.low,
                "high": edge.high if np.isfinite(edge.high) else None,
                "n": edge.n,
                "flipped": edge.flipped,
                "flip_rate": edge.flipped / edge.n,
            }
            for edge in bins
        ],
    }


def _mean(sums: FloatArray, counts: FloatArray, n: int) -> Estimate:
    """A mean of values that are at least 0 from sums by prompt, with an interval that resamples prompts."""
    return interval_from_table(np.stack([sums, counts], axis=1), POSITIVE_MEAN, n=n)
