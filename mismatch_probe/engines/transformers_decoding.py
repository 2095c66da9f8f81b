"""What rides along in transformers' `generate`: the draw with its log-probability, and the experts of every step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mismatch_probe.config.model import SamplingConfig
from mismatch_probe.errors import CaptureError
from mismatch_probe.trace.keep_sets import KeepSet

if TYPE_CHECKING:
    import torch

    from mismatch_probe.scorers.transformers_routing import RouterHooks


class DecodeRecorder:
    """A logits processor that draws the next token of each row itself, keeps its log-probability, and rules out the rest.

    The draw has to be made here: `generate` draws all rows from one generator and returns no log-probability of the
    distribution that it drew from.

    Args:
        sampling: Temperature and truncation of the distribution.
        seeds: One a row, for sampling.
        forced: Per row, the ids to take instead of drawing; a row that has run out repeats its last id.
        keep_sets: Whether to keep the ids that could have been drawn.
    """

    def __init__(
        self,
        sampling: SamplingConfig,
        *,
        seeds: Sequence[int] = (),
        forced: Sequence[Sequence[int]] | None = None,
        keep_sets: bool = False,
    ) -> None:
        self.forced = forced
        self.keep_sets = keep_sets
        self._sampling = sampling
        self._seeds = seeds
        self._generators: list[torch.Generator] = []
        self._ids: list[torch.Tensor] = []
        self._logprobs: list[torch.Tensor] = []
        self._support: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """One step of `generate`.

        Args:
            input_ids: int64 [rows, tokens so far].
            scores: float32 [rows, vocabulary], the model's logits.

        Returns:
            The same shape: 0 at the id that is taken, -inf elsewhere.
        """
        import torch

        log_p = torch.log_softmax(self._truncated(input_ids, scores.float() / self._sampling.temperature), -1)
        chosen = self._draw(log_p) if self.forced is None else self._given(self.forced, log_p.device)
        self._ids.append(chosen.cpu())
        self._logprobs.append(log_p.gather(-1, chosen[:, None])[:, 0].cpu())
        if self.keep_sets:
            self._support.append(log_p.isfinite().cpu())
        return torch.full_like(scores, float("-inf")).scatter(-1, chosen[:, None], 0.0)

    def response(self, row: int, stop_ids: Sequence[int]) -> tuple[list[int], npt.NDArray[np.float32]]:
        """What one row was given, up to its first stop id, or as long as its forced ids.

        Returns:
            The ids, and float32 [ids] log-probabilities in nats.
        """
        ids = [int(step[row]) for step in self._ids]
        length = next((at + 1 for at, token in enumerate(ids) if token in stop_ids), len(ids))
        if self.forced is not None:
            length = len(self.forced[row])
            if ids[:length] != list(self.forced[row]):
                raise CaptureError(f"row {row}: generate ended before all forced ids were fed")
        logprobs = np.array([float(step[row]) for step in self._logprobs[:length]], dtype=np.float32)
        return ids[:length], logprobs

    def keep_set(self, row: int, length: int) -> KeepSet:
        """The ids that could have been drawn at each of the first `length` steps of one row."""
        kept = [step[row].nonzero()[:, 0].numpy().astype(np.int32) for step in self._support[:length]]
        return KeepSet(np.concatenate(kept), np.cumsum([0, *map(len, kept)], dtype=np.int64))

    def _truncated(self, input_ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

        if self._sampling.top_k > 0:
            logits = TopKLogitsWarper(self._sampling.top_k)(input_ids, logits)
        if self._sampling.top_p < 1:
            logits = TopPLogitsWarper(self._sampling.top_p)(input_ids, logits)
        return logits

    def _draw(self, log_p: torch.Tensor) -> torch.Tensor:
        import torch

        if not self._generators:
            self._generators = [torch.Generator(log_p.device).manual_seed(seed) for seed in self._seeds]
        return torch.cat(
            [
                torch.multinomial(row.exp(), 1, generator=generator)
                for row, generator in zip(log_p, self._generators, strict=True)
            ]
        )

    def _given(self, forced: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
        import torch

        step = len(self._ids)
        return torch.tensor([row[min(step, len(row) - 1)] for row in forced], device=device)


class RouteRecorder:
    """Keeps the experts of every forward of one `generate`.

    Args:
        hooks: The hooked routers.
        prompt_lengths: Tokens of each row's prompt.
        width: Tokens that all prompts were left-padded to.
    """

    def __init__(self, hooks: RouterHooks, prompt_lengths: Sequence[int], width: int) -> None:
        self._hooks = hooks
        self._lengths = prompt_lengths
        self._width = width
        self._steps: list[tuple[npt.NDArray[np.int16], npt.NDArray[np.float32]]] = []

    @contextmanager
    def recording(self, model: torch.nn.Module) -> Iterator[None]:
        """Files what the routers do after each forward of `model`."""
        rows = len(self._lengths)

        def file_step(*_: Any) -> None:
            taken = self._hooks.take()
            self._steps.append(
                tuple(part.view(rows, -1, *part.shape[1:]).numpy() for part in (taken.ids, taken.gates))
            )

        handle = model.register_forward_hook(file_step)
        try:
            with self._hooks.forward(capture=True, forced=None):
                yield
        finally:
            handle.remove()

    def sequence(self, row: int, fed: int) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.float32]]:
        """Experts and gate weights of one row, [fed tokens, MoE layers, top_k] each.

        Args:
            row: Row of the batch.
            fed: Prompt + response - 1 of the row.

        Raises:
            CaptureError: Fewer forwards were seen than tokens were fed.
        """
        begin = self._width - self._lengths[row]
        joined = [np.concatenate([step[part][row] for step in self._steps]) for part in (0, 1)]
        experts, gates = (np.ascontiguousarray(array[begin : begin + fed]) for array in joined)
        if len(experts) != fed:
            raise CaptureError(f"row {row}: routes of {len(experts)} of {fed} fed tokens were captured")
        return experts, gates
