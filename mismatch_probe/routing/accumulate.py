"""Routing of a run, part by part, in memory that does not grow with the tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import ConfigError
from mismatch_probe.routing.agreement import (
    BLOCK_ROWS,
    BoolArray,
    FloatArray,
    IdArray,
    IntArray,
    RouteComparer,
    RouteComparison,
    check_routes,
)
from mismatch_probe.routing.expert_load import ExpertCounter
from mismatch_probe.routing.flips import TokenFlips, token_flips
from mismatch_probe.routing.gates import GateSums, MarginSums
from mismatch_probe.routing.prompt_sums import PromptSums
from mismatch_probe.stats.kl import token_k3

FLIP_ROWS = 8
"""Tokens that flip in this many layers or more share a row."""


@dataclass(frozen=True, slots=True)
class RoutedPart:
    """Whole sequences, routed by both sides.

    Attributes:
        rollout: int [tokens, layers, top_k]; experts of the rollout engine for every fed token.
        train: int [tokens, layers, top_k]; experts of the training side for the same tokens.
        lengths: int64 [sequences]; fed tokens of each, one sequence after the other.
        prompts: int64 [sequences]; label of each sequence's prompt, the unit of resampling.
        predicting: int64 [response tokens]; the fed token whose logits gave each response token.
        log_ratio: float64 [response tokens]; log pi - log mu, nats.
        rollout_gates: float [tokens, layers, top_k]; gate weights of `rollout`, or None where it gives none.
        train_gates: float [tokens, layers, top_k]; gate weights of `train`, or None.
        margins: float [tokens, layers]; the training router's score of its last chosen expert minus that of the first
            left out, or None.
    """

    rollout: IdArray
    train: IdArray
    lengths: IntArray
    prompts: IntArray
    predicting: IntArray
    log_ratio: FloatArray
    rollout_gates: npt.NDArray[np.floating] | None = None
    train_gates: npt.NDArray[np.floating] | None = None
    margins: npt.NDArray[np.floating] | None = None


class RoutingAccumulator:
    """Takes a run part by part and merges with others, in any order.

    Memory: prompts x layers and layers x experts, nothing by token.

    Args:
        num_layers: MoE layers.
        num_experts: Experts per layer.
        top_k: Experts per token.
    """

    def __init__(self, *, num_layers: int, num_experts: int, top_k: int) -> None:
        self.shape = (num_layers, num_experts, top_k)
        self._comparer = RouteComparer(num_experts=num_experts, top_k=top_k)
        self._counter = ExpertCounter(num_layers=num_layers, num_experts=num_experts, top_k=top_k)
        self.num_tokens = 0
        self.flips = np.zeros(num_layers + 1, dtype=np.int64)
        self.missing = np.zeros(num_layers, dtype=np.int64)
        self.same_top1 = np.zeros(num_layers, dtype=np.int64)
        self.same_order = np.zeros(num_layers, dtype=np.int64)
        self.load = np.zeros((2, num_layers, num_experts), dtype=np.int64)
        # Per prompt: agreeing rows and Jaccard by layer, tokens; complete tokens, those with a flip, their flips.
        self.by_layer = PromptSums(2 * num_layers + 1)
        self.by_token = PromptSums(3)
        # Per prompt and bin: tokens, sum of |log_ratio|, sum of K3.
        self.flip_bins = min(num_layers, FLIP_ROWS) + 1
        self.by_flips = PromptSums(3 * self.flip_bins)
        self.by_first = PromptSums(3 * (num_layers + 1))
        self.gates = GateSums(num_layers)
        self.margins = MarginSums(num_layers)

    def update(self, part: RoutedPart) -> None:
        """Adds whole sequences.

        Raises:
            ConfigError: The arrays of the part do not fit each other or the model.
            InconclusiveError: The sides routed other tokens, or none.
        """
        num_layers, _, top_k = self.shape
        check_routes(part.rollout, part.train)
        tokens = len(part.rollout)
        if part.rollout.shape[1:] != (num_layers, top_k):
            raise ConfigError(f"routes of {part.rollout.shape} do not fit {num_layers} layers, top-{top_k}")
        if int(part.lengths.sum()) != tokens or part.lengths.shape != part.prompts.shape:
            raise ConfigError(f"sequences of {int(part.lengths.sum())} tokens, but routes of {tokens}")
        if part.predicting.shape != part.log_ratio.shape:
            raise ConfigError(f"{part.log_ratio.size} log-ratios for {part.predicting.size} response tokens")
        sequence = np.repeat(np.arange(part.lengths.size), part.lengths)
        step = max(1, BLOCK_ROWS // num_layers)
        blocks = [
            self._add_block(part, slice(begin, min(begin + step, tokens)), sequence)
            for begin in range(0, tokens, step)
        ]
        self.num_tokens += tokens
        count, first, complete = (np.concatenate(columns) for columns in zip(*blocks, strict=True))
        self.flips += np.bincount(count[complete], minlength=num_layers + 1)
        shares = ((count > 0) & complete, count * complete, complete)
        totals = [np.bincount(sequence, weights=column, minlength=part.lengths.size) for column in shares]
        self.by_token.add(part.prompts, np.stack(totals, axis=1))
        self._add_drift(part, sequence, count, first, complete)

    def merge(self, other: Self) -> None:
        """Adds another run, or other parts of the same.

        Raises:
            ConfigError: It is of another model.
        """
        if self.shape != other.shape:
            raise ConfigError(f"routing of {other.shape} and of {self.shape} (layers, experts, top-k)")
        self.num_tokens += other.num_tokens
        for name in ("flips", "missing", "same_top1", "same_order", "load"):
            getattr(self, name)[...] += getattr(other, name)
        for name in ("by_layer", "by_token", "by_flips", "by_first", "gates", "margins"):
            getattr(self, name).merge(getattr(other, name))

    def _add_block(
        self, part: RoutedPart, span: slice, sequence: IntArray
    ) -> tuple[IntArray, IntArray, BoolArray]:
        """Adds some tokens; returns their flips, first flipped layer and whether all their routes are known."""
        rollout, train = part.rollout[span], part.train[span]
        compared = self._comparer.compare(rollout, train)
        flips = token_flips(compared)
        for total, flags in (
            (self.missing, compared.missing),
            (self.same_top1, compared.same_top1),
            (self.same_order, compared.same_order),
        ):
            total += column_counts(flags)
        self.load += self._counter.count(rollout, train, flipped=compared.flipped, missing=compared.missing)
        first = int(sequence[span.start])
        within = sequence[span] - first
        sums = _layer_sums(compared, flips, within)
        self.by_layer.add(part.prompts[first : first + len(sums)], sums)
        if part.rollout_gates is not None and part.train_gates is not None:
            gates = part.rollout_gates[span], part.train_gates[span]
            self.gates.update(rollout, gates[0], train, gates[1], compared)
        if part.margins is not None:
            self.margins.update(part.margins[span], compared)
        return flips.count, flips.first, flips.complete

    def _add_drift(
        self, part: RoutedPart, sequence: IntArray, count: IntArray, first: IntArray, complete: BoolArray
    ) -> None:
        known = complete[part.predicting]
        token, log_ratio = part.predicting[known], part.log_ratio[known]
        columns = (np.ones(log_ratio.size), np.abs(log_ratio), token_k3(log_ratio))
        for sums, bins, place in (
            (self.by_flips, self.flip_bins, np.minimum(count[token], self.flip_bins - 1)),
            (self.by_first, self.shape[0] + 1, first[token]),
        ):
            key = sequence[token] * bins + place
            size = part.lengths.size
            table = [np.bincount(key, weights=column, minlength=size * bins) for column in columns]
            sums.add(part.prompts, np.stack(table, axis=-1).reshape(size, 3 * bins).astype(np.float64))


def column_counts(flags: BoolArray) -> IntArray:
    """How many rows of bool [rows, columns] are set, int64 [columns]; in bytes, which is several times as fast."""
    rows, columns = flags.shape
    whole = rows // 255 * 255
    blocks = flags[:whole].view(np.uint8).reshape(-1, 255, columns)
    counts: IntArray = np.add.reduce(blocks, axis=1, dtype=np.uint8).sum(axis=0, dtype=np.int64)
    counts += flags[whole:].sum(axis=0, dtype=np.int64)
    return counts


def _layer_sums(compared: RouteComparison, flips: TokenFlips, sequence: IntArray) -> FloatArray:
    """Agreeing rows and sums of Jaccard by sequence and layer, then tokens, float64 [sequences, 2 layers + 1].

    Most rows agree, so only those that do not are looked at.
    """
    layers, sequences = compared.num_layers, int(sequence[-1]) + 1
    missing = np.flatnonzero(compared.missing)
    tokens = np.bincount(sequence).astype(np.float64)[:, None]

    def by_sequence(rows: IntArray, weights: FloatArray | None) -> FloatArray:
        token = rows // layers
        key = sequence[token] * layers + rows - token * layers
        counts = np.bincount(key, weights=weights, minlength=sequences * layers)
        return counts.reshape(sequences, layers).astype(np.float64)

    absent = by_sequence(missing, None)
    shared = compared.overlap.reshape(-1)[flips.rows].astype(np.float64)
    lost = by_sequence(flips.rows, 1.0 - shared / (2.0 * compared.top_k - shared))
    agreeing = tokens - by_sequence(flips.rows, None) - absent
    return np.concatenate([agreeing, tokens - lost - absent, tokens], axis=1)
