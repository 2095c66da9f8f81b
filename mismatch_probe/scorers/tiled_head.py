"""The output head in tiles: log-probabilities of given tokens without the logits of a whole vocabulary at once.

Plain: logits [tokens, vocabulary] in the dtype of the weights, a float32 copy, its log-softmax. Tiled: the hidden states go
through a slice of the head's rows at a time, and sums of exponentials are kept running, so that what is held is one tile.
A tile's logits are made as the plain ones are (the same dtype, the same order of what comes after the product); whether the
product itself has the same bits is tried when the model is loaded (`compare_with_plain`). From equal logits the
log-probability differs by what float32 leaves of log sum exp: below 1e-5 nats (measured: docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# A tile of float32 logits stays in a core's cache: rows x columns x 4 bytes.
_ROWS = 512
_COLUMNS = 4096
_PROBED_TOKENS = 48


@dataclass(frozen=True, slots=True)
class TiledHead:
    """What comes after the last hidden state.

    Attributes:
        weight: [vocabulary, hidden].
        bias: [vocabulary], or None.
        after: What the model does to logits, elementwise; None for nothing.
        float32: Whether hidden states are widened before the product.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    after: Callable[[torch.Tensor], torch.Tensor] | None
    float32: bool

    def logits(self, hidden: torch.Tensor, columns: slice = slice(None)) -> torch.Tensor:
        """Logits [rows, columns] in the dtype that the model gives them.

        Args:
            hidden: [rows, hidden].
            columns: Which of the vocabulary.
        """
        import torch

        bias = None if self.bias is None else self.bias[columns]
        made = torch.nn.functional.linear(
            hidden.float() if self.float32 else hidden, self.weight[columns], bias
        )
        return made if self.after is None else self.after(made)

    def read(
        self, hidden: torch.Tensor, targets: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability of each target and entropy of each row, float32 [rows], nats.

        Args:
            hidden: [rows, hidden].
            targets: int64 [rows].
            temperature: Logits are divided by it, in float32.
        """
        import torch

        if len(hidden) == 0:
            empty = torch.zeros(0, device=hidden.device)
            return empty, empty
        rows = [
            self._read(hidden[at : at + _ROWS], targets[at : at + _ROWS], temperature)
            for at in range(0, len(hidden), _ROWS)
        ]
        return torch.cat([row[0] for row in rows]), torch.cat([row[1] for row in rows])

    def _read(
        self, hidden: torch.Tensor, targets: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        count, device = len(hidden), hidden.device
        largest = torch.full((count,), -torch.inf, device=device)
        target = torch.zeros(count, device=device)
        # Sums over tiles in float64: there are few of them, and float32 would round at each.
        total = torch.zeros(count, dtype=torch.float64, device=device)
        moment = torch.zeros_like(total)
        for start in range(0, len(self.weight), _COLUMNS):
            tile = self.logits(hidden, slice(start, start + _COLUMNS)).float()
            if temperature != 1.0:
                tile = tile.div_(temperature)
            here = (targets >= start) & (targets < start + tile.shape[1])
            target[here] = tile[here, targets[here] - start]
            before, largest = largest, torch.maximum(largest, tile.amax(dim=-1))
            shift = (before - largest).double()
            scale = shift.exp()
            tile = tile.sub_(largest[:, None])
            exponential = tile.exp()
            product = torch.einsum("rc,rc->r", tile, exponential)
            if product.isnan().any():
                # A logit of -inf, as some models mask with: z exp(z) is 0 there.
                product = torch.where(exponential > 0, tile * exponential, 0.0).sum(-1)
            moment = scale * (moment + torch.where(total > 0, shift, 0.0) * total) + product.double()
            total = scale * total + exponential.sum(-1).double()
        log_total = total.log()
        logprobs = (target - largest).double() - log_total
        return logprobs.float(), (log_total - moment / total).float()


@contextmanager
def captured_hidden(head: Any) -> Iterator[list[torch.Tensor]]:
    """While open the head multiplies nothing: its input is put into the list, its output has one column.

    Args:
        head: The module that makes logits.
    """
    held: list[torch.Tensor] = []

    def keep(hidden: torch.Tensor) -> torch.Tensor:
        held.append(hidden)
        return hidden.new_zeros(*hidden.shape[:-1], 1)

    own = head.__dict__.get("forward")
    head.forward = keep
    try:
        yield held
    finally:
        if own is None:
            del head.forward
        else:
            head.forward = own


def find_head(model: Any, wide: torch.nn.Linear | None) -> TiledHead | str:
    """The head of a transformers model, or why its logits are not made by one matrix.

    Args:
        model: A causal LM.
        wide: The float32 head that stands in for its own, or None.
    """
    import torch

    head = wide if wide is not None else model.get_output_embeddings()
    if head is None:
        return "the model names no LM head"
    if not isinstance(head, torch.nn.Linear) or type(head.weight) is not torch.nn.Parameter:
        return f"the head is {type(head).__name__}, whose product is not taken apart"
    bias = None if head.bias is None else head.bias.detach()
    return TiledHead(head.weight.detach(), bias, _after(model), float32=wide is not None)


def compare_with_plain(
    head: TiledHead, logits: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], module: Any
) -> float:
    """Largest difference of the tiles' logits from the model's own, on a short made-up line; infinite if not comparable.

    Args:
        head: To be tried.
        logits: (ids, positions) to the model's own logits.
        module: The model's head.
    """
    import torch

    device = head.weight.device
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, len(head.weight), (1, _PROBED_TOKENS), generator=generator).to(device)
    positions = torch.arange(_PROBED_TOKENS, device=device)[None]
    with torch.inference_mode():
        plain = logits(ids, positions)[0]
        with captured_hidden(module) as held:
            logits(ids, positions)
        if len(held) != 1 or held[0].shape[:2] != ids.shape:
            return float("inf")
        tiles = [
            head.logits(held[0][0], slice(start, start + _COLUMNS))
            for start in range(0, len(head.weight), _COLUMNS)
        ]
        made = torch.cat(tiles, dim=-1)
        if made.shape != plain.shape or made.dtype != plain.dtype:
            return float("inf")
        return float(torch.nan_to_num((made.float() - plain.float()).abs(), nan=torch.inf).max())


def _after(model: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Scales and soft caps of the logits that transformers' models know; an unknown one fails the comparison."""
    import torch

    config = model.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
    divisor = getattr(config, "logits_scaling", None)
    names = ("logit_scale", "output_multiplier", "lm_head_multiplier")
    factor = next((value for name in names if (value := getattr(config, name, None)) is not None), None)
    if not cap and divisor is None and factor is None:
        return None

    def after(logits: torch.Tensor) -> torch.Tensor:
        if divisor is not None:
            logits = logits / divisor
        if factor is not None:
            logits = logits * factor
        if cap:
            logits = torch.tanh(logits / cap) * cap
        return logits

    return after
