"""llama.cpp as a rollout engine: a GGUF file, sampled by llama.cpp's own sampler and scored in one pass.

The binding is cyllama, which comes as a wheel with llama.cpp in it. Ids go in and out; llama.cpp's tokenizer is not used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from mismatch_probe.assets.model_facts import read_model_facts
from mismatch_probe.config.model import SamplingConfig
from mismatch_probe.config.options import read_options
from mismatch_probe.engines.gguf_file import gguf_differences, read_gguf
from mismatch_probe.engines.protocol import (
    EngineCapabilities,
    EngineFacts,
    EngineSpec,
    FixedSequence,
    ProgressCallback,
    PromptRequest,
    SampledSequence,
)
from mismatch_probe.engines.registry import register_engine
from mismatch_probe.errors import CaptureError, ConfigError

_INSTALL = "pip install 'mismatch-probe[llama-cpp]'"
_ROUTING_REASON = "llama.cpp does not hand out the experts that it chose"
_CACHE_TYPES = {"f32": 0, "f16": 1, "bf16": 30}
_FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
# llama.cpp rounds the cells of a sequence up to this.
_CELLS = 256


class LlamaCppOptions(BaseModel):
    """`rollout.options.*` of the llama-cpp engine.

    Attributes:
        gguf: Path of the GGUF file. The checkpoint of the pair says what it should be a copy of.
        parallel: Sequences decoded at once; a finished one makes room for the next.
        batch_tokens: Tokens of one `llama_decode`.
        threads: None takes all cores that this process may use.
        gpu_layers: Layers on an accelerator; -1 is all where there is one.
        cache_dtype: Of keys and values. llama.cpp's default is f16.
        flash_attention: Fused attention.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    gguf: str
    parallel: int = Field(8, ge=1, le=256)
    batch_tokens: int = Field(512, ge=16)
    threads: int | None = Field(default=None, ge=1)
    gpu_layers: int = Field(-1, ge=-1)
    cache_dtype: Literal["f32", "f16", "bf16"] = "f16"
    flash_attention: Literal["auto", "on", "off"] = "auto"


