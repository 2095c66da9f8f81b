"""The transformers scorer: the forward that trainers built on transformers run, on one process."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from mismatch_probe.config.options import read_options
from mismatch_probe.engines.layer_sites import HEAD
from mismatch_probe.errors import ConfigError, EngineUnavailableError
from mismatch_probe.scorers.forward import ScoringForward
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
from mismatch_probe.scorers.tiled_head import TiledHead, captured_hidden, compare_with_plain, find_head
from mismatch_probe.scorers.transformers_routing import RouterHooks, hook_routers, widen_routers

if TYPE_CHECKING:
    import torch

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
        autocast: Whether weights stay in float32 and the forward runs under `torch.autocast` to the configured dtype;
            norms and residuals are then wider than with weights of that dtype.
        top_p: Truncation of this side's own distribution, renormalised over what it keeps and the sampled token; 1 reads
            the whole distribution.
        top_k: Likewise, applied before `top_p` as samplers do; -1 keeps all.
        head: "plain" lets the model make all its logits and takes their float32 log-softmax, to the bit what trainers do;
            "tiles" makes a slice of the vocabulary at a time, so that memory does not grow with it, and differs by the
            rounding of log sum exp; "auto" takes tiles where the logits have the same bits on a short line tried when the
            model is loaded. What truncates a distribution is read plain.
        token_budget: Tokens of a forward, padding counted: as many sequences as fit, in the place of `batch_size`. One
            process also sorts them by length first; without a budget they stay in order.
    """

    batch_size: int = Field(8, ge=1)
    repeat_batch_size: int = Field(1, ge=1)
    attention: str = "sdpa"
    device: str = "auto"
    float32_head: bool = False
    float32_router: bool = False
    packing: bool = False
    autocast: bool = False
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(-1, ge=-1)
    head: Literal["auto", "plain", "tiles"] = "plain"
    token_budget: int | None = Field(None, ge=1)


