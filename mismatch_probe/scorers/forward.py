"""What every training-side forward shares: batches, places of sequences in them, reading logits, routes in and out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from mismatch_probe.errors import ConfigError
from mismatch_probe.scorers.protocol import ProgressCallback, ScoredSequence, ScoreRequest
from mismatch_probe.trace.keep_sets import KeepSet

if TYPE_CHECKING:
    import torch

    from mismatch_probe.scorers.tiled_head import TiledHead
    from mismatch_probe.scorers.transformers_routing import CapturedRoutes

# Logits of one batch, and the float32 copy of one block of them, stay below these.
_MAX_LOGIT_BYTES = 1 << 30
_MAX_BLOCK_BYTES = 1 << 28
# A packed row may need a mask of all its tokens against all.
_MAX_PACKED_TOKENS = 1 << 14

Logits = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
"""(ids, positions) [lines, width] to logits [lines, width, vocabulary]; positions are -1 where a line is padding."""


class Routers(Protocol):
    """The routers of a model, to be watched or forced during one forward."""

    def forward(
        self, *, capture: bool, forced: torch.Tensor | None, forced_gates: torch.Tensor | None = None
    ) -> AbstractContextManager[None]:
        """Sets what the next forward does; rows are its flattened (line, column).

        Args:
            capture: Whether to keep what the routers do.
            forced: int64 [rows, layers, top_k], -1 rows keep the model's own choice; None forces nothing.
            forced_gates: float32 of that shape, NaN rows are recomputed; None recomputes all.
        """
        ...

    def take(self) -> CapturedRoutes:
        """What the last forward captured."""
        ...


@dataclass(frozen=True, slots=True)
class ScoringForward:
    """A loaded model as something that scores finished sequences.

    Attributes:
        logits: The model.
        device: Where it is.
        vocab_size: Width of its logits.
        logit_bytes: Bytes of one of them.
        routers: Of a model with experts, or None.
        num_moe_layers: How many routers there are.
        top_k: Experts per token.
        packing: Whether the sequences of a batch follow each other in one line.
        top_p: Truncation of the model's own distribution; 1 reads the whole.
        keep_k: Likewise: the largest so many are kept before `top_p`; below 1 all are.
        hidden: What the head reads, [lines, width, hidden], likewise; None where the model has to make its logits itself.
        head: The head in tiles, which `hidden` goes through; None likewise.
        token_budget: Tokens of a forward, padding counted, in the place of a number of sequences; None takes that number.

    Notes:
        The log-probability is `log_softmax(logits.float() / temperature)`.
    """

    logits: Logits
    device: torch.device
    vocab_size: int
    logit_bytes: int
    routers: Routers | None = None
    num_moe_layers: int = 0
    top_k: int = 0
    packing: bool = False
    top_p: float = 1.0
    keep_k: int = -1
    hidden: Logits | None = None
    head: TiledHead | None = None
    token_budget: int | None = None

    def score(
        self,
        requests: Sequence[ScoreRequest],
        *,
        batch_size: int,
        temperature: float,
        capture_routing: bool,
        progress: ProgressCallback,
    ) -> list[ScoredSequence]:
        """Scores `batch_size` sequences a forward, in order, or as many as the token budget holds, sorted by length.

        Returns:
            In the order of the requests.

        Raises:
            ConfigError: Routes are asked of a model without routers.
        """
        order = range(len(requests))
        if self.token_budget is not None:
            # Longest first: what does not fit into memory fails at once.
            order = sorted(order, key=lambda at: -_length(requests[at]))  # type: ignore[assignment]
        scored: dict[int, ScoredSequence] = {}
        done = 0
        for batch in self.batches([requests[at] for at in order], batch_size):
            results = self.score_batch(batch, temperature, capture_routing)
            scored |= zip(order[done : done + len(batch)], results, strict=True)
            done += len(batch)
            progress(len(results), sum(len(result.logprobs) for result in results))
        return [scored[at] for at in range(len(requests))]

    def batches(self, requests: Sequence[ScoreRequest], size: int) -> list[list[ScoreRequest]]:
        """Splits in order; a batch also ends where its logits, or the mask of a packed row, would not fit."""
        budget = max(1, _MAX_LOGIT_BYTES // (self.vocab_size * self.logit_bytes))
        if self.token_budget is not None:
            budget = min(budget, self.token_budget)
        elif self._tiled(requests):
            budget = max(budget, _MAX_LOGIT_BYTES // self._hidden_bytes())
        batches: list[list[ScoreRequest]] = []
        longest = 0
        for request in requests:
            length = _length(request)
            longest = max(longest, length)
            tokens = (len(batches[-1]) + 1) * longest if batches else 0
            full = tokens > budget or (self.packing and tokens > _MAX_PACKED_TOKENS)
            many = len(batches[-1]) == size if batches and self.token_budget is None else False
            if not batches or many or full:
                batches.append([])
                longest = length
            batches[-1].append(request)
        return batches

    def score_batch(
        self, batch: Sequence[ScoreRequest], temperature: float, capture_routing: bool
    ) -> list[ScoredSequence]:
        """Scores one batch in one forward.

        Raises:
            ConfigError: Routes are asked of a model without routers.
        """
        import torch

        if self.routers is None and (capture_routing or any(r.routing is not None for r in batch)):
            raise ConfigError("this model has no experts to capture or replay", hint="leave out train/replay")
        rows = [[*request.prompt_token_ids, *request.response_token_ids] for request in batch]
        places, shape = _places([len(row) for row in rows], packing=self.packing)
        ids = torch.zeros(shape, dtype=torch.long)
        positions = torch.full(shape, -1, dtype=torch.long)
        for (line, start), row in zip(places, rows, strict=True):
            ids[line, start : start + len(row)] = torch.tensor(row)
            positions[line, start : start + len(row)] = torch.arange(len(row))
        ids, positions = ids.to(self.device), positions.to(self.device)
        routes = None
        tiled = self._tiled(batch)
        forward = self.hidden if tiled and self.hidden is not None else self.logits
        with torch.inference_mode():
            if self.routers is None:
                made = forward(ids, positions)
            else:
                forced, gates = self._forced_rows(batch, places, shape)
                with self.routers.forward(capture=capture_routing, forced=forced, forced_gates=gates):
                    made = forward(ids, positions)
                if capture_routing:
                    routes = self.routers.take()
            if tiled:
                scored = self._read_tiles(batch, places, made, temperature)
            else:
                scored = [
                    self.read(request, made[line, start:], temperature)
                    for request, (line, start) in zip(batch, places, strict=True)
                ]
        if routes is None:
            return scored
        captured = [
            tensor.view(*shape, self.num_moe_layers, *tensor.shape[2:]).numpy()
            for tensor in (routes.ids, routes.gates, routes.margins)
        ]
        return [
            replace(sequence, routing=kept[0], gates=kept[1], margins=kept[2])
            for sequence, row, (line, start) in zip(scored, rows, places, strict=True)
            # The last token is fed too, but predicts nothing that was sampled.
            for end in [start + len(row) - 1]
            for kept in [[np.ascontiguousarray(array[line, start:end]) for array in captured]]
        ]

    def _tiled(self, requests: Sequence[ScoreRequest]) -> bool:
        """Whether the head is read in tiles: what truncates a distribution needs all of it."""
        whole = self.top_p >= 1 and self.keep_k < 1 and all(request.keep_set is None for request in requests)
        return self.head is not None and whole

    def _hidden_bytes(self) -> int:
        """Bytes of a token's hidden states, several times over: those of a layer's inner activations are alive with them."""
        assert self.head is not None  # noqa: S101 - asked of a tiled head only
        return int(16 * self.head.weight.shape[1] * max(self.logit_bytes, self.head.weight.element_size()))

    def _read_tiles(
        self,
        batch: Sequence[ScoreRequest],
        places: Sequence[tuple[int, int]],
        hidden: torch.Tensor,
        temperature: float,
    ) -> list[ScoredSequence]:
        """Reads the responses of a batch through the tiled head, all their tokens together."""
        import torch

        assert self.head is not None  # noqa: S101 - asked before
        rows, targets = [], []
        for request, (line, start) in zip(batch, places, strict=True):
            first = start + len(request.prompt_token_ids) - 1
            rows.append(hidden[line, first : first + len(request.response_token_ids)])
            targets.append(torch.tensor(list(request.response_token_ids), dtype=torch.long))
        logprobs, entropy = self.head.read(torch.cat(rows), torch.cat(targets).to(hidden.device), temperature)
        sizes = [len(row) for row in rows]
        read = zip(batch, logprobs.cpu().split(sizes), entropy.cpu().split(sizes), strict=True)
        return [
            ScoredSequence(request.sequence_id, own.numpy(), spread.numpy(), None)
            for request, own, spread in read
        ]

    def read(self, request: ScoreRequest, logits: torch.Tensor, temperature: float) -> ScoredSequence:
        """Reads a line [width, vocabulary] of logits, block by block so that no float32 copy of it all is made.

        Args:
            request: What begins at the line's first column.
            logits: In any float dtype.
            temperature: Logits are divided by it, in float32.
        """
        import torch

        begin, count = len(request.prompt_token_ids), len(request.response_token_ids)
        targets = torch.tensor(list(request.response_token_ids), dtype=torch.long, device=logits.device)
        # The logits at position i predict token i + 1.
        logits = logits[begin - 1 : begin - 1 + count]
        block = max(1, _MAX_BLOCK_BYTES // (4 * logits.shape[-1]))
        logprobs, entropy = [], []
        for start in range(0, count, block):
            log_p = torch.log_softmax(logits[start : start + block].float() / temperature, dim=-1)
            read = log_p.gather(-1, targets[start : start + block, None])[:, 0]
            if request.keep_set is None:
                kept, uncertainty = self._log_kept(log_p, read), torch.special.entr(log_p.exp()).sum(-1)
            else:
                kept, uncertainty = over_keep_set(log_p, request.keep_set, start)
            logprobs.append(read - kept)
            entropy.append(uncertainty)
        return ScoredSequence(
            sequence_id=request.sequence_id,
            logprobs=torch.cat(logprobs).cpu().numpy() if count else np.zeros(0, np.float32),
            entropy=torch.cat(entropy).cpu().numpy() if count else np.zeros(0, np.float32),
            routing=None,
        )

    def _log_kept(self, log_p: torch.Tensor, read: torch.Tensor) -> torch.Tensor | float:
        """Log mass of what truncation keeps of each row, the token that was read always among it; 0 without truncation."""
        if self.top_p >= 1 and self.keep_k < 1:
            return 0.0
        import torch

        ranked = log_p.sort(dim=-1, descending=True).values
        probability = ranked.exp()
        if self.keep_k > 0:
            probability[:, self.keep_k :] = 0
        # top_p counts within what top_k left. A token stays while those before it have not reached top_p.
        share = probability / probability.sum(dim=-1, keepdim=True)
        probability = torch.where(share.cumsum(-1) - share < self.top_p, probability, 0)
        last = (probability > 0).sum(dim=-1, keepdim=True) - 1
        outside = read < ranked.gather(-1, last)[:, 0]
        return (probability.sum(-1) + torch.where(outside, read.exp(), 0)).log()

    def _forced_rows(
        self, batch: Sequence[ScoreRequest], places: Sequence[tuple[int, int]], shape: tuple[int, int]
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Experts [rows, layers, top_k] to force, -1 where none, and their weights, NaN where none."""
        import torch

        if all(request.routing is None for request in batch):
            return None, None
        forced = torch.full((*shape, self.num_moe_layers, self.top_k), -1, dtype=torch.long)
        gates = torch.full(forced.shape, float("nan"))
        for request, (line, start) in zip(batch, places, strict=True):
            for values, filled in ((request.routing, forced), (request.gates, gates)):
                if values is not None:
                    rows = torch.from_numpy(values).to(filled.dtype)
                    filled[line, start : start + len(values)] = rows
        given = any(request.gates is not None for request in batch)
        return forced.flatten(0, 1).to(self.device), gates.flatten(0, 1).to(self.device) if given else None