@dataclass
class _Slot:
    """One sequence that is being decoded."""

    index: int
    pending: list[int]
    position: int = 0
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class LlamaCppEngine:
    """A GGUF file behind the `RolloutEngine` protocol.

    Notes:
        Forced ids take the way of sampled ones, through the same batches. A response draws from llama.cpp's sampler chain
        (temperature, top-k, top-p, then a draw seeded by its request); its log-probability is read from the logits that
        the chain drew from.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self._options = read_options(LlamaCppOptions, spec.options, "rollout.options")
        path = Path(self._options.gguf)
        self._file = read_gguf(path)
        self._stop_ids = read_model_facts(spec.model_path).eos_token_ids
        self._cells = -(-spec.max_model_len // _CELLS) * _CELLS
        self._model, self._context, self._batch = self._load(path)

    def _load(self, path: Path) -> tuple[Any, Any, Any]:
        from cyllama.llama import llama_cpp

        llama_cpp.disable_logging()

        class Model(llama_cpp.LlamaModel):  # type: ignore[misc]
            # cyllama 0.2.18 asks the model for this in get_logits_ith, and only its vocabulary has it.
            @property
            def n_vocab(self) -> int:
                return int(self.get_vocab().n_vocab)

        asked = llama_cpp.LlamaModelParams()
        asked.n_gpu_layers = self._options.gpu_layers
        try:
            model = Model(str(path), asked)
        except ValueError as error:
            raise ConfigError(
                f"llama.cpp cannot load {path.name}", hint="is its architecture supported?"
            ) from error
        wanted = llama_cpp.LlamaContextParams()
        wanted.n_seq_max = self._options.parallel
        wanted.n_ctx = self._cells * self._options.parallel
        wanted.n_batch = wanted.n_ubatch = self._options.batch_tokens
        wanted.type_k = wanted.type_v = _CACHE_TYPES[self._options.cache_dtype]
        wanted.flash_attn_type = _FLASH_ATTENTION[self._options.flash_attention]
        wanted.n_threads = wanted.n_threads_batch = self._threads()
        context = llama_cpp.LlamaContext(model, wanted)
        batch = llama_cpp.LlamaBatch(
            n_tokens=self._options.batch_tokens, embd=0, n_seq_max=self._options.parallel
        )
        return model, context, batch

    def facts(self) -> EngineFacts:
        """What was loaded."""
        return EngineFacts(
            engine="llama-cpp",
            version=f"cyllama {version('cyllama')}",
            dtype=self._file.main_type,
            device="cpu" if self._on_cpu() else "accelerator",
            logprobs_mode="processed_logprobs",
            options={**self._options.model_dump(), "gguf": Path(self._options.gguf).name},
            details={
                "architecture": self._file.architecture,
                "tensor_types": self._file.tensor_types,
                "kv_cache": self._options.cache_dtype,
                "threads": self._threads(),
            },
        )

    def sample(
        self, requests: Sequence[PromptRequest], sampling: SamplingConfig, progress: ProgressCallback
    ) -> list[SampledSequence]:
        """See `RolloutEngine.sample`."""
        chains = [_chain(sampling, request.seed) for request in requests]

        def draw(slot: _Slot, output: int, logits: npt.NDArray[np.float64]) -> int:
            return int(chains[slot.index].sample(self._context, output))

        def ended(slot: _Slot) -> bool:
            return slot.ids[-1] in self._stop_ids or len(slot.ids) == sampling.max_tokens

        prompts = [list(request.prompt_token_ids) for request in requests]
        done = self._decode(prompts, draw, ended, sampling, progress)
        return [
            SampledSequence(
                sequence_id=request.sequence_id,
                response_token_ids=slot.ids,
                logprobs=np.array(slot.logprobs, dtype=np.float32),
                finish_reason="stop" if slot.ids[-1] in self._stop_ids else "length",
                routing=None,
            )
            for request, slot in zip(requests, done, strict=True)
        ]

    def force_decode(
        self, sequences: Sequence[FixedSequence], sampling: SamplingConfig, progress: ProgressCallback
    ) -> list[npt.NDArray[np.float32]]:
        """See `RolloutEngine.force_decode`."""
        responses = [list(sequence.response_token_ids) for sequence in sequences]

        def given(slot: _Slot, output: int, logits: npt.NDArray[np.float64]) -> int:
            return responses[slot.index][len(slot.ids)]

        prompts = [list(sequence.prompt_token_ids) for sequence in sequences]
        done = self._decode(
            prompts, given, lambda slot: len(slot.ids) == len(responses[slot.index]), sampling, progress
        )
        return [np.array(slot.logprobs, dtype=np.float32) for slot in done]

    def score_prefill(
        self, sequences: Sequence[FixedSequence], sampling: SamplingConfig, progress: ProgressCallback
    ) -> list[npt.NDArray[np.float32]]:
        """See `RolloutEngine.score_prefill`; one sequence at a time, in pieces of `batch_tokens`."""
        scored = []
        for sequence in sequences:
            self._context.kv_cache_clear()
            ids = [*sequence.prompt_token_ids, *sequence.response_token_ids]
            first = len(sequence.prompt_token_ids) - 1
            values: list[float] = []
            for begin in range(0, len(ids) - 1, self._options.batch_tokens):
                piece = ids[begin : min(begin + self._options.batch_tokens, len(ids) - 1)]
                self._batch.clear()
                for offset, token in enumerate(piece):
                    self._batch.add(token, begin + offset, [0], begin + offset >= first)
                self._run()
                for offset in range(len(piece)):
                    if begin + offset >= first:
                        values.append(
                            sampled_logprob(self._logits(offset), ids[begin + offset + 1], sampling)
                        )
            scored.append(np.array(values, dtype=np.float32))
            progress(1, 0)
        return scored

    def close(self) -> None:
        """Frees context and model."""
        self._batch.close()
        self._context.close()
        self._model.close()

    def _decode(
        self,
        prompts: list[list[int]],
        choose: Callable[[_Slot, int, npt.NDArray[np.float64]], int],
        ended: Callable[[_Slot], bool],
        sampling: SamplingConfig,
        progress: ProgressCallback,
    ) -> list[_Slot]:
        """Runs all prompts through `parallel` rows of the cache until `ended` says so."""
        self._context.kv_cache_clear()
        slots = [_Slot(index, list(prompt)) for index, prompt in enumerate(prompts)]
        waiting = list(reversed(slots))
        rows: list[_Slot | None] = [None] * self._options.parallel
        while waiting or any(rows):
            for row, held in enumerate(rows):
                if held is None and waiting:
                    rows[row] = waiting.pop()
            for row, slot, output in self._step(rows):
                logits = self._logits(output)
                token = choose(slot, output, logits)
                slot.ids.append(token)
                slot.logprobs.append(sampled_logprob(logits, token, sampling))
                slot.pending = [token]
                if ended(slot):
                    rows[row] = None
                    self._context.memory_seq_rm(row, -1, -1)
                    progress(1, 0)
        return slots

    def _step(self, rows: list[_Slot | None]) -> list[tuple[int, _Slot, int]]:
        """One `llama_decode`; returns (row, slot, output) of the rows whose next token can be chosen."""
        self._batch.clear()
        outputs: list[tuple[int, _Slot, int]] = []
        added = 0
        # Rows that only need one more token first: a long prompt must not hold them up.
        for row, slot in sorted(enumerate(rows), key=lambda item: len(item[1].pending) if item[1] else 0):
            if slot is None:
                continue
            piece = slot.pending[: self._options.batch_tokens - added]
            whole = len(piece) == len(slot.pending)
            for offset, token in enumerate(piece):
                self._batch.add(token, slot.position + offset, [row], whole and offset == len(piece) - 1)
            added += len(piece)
            slot.position += len(piece)
            slot.pending = slot.pending[len(piece) :]
            if piece and whole:
                outputs.append((row, slot, added - 1))
        self._run()
        return outputs

    def _run(self) -> None:
        try:
            self._context.decode(self._batch)
        except ValueError as error:
            raise CaptureError(
                "llama.cpp found no room for a batch", hint="lower rollout.options.parallel"
            ) from error

    def _logits(self, output: int) -> npt.NDArray[np.float64]:
        return np.array(self._context.get_logits_ith(output), dtype=np.float64)

    def _threads(self) -> int:
        if self._options.threads is not None:
            return self._options.threads
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def _on_cpu(self) -> bool:
        from cyllama.llama import llama_cpp

        return self._options.gpu_layers == 0 or all(
            "CPU" in str(device).upper() for device in llama_cpp.ggml_backend_dev_info()
        )


def _chain(sampling: SamplingConfig, seed: int) -> Any:
    from cyllama.llama import llama_cpp

    chain = llama_cpp.LlamaSampler(llama_cpp.LlamaSamplerChainParams())
    chain.add_temp(sampling.temperature)
    if sampling.top_k > 0:
        chain.add_top_k(sampling.top_k)
    if sampling.top_p < 1:
        chain.add_top_p(sampling.top_p, 1)
    chain.add_dist(seed)
    return chain


def sampled_logprob(logits: npt.NDArray[np.float64], token: int, sampling: SamplingConfig) -> float:
    """Log-probability of a token under temperature, then top-k, then top-p, in nats.

    Args:
        logits: float64 [vocabulary].
        token: The id that was drawn. It belongs to the support whatever rounding says of a tie at the edge.
        sampling: The distribution.
    """
    scaled = logits / sampling.temperature
    order = np.argsort(-scaled, kind="stable")
    if sampling.top_k > 0:
        order = order[: sampling.top_k]
    if sampling.top_p < 1:
        mass = np.cumsum(np.exp(scaled[order] - np.logaddexp.reduce(scaled[order])))
        order = order[: int(np.searchsorted(mass, sampling.top_p)) + 1]
    support = order if token in order else np.append(order, token)
    return float(scaled[token] - np.logaddexp.reduce(scaled[support]))


def llama_cpp_capabilities() -> EngineCapabilities:
    """What the installed binding can give."""
    try:
        version("cyllama")
        missing = find_spec("gguf") is None
    except PackageNotFoundError:
        missing = True
    if missing:
        names = ("sampling", "prefill_scoring", "forced_decode", "routing", "weight_reload", "hidden_states")
        reason = f"llama.cpp's binding is not installed: {_INSTALL}"
        return EngineCapabilities(False, False, False, False, dict.fromkeys(names, reason))
    return EngineCapabilities(
        sampling=True,
        prefill_scoring=True,
        forced_decode=True,
        routing=False,
        reason={
            "routing": _ROUTING_REASON,
            "weight_reload": "llama.cpp reads its weights from a file, once",
            "keep_sets": "not recorded",
            "hidden_states": "llama.cpp hands out logits and pooled embeddings only",
        },
    )


def _differences(checkpoint: Path, options: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    return gguf_differences(Path(read_options(LlamaCppOptions, options, "rollout.options").gguf), checkpoint)


@register_engine(
    "llama-cpp",
    summary="llama.cpp on a GGUF file, in process",
    capabilities=llama_cpp_capabilities,
    differences=_differences,
)
def make_llama_cpp_engine(spec: EngineSpec) -> LlamaCppEngine:
    """Loads the GGUF file."""
    return LlamaCppEngine(spec)