class TransformersScorer:
    """A transformers causal LM behind the `Scorer` protocol.

    Notes:
        The log-probability is `log_softmax(logits.float() / temperature)`: the head runs in the weight dtype, the softmax
        in float32. That is what TRL and verl do; a head in float32 is another training side.
    """

    name: ClassVar[str] = "transformers"
    options_kind: ClassVar[type[TransformersOptions]] = TransformersOptions
    whole_head: ClassVar[bool] = True
    """Whether this process holds all of the head; a part of it cannot be read in tiles."""

    def __init__(self, spec: ScorerSpec) -> None:
        self._options = read_options(self.options_kind, spec.options, "train.options")
        torch, transformers = _import_transformers()
        device = self._options.device
        if device == "auto":
            accelerator = (
                torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
            )
            device = accelerator.type if accelerator is not None else "cpu"
        if self._options.attention.startswith("flash_attention") and torch.device(device).type == "cpu":
            raise EngineUnavailableError(
                f"{self._options.attention} has no kernel for the CPU",
                hint="set train.options.attention=sdpa",
            )
        self._device = torch.device(device)
        self._spec = spec
        self._version = str(transformers.__version__)
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                spec.model_path,
                dtype=getattr(torch, self._weights_dtype()),
                attn_implementation=self._options.attention,
                trust_remote_code=spec.trust_remote_code,
                local_files_only=True,
                **self._load_options(),
            )
        except (ImportError, ValueError, OSError) as error:
            first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise EngineUnavailableError(
                f"transformers cannot load {spec.model_path.name}: {first_line}",
                hint="check the checkpoint and train.options.*; the whole message is in the log",
            ) from error
        self._model = model.eval()
        wide = _widen_head(self._model, self._device) if self._options.float32_head else None
        if self._options.float32_router:
            widen_routers(self._model)
        if self._options.packing:
            _require_attention_layers(self._model)
        self._place(self._model)
        self._hooks: RouterHooks | None = None
        if spec.num_moe_layers:
            self._hooks = hook_routers(self._model, num_moe_layers=spec.num_moe_layers)
        self._scoring = ScoringForward(
            logits=self._forward,
            device=self._device,
            vocab_size=int(self._model.config.vocab_size),
            logit_bytes=4 if spec.dtype == "float32" or self._options.float32_head else 2,
            routers=self._hooks,
            num_moe_layers=spec.num_moe_layers,
            top_k=spec.top_k,
            packing=self._options.packing,
            top_p=self._options.top_p,
            keep_k=self._options.top_k,
            token_budget=self._options.token_budget,
        )
        self._head, self._head_difference = self._try_tiles(wide)
        if isinstance(self._head, TiledHead):
            self._scoring = replace(self._scoring, head=self._head, hidden=self._hidden)

    def _try_tiles(self, wide: torch.nn.Linear | None) -> tuple[TiledHead | str, float | None]:
        """The tiled head, or why it is not used; and how far its logits are from the model's own."""
        if self._options.head == "plain":
            return "asked for", None
        head: TiledHead | str = "this process does not hold all of the head"
        if self.whole_head:
            head = find_head(self._model, wide)
        difference = None
        if isinstance(head, TiledHead):
            difference = compare_with_plain(head, self._forward, self._model.get_output_embeddings())
            if not math.isfinite(difference):
                head, difference = "the model does something to its logits that the tiles do not know", None
            elif difference > 0 and self._options.head == "auto":
                head = "the product of a tile has other bits than the whole here"
        if self._options.head == "tiles" and not isinstance(head, TiledHead):
            raise ConfigError(f"the head cannot be read in tiles: {head}", hint="set train.options.head=auto")
        return head, difference

    @property
    def model(self) -> Any:
        """The loaded model, for an engine that also samples with it."""
        return self._model

    @property
    def hooks(self) -> RouterHooks | None:
        """Its hooked routers; None of a dense model."""
        return self._hooks

    @property
    def scoring(self) -> ScoringForward:
        """The forward, for who splits batches between processes."""
        return self._scoring

    def batch_size(self, batching: str) -> int:
        """Sequences of one forward of a batching."""
        return self._options.batch_size if batching == "forward" else self._options.repeat_batch_size

    def _weights_dtype(self) -> str:
        return "float32" if self._options.autocast else self._spec.dtype

    def _load_options(self) -> dict[str, Any]:
        """More keywords of `from_pretrained`."""
        return {}

    def _place(self, model: Any) -> None:
        """Puts the loaded model where it computes."""
        model.to(self._device)

    def facts(self) -> ScorerFacts:
        """What was loaded."""
        import torch

        return ScorerFacts(
            scorer=self.name,
            version=self._version,
            dtype=self._spec.dtype,
            device=str(self._device),
            attention=str(self._model.config._attn_implementation),  # noqa: SLF001 - the only place it is kept
            options=self._options.model_dump(),
            details={
                "experts": getattr(self._model.config, "_experts_implementation", None),
                "torch": torch.__version__,
                "weights_dtype": self._weights_dtype(),
                "num_threads": torch.get_num_threads(),
                "head": "tiles" if isinstance(self._head, TiledHead) else f"plain: {self._head}",
                "head_difference": self._head_difference,
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
        return self._scoring.score(
            requests,
            batch_size=self.batch_size(batching),
            temperature=temperature,
            capture_routing=capture_routing,
            progress=progress,
        )

    def read_layer_states(
        self, request: ScoreRequest, given: Mapping[str, npt.NDArray[np.float32]], *, temperature: float
    ) -> dict[str, States]:
        """See `LayerStateScorer.read_layer_states`."""
        import torch

        from mismatch_probe.scorers.transformers_layer_states import LayerStateReader

        # States are substituted in the model's own forward, head included.
        scoring = replace(self._scoring, head=None, hidden=None)
        reader = LayerStateReader(self._model)
        free = replace(request, routing=None, gates=None)
        substituted = reader.layers(lambda: scoring.score_batch([request], temperature, False), given)
        substituted |= reader.modules(lambda: scoring.score_batch([request], temperature, False), given)
        with torch.inference_mode():
            logits = reader.head_logits(given)
            if logits is not None:
                substituted[HEAD] = scoring.read(request, logits, temperature).logprobs
        return {
            "free": reader.free(lambda: scoring.score_batch([free], temperature, False)),
            "substituted": substituted,
        }

    def close(self) -> None:
        """Drops the model."""
        del self._model

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Logits [lines, width, vocabulary]; positions are -1 where a line is padding."""
        given = (
            {"position_ids": positions}
            if self._options.packing
            else {"attention_mask": (positions >= 0).long()}
        )
        with self._precision():
            output = self._model(input_ids=ids, use_cache=False, return_dict=True, **given)
        logits: torch.Tensor = output.logits
        return logits

    def _hidden(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """What the head reads, [lines, width, hidden]."""
        with captured_hidden(self._model.get_output_embeddings()) as held:
            self._forward(ids, positions)
        return held[0]

    def _precision(self) -> AbstractContextManager[Any]:
        if not self._options.autocast or self._spec.dtype == "float32":
            return nullcontext()
        import torch

        context: AbstractContextManager[Any] = torch.autocast(
            self._device.type, dtype=getattr(torch, self._spec.dtype)
        )
        return context


def transformers_capabilities() -> ScorerCapabilities:
    """What the installed transformers can give."""
    import importlib.util

    if importlib.util.find_spec("transformers") is None:
        reason = "transformers is not installed"
        return ScorerCapabilities(
            False, False, False, dict.fromkeys(("scoring", "routing", "replay"), reason)
        )
    return ScorerCapabilities(scoring=True, routing=True, replay=True, hidden_states=True, keep_sets=True)


def import_models() -> None:
    """Imports what loading a model with transformers needs."""
    _import_transformers()


@register_scorer(
    "transformers",
    summary="transformers forward, padded batches",
    capabilities=transformers_capabilities,
    warm=import_models,
)
def make_transformers_scorer(spec: ScorerSpec) -> TransformersScorer:
    """Loads the model."""
    return TransformersScorer(spec)


def _require_attention_layers(model: Any) -> None:
    """Refuses to pack for a model in which a mask does not keep sequences apart."""
    others = sorted(set(getattr(model.config, "layer_types", None) or ()).difference(_MASKED_LAYERS))
    if others:
        raise ConfigError(
            f"{type(model).__name__} has layers that carry state along a packed row: {', '.join(others)}",
            hint="leave out train.options.packing",
        )


def _widen_head(model: Any, device: torch.device) -> torch.nn.Linear:
    """Makes the LM head compute in float32; a copy, which is returned, so that tied embeddings stay what they are."""
    import copy

    import torch

    head = model.get_output_embeddings()
    if head is None:
        raise ConfigError("the model names no LM head", hint="leave out train.options.float32_head")
    wide = copy.deepcopy(head).to(device=device, dtype=torch.float32)
    head.forward = lambda hidden: wide(hidden.float())
    return wide


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
