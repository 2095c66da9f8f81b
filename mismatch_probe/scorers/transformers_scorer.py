"""The transformers scorer: the forward that trainers built on transformers run, on one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from mismatch_probe.config.options import read_options
from mismatch_probe.engines.layer_sites import HEAD
from mismatch_probe.errors import ConfigError, EngineUnavailableError
from mismatch_probe.scorers.layer_states import States
from mismatch_probe.scorers.protocol import (
    ProgressCallback,
    ReplayOptions,
    ScoredSequence,
    ScorerCapabilities,
    ScoreRequest,
    ScorerFacts,
    ScorerSpec,
)
from mismatch_probe.scorers.registry import register_scorer
from mismatch_probe.scorers.transformers_routing import RouterHooks, hook_routers, widen_routers

if TYPE_CHECKING:
    import torch

# Logits of one batch, and the float32 copy of one block of them, stay below these.
_MAX_LOGIT_BYTES = 1 << 30
_MAX_BLOCK_BYTES = 1 << 28
# A packed row may need a mask of all its tokens against all.
_MAX_PACKED_TOKENS = 1 << 14
# Layers that see other tokens through a mask alone; state-space and linear ones would carry state across a packed row.
_MASKED_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


class TransformersOptions(ReplayOptions):
    """`train.options.*` of the transformers scorer.

    Attributes:
        batch_size: Sequences per forward of `train/forward`, right-padded to the longest, or packed.
        repeat_batch_size: Sequences per forward of `train/repeat`; another number than `batch_size` measures the noise
            floor, the same number is the zero control.
        attention: Attention implementation.
        device: "auto" takes an accelerator if there is one.
        float32_head: Whether the LM head multiplies in float32, on the hidden states that the model gives.
        float32_router: Whether routers multiply and choose in float32; gate weights are handed on in the weight dtype.
        packing: Whether the sequences of a forward follow each other in one row without padding, as trainers pack them;
            positions restart at every sequence, from which transformers makes the mask that keeps them apart.
    """

    batch_size: int = Field(8, ge=1)
    repeat_batch_size: int = Field(1, ge=1)
    attention: str = "sdpa"
    device: str = "auto"
    float32_head: bool = False
    float32_router: bool = False
    packing: bool = False


class TransformersScorer:
    """A transformers causal LM behind the `Scorer` protocol.

    Notes:
        The log-probability is `log_softmax(logits.float() / temperature)`: the head runs in the weight dtype, the softmax
        in float32. That is what TRL and verl do; a head in float32 is another training side.
    """

    def __init__(self, spec: ScorerSpec) -> None:
        self._options = read_options(TransformersOptions, spec.options, "train.options")
        torch, transformers = _import_transformers()
        device = self._options.device
        if device == "auto":
            accelerator = (
                torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
            )
            device = accelerator.type if accelerator is not None else "cpu"
        self._device = torch.device(device)
        self._spec = spec
        self._version = str(transformers.__version__)
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                spec.model_path,
                dtype=getattr(torch, spec.dtype),
                attn_implementation=self._options.attention,
                trust_remote_code=spec.trust_remote_code,
                local_files_only=True,
            )
        except (ImportError, ValueError, OSError) as error:
            first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise EngineUnavailableError(
                f"transformers cannot load {spec.model_path.name}: {first_line}",
                hint="check the checkpoint and train.options.*; the whole message is in the log",
            ) from error
        self._model = model.to(self._device).eval()
        if self._options.float32_head:
            _widen_head(self._model)
        if self._options.float32_router:
            widen_routers(self._model)
        if self._options.packing:
            _require_attention_layers(self._model)
        self._hooks: RouterHooks | None = None
        if spec.num_moe_layers:
            self._hooks = hook_routers(self._model, num_moe_layers=spec.num_moe_layers)

    @property
    def model(self) -> Any:
        """The loaded model, for an engine that also samples with it."""
        return self._model

    @property
    def hooks(self) -> RouterHooks | None:
        """Its hooked routers; None of a dense model."""
        return self._hooks

    def facts(self) -> ScorerFacts:
        """What was loaded."""
        import torch

        return ScorerFacts(
            scorer="transformers",
            version=self._version,
            dtype=self._spec.dtype,
            device=str(self._device),
            attention=str(self._model.config._attn_implementation),  # noqa: SLF001 - the only place it is kept
            options=self._options.model_dump(),
            details={
                "experts": getattr(self._model.config, "_experts_implementation", None),
                "torch": torch.__version__,
                "num_threads": torch.get_num_threads(),
            },
        )

    def score(
        self,
        requests: Sequence[ScoreRequest],
        *,
        temperature: float,
        batching: str,
        capture_routing: bool,
        progress: ProgressCallback,
    ) -> list[ScoredSequence]:
        """See `Scorer.score`."""
        if (
            capture_routing or any(request.routing is not None for request in requests)
        ) and self._hooks is None:
            raise ConfigError("this model has no experts to capture or replay", hint="leave out train/replay")
        size = self._options.batch_size if batching == "forward" else self._options.repeat_batch_size
        scored: list[ScoredSequence] = []
        for batch in self._batches(requests, size):
            results = self._score_batch(batch, temperature, capture_routing)
            scored += results
            progress(len(results), sum(len(result.logprobs) for result in results))
        return scored

    def read_layer_states(
        self, request: ScoreRequest, given: Mapping[str, npt.NDArray[np.float32]], *, temperature: float
    ) -> dict[str, States]:
        """See `LayerStateScorer.read_layer_states`."""
        import torch

        from mismatch_probe.scorers.transformers_layer_states import LayerStateReader

        reader = LayerStateReader(self._model)
        free = replace(request, routing=None, gates=None)
        substituted = reader.layers(lambda: self._score_batch([request], temperature, False), given)
        substituted |= reader.modules(lambda: self._score_batch([request], temperature, False), given)
        with torch.inference_mode():
            logits = reader.head_logits(given)
            if logits is not None:
                substituted[HEAD] = self._read(request, logits, temperature).logprobs
        return {
            "free": reader.free(lambda: self._score_batch([free], temperature, False)),
            "substituted": substituted,
        }

    def close(self) -> None:
        """Drops the model."""
        del self._model

    def _batches(self, requests: Sequence[ScoreRequest], size: int) -> list[list[ScoreRequest]]:
        """Splits in order; a batch also ends where its logits, or the mask of a packed row, would not fit."""
        token_bytes = self._model.config.vocab_size * (
            4 if self._spec.dtype == "float32" or self._options.float32_head else 2
        )
        budget = max(1, _MAX_LOGIT_BYTES // token_bytes)
        batches: list[list[ScoreRequest]] = []
        longest = 0
        for request in requests:
            length = len(request.prompt_token_ids) + len(request.response_token_ids)
            longest = max(longest, length)
            tokens = (len(batches[-1]) + 1) * longest if batches else 0
            full = tokens > budget or (self._options.packing and tokens > _MAX_PACKED_TOKENS)
            if not batches or len(batches[-1]) == size or full:
                batches.append([])
                longest = length
            batches[-1].append(request)
        return batches

    def _score_batch(
        self, batch: Sequence[ScoreRequest], temperature: float, capture_routing: bool
    ) -> list[ScoredSequence]:
        import torch

        rows = [[*request.prompt_token_ids, *request.response_token_ids] for request in batch]
        places, shape = _places([len(row) for row in rows], packing=self._options.packing)
        ids = torch.zeros(shape, dtype=torch.long)
        positions = torch.full(shape, -1, dtype=torch.long)
        for (line, start), row in zip(places, rows, strict=True):
            ids[line, start : start + len(row)] = torch.tensor(row)
            positions[line, start : start + len(row)] = torch.arange(len(row))
        routes = None
        with torch.inference_mode():
            if self._hooks is None:
                logits = self._forward(ids, positions)
            else:
                forced, gates = self._forced_rows(batch, places, shape)
                with self._hooks.forward(capture=capture_routing, forced=forced, forced_gates=gates):
                    logits = self._forward(ids, positions)
                if capture_routing:
                    routes = self._hooks.take()
            scored = [
                self._read(request, logits[line, start:], temperature)
                for request, (line, start) in zip(batch, places, strict=True)
            ]
        if routes is None:
            return scored
        captured = [
            tensor.view(*shape, self._spec.num_moe_layers, *tensor.shape[2:]).numpy()
            for tensor in (routes.ids, routes.gates, routes.margins)
        ]
        return [
            replace(sequence, routing=kept[0], gates=kept[1], margins=kept[2])
            for sequence, row, (line, start) in zip(scored, rows, places, strict=True)
            # The last token is fed too, but predicts nothing that was sampled.
            for end in [start + len(row) - 1]
            for kept in [[np.ascontiguousarray(array[line, start:end]) for array in captured]]
        ]

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Logits [lines, width, vocabulary]; positions are -1 where a line is padding."""
        positions = positions.to(self._device)
        given = (
            {"position_ids": positions}
            if self._options.packing
            else {"attention_mask": (positions >= 0).long()}
        )
        output = self._model(input_ids=ids.to(self._device), use_cache=False, return_dict=True, **given)
        logits: torch.Tensor = output.logits
        return logits

    def _forced_rows(
        self, batch: Sequence[ScoreRequest], places: Sequence[tuple[int, int]], shape: tuple[int, int]
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Experts [rows, layers, top_k] to force, -1 where none, and their weights, NaN where none."""
        import torch

        if all(request.routing is None for request in batch):
            return None, None
        forced = torch.full((*shape, self._spec.num_moe_layers, self._spec.top_k), -1, dtype=torch.long)
        gates = torch.full(forced.shape, float("nan"))
        for request, (line, start) in zip(batch, places, strict=True):
            for values, filled in ((request.routing, forced), (request.gates, gates)):
                if values is not None:
                    rows = torch.from_numpy(values).to(filled.dtype)
                    filled[line, start : start + len(values)] = rows
        given = any(request.gates is not None for request in batch)
        return forced.flatten(0, 1).to(self._device), gates.flatten(0, 1).to(self._device) if given else None

    def _read(
        self,
        request: ScoreRequest,
        logits: torch.Tensor,
        temperature: float,
    ) -> ScoredSequence:
        """Reads one row [width, vocabulary] of logits, block by block so that no float32 copy of it all is made."""
        import torch

        begin, count = len(request.prompt_token_ids), len(request.response_token_ids)
        targets = torch.tensor(list(request.response_token_ids), dtype=torch.long, device=logits.device)
        # The logits at position i predict token i + 1.
        logits = logits[begin - 1 : begin - 1 + count]
        block = max(1, _MAX_BLOCK_BYTES // (4 * logits.shape[-1]))
        logprobs, entropy = [], []
        for start in range(0, count, block):
            log_p = torch.log_softmax(logits[start : start + block].float() / temperature, dim=-1)
            logprobs.append(log_p.gather(-1, targets[start : start + block, None])[:, 0])
            entropy.append(torch.special.entr(log_p.exp()).sum(-1))
        return ScoredSequence(
            sequence_id=request.sequence_id,
            logprobs=torch.cat(logprobs).cpu().numpy() if count else np.zeros(0, np.float32),
            entropy=torch.cat(entropy).cpu().numpy() if count else np.zeros(0, np.float32),
            routing=None,
        )


def transformers_capabilities() -> ScorerCapabilities:
    """What the installed transformers can give."""
    import importlib.util

    if importlib.util.find_spec("transformers") is None:
        reason = "transformers is not installed"
        return ScorerCapabilities(
            False, False, False, dict.fromkeys(("scoring", "routing", "replay"), reason)
        )
    return ScorerCapabilities(scoring=True, routing=True, replay=True)


@register_scorer(
    "transformers", summary="transformers forward, padded batches", capabilities=transformers_capabilities
)
def make_transformers_scorer(spec: ScorerSpec) -> TransformersScorer:
    """Loads the model."""
    return TransformersScorer(spec)


def _places(lengths: Sequence[int], *, packing: bool) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Line and first column of each sequence, and (lines, columns) of them all."""
    if packing:
        starts = np.cumsum([0, *lengths]).tolist()
        return [(0, start) for start in starts[:-1]], (1, starts[-1])
    return [(line, 0) for line in range(len(lengths))], (len(lengths), max(lengths))


def _require_attention_layers(model: Any) -> None:
    """Refuses to pack for a model in which a mask does not keep sequences apart."""
    others = sorted(set(getattr(model.config, "layer_types", None) or ()).difference(_MASKED_LAYERS))
    if others:
        raise ConfigError(
            f"{type(model).__name__} has layers that carry state along a packed row: {', '.join(others)}",
            hint="leave out train.options.packing",
        )


def _widen_head(model: Any) -> None:
    """Makes the LM head compute in float32; a copy, so that tied embeddings stay what they are."""
    import copy

    head = model.get_output_embeddings()
    if head is None:
        raise ConfigError("the model names no LM head", hint="leave out train.options.float32_head")
    wide = copy.deepcopy(head).float()
    head.forward = lambda hidden: wide(hidden.float())


def _import_transformers() -> tuple[Any, Any]:
    from mismatch_probe.preflight.environment import explain_import_failure

    try:
        import torch
        import transformers

        # The lazy module imports only here what may be broken in an environment.
        _ = transformers.AutoModelForCausalLM
    except Exception as error:
        raise explain_import_failure("transformers", error) from error
    return torch, transformers