def over_keep_set(log_p: torch.Tensor, keep_set: KeepSet, begin: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What renormalising each token over its kept ids takes, and the entropy of what it leaves.

    Args:
        log_p: [rows, vocabulary] nats, of the response tokens from `begin` on.
        keep_set: Of the whole response.
        begin: Response position of the first row.

    Returns:
        Log of the probability of the kept ids, and the entropy of the distribution over them; float32 [rows], nats.
    """
    import torch

    count, device = len(log_p), log_p.device
    bounds = keep_set.offsets[begin : begin + count + 1]
    counts = torch.from_numpy(np.diff(bounds)).to(device)
    ids = torch.from_numpy(keep_set.ids[bounds[0] : bounds[-1]].astype(np.int64)).to(device)
    rows = torch.repeat_interleave(torch.arange(count, device=device), counts)
    values = log_p[rows, ids]
    # Shifted by the largest, so that a set of very improbable ids does not vanish.
    largest = torch.full((count,), -torch.inf, device=device).scatter_reduce(0, rows, values, "amax")
    mass = torch.zeros(count, device=device).index_add(0, rows, (values - largest[rows]).exp())
    log_mass = largest + mass.log()
    spread = torch.special.entr((values - log_mass[rows]).exp())
    return log_mass, torch.zeros(count, device=device).index_add(0, rows, spread)


def _length(request: ScoreRequest) -> int:
    return len(request.prompt_token_ids) + len(request.response_token_ids)


def _places(lengths: Sequence[int], *, packing: bool) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Line and first column of each sequence, and (lines, columns) of them all."""
    if packing:
        starts = np.cumsum([0, *lengths]).tolist()
        return [(0, start) for start in starts[:-1]], (1, starts[-1])
    return [(line, 0) for line in range(len(lengths))], (len(lengths), max(lengths))
