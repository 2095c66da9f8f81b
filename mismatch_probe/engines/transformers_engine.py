"""transformers as a rollout engine: `generate` with its cache samples, the scorer's own forward reads.

It is slow, and it is the control: against the transformers scorer with the same batch size the prefill reading has to be
equal bit for bit, so that whatever is measured of another engine is that engine's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from mismatch_probe.config.model import SamplingConfig
from mismatch_probe.config.options import read_options
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
from mismatch_probe.engines.transformers_decoding import DecodeRecorder, RouteRecorder
from mismatch_probe.errors import CaptureError
from mismatch_probe.scorers.protocol import ScoreRequest, ScorerSpec
from mismatch_probe.scorers.transformers_scorer import (
    TransformersScorer,
    import_models,
    transformers_capabilities,
)

if TYPE_CHECKING:
    import torch

_PREFILL_REASON = "transformers reads whole distributions, as a trainer does"
_RELOAD_REASON = "generate runs the model object itself: there is nothing to hand weights over to"


class TransformersEngineOptions(BaseModel):
    """`rollout.options.*` of the transformers engine.

    Attributes:
        batch_size: Sequences per `generate`, left-padded to the longest prompt; and per prefill forward, right-padded,
            where the scorer's default of the same size makes both forwards the same.
        attention: Attention implementation.
        device: "auto" takes an accelerator if there is one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch_size: int = Field(8, ge=1)
    attention: str = "sdpa"
    device: str = "auto"


class TransformersEngine:
    """A transformers causal LM behind the `RolloutEngine` protocol.

    Notes:
        Every row draws from a generator of its own, seeded by its request, so a response depends on other rows only
        through rounding. Forced ids take the way of sampled ones: the same processor, the same steps, another choice.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._options = read_options(TransformersEngineOptions, spec.options, "rollout.options")
        options = self._options.model_dump()
        self._scorer = TransformersScorer(
            ScorerSpec(
                model_path=spec.model_path,
                dtype=spec.dtype,
                num_moe_layers=spec.num_moe_layers if spec.routing else 0,
                top_k=spec.top_k,
                options=options,
                trust_remote_code=spec.trust_remote_code,
                max_sequence_len=spec.max_model_len,
            )
        )

    def facts(self) -> EngineFacts:
        """What was loaded."""
        facts = self._scorer.facts()
        return EngineFacts(
            engine="transformers",
            version=facts.version,
            dtype=facts.dtype,
            device=facts.device,
            logprobs_mode="processed_logprobs",
            options=self._options.model_dump(),
            details={
                **facts.details,
                "attention": facts.attention,
                "routing_source": "router hooks" if self._spec.routing else None,
                "routing_ordered": True if self._spec.routing else None,
            },
        )

    def sample(
        self, requests: Sequence[PromptRequest], sampling: SamplingConfig, progress: ProgressCallback
    ) -> list[SampledSequence]:
        """See `RolloutEngine.sample`."""
        sequences: list[SampledSequence] = []
        for batch in self._batches(requests):
            recorder = DecodeRecorder(
                sampling, seeds=[request.seed for request in batch], keep_sets=self._spec.keep_sets
            )
            prompts = [list(request.prompt_token_ids) for request in batch]
            routes = self._generate(prompts, recorder, sampling.max_tokens)
            for row, request in enumerate(batch):
                ids, logprobs = recorder.response(row, self._stop_ids())
                stopped = ids[-1] in self._stop_ids()
                fed = len(request.prompt_token_ids) + len(ids) - 1
                experts, gates = (None, None) if routes is None else routes.sequence(row, fed)
                sequences.append(
                    SampledSequence(
                        sequence_id=request.sequence_id,
                        response_token_ids=ids,
                        logprobs=logprobs,
                        finish_reason="stop" if stopped else "length",
                        routing=experts,
                        gates=gates,
                        keep_set=recorder.keep_set(row, len(ids)) if self._spec.keep_sets else None,
                    )
                )
            progress(len(batch), 0)
        return sequences

    def score_prefill(
        self, sequences: Sequence[FixedSequence], sampling: SamplingConfig, progress: ProgressCallback
    ) -> list[npt.NDArray[np.float32]]:
        """See `RolloutEngine.score_prefill`; truncated support is refused, since the scorer's forward reads the whole."""
        if sampling.top_p < 1 or sampling.top_k > 0:
            raise CaptureError(_PREFILL_REASON, hint="leave out the leg rollout/prefill")
        requests = [ScoreRequest(s.sequence_id, s.prompt_token_ids, s.response_token_ids) for s in sequences]
        scored = self._scorer.score(
            requests,
            temperature=sampling.temperature,
            batching="forward",
            capture_routing=False,
            progress=lambda done, _: progress(done, 0),
        )
        return [sequence.logprobs for sequence in scored]

    def force_decode(
        self, sequences: Sequence[FixedSequence], sampling: SamplingConfig, progress: ProgressCallback
    ) -> list[npt.NDArray[np.float32]]:
        """See `RolloutEngine.force_decode`."""
        scored: list[npt.NDArray[np.float32]] = []
        for batch in self._batches(sequences):
            responses = [list(sequence.response_token_ids) for sequence in batch]
            recorder = DecodeRecorder(sampling, forced=responses)
            prompts = [list(sequence.prompt_token_ids) for sequence in batch]
            self._generate(prompts, recorder, max(map(len, responses)))
            scored += [recorder.response(row, ())[1] for row in range(len(batch))]
            progress(len(batch), 0)
        return scored

    def close(self) -> None:
        """Drops the model."""
        self._scorer.close()

    def _batches(self, items: Sequence[Any]) -> list[Sequence[Any]]:
        size = self._options.batch_size
        return [items[begin : begin + size] for begin in range(0, len(items), size)]

    def _stop_ids(self) -> tuple[int, ...]:
        model = self._scorer.model
        declared = model.generation_config.eos_token_id
        if declared is None:
            declared = model.config.get_text_config().eos_token_id
        if declared is None:
            return ()
        return tuple(declared) if isinstance(declared, list | tuple) else (int(declared),)

    def _generate(
        self, prompts: list[list[int]], recorder: DecodeRecorder, max_tokens: int
    ) -> RouteRecorder | None:
        """Runs `generate` over left-padded prompts; what was drawn is in the recorder."""
        import torch
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        width = max(map(len, prompts))
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros(len(prompts), width, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        model = self._scorer.model
        stop_ids = () if recorder.forced is not None else self._stop_ids()
        # A configuration of its own: penalties or a temperature that a checkpoint brings along would be applied
        # on top of what was asked for.
        held, model.generation_config = model.generation_config, GenerationConfig()
        asked = GenerationConfig(
            do_sample=False,
            max_new_tokens=max_tokens,
            pad_token_id=0,
            use_cache=True,
            renormalize_logits=False,
        )
        routes = None
        try:
            with torch.inference_mode():
                arguments = {
                    "input_ids": ids.to(model.device),
                    "attention_mask": mask.to(model.device),
                    "generation_config": asked,
                    "logits_processor": LogitsProcessorList([recorder]),
                    "stopping_criteria": StoppingCriteriaList([_AllStopped(stop_ids, width)]),
                }
                hooks = self._scorer.hooks
                if hooks is not None and recorder.forced is None:
                    routes = RouteRecorder(hooks, [len(prompt) for prompt in prompts], width)
                    with routes.recording(model):
                        model.generate(**arguments)
                else:
                    model.generate(**arguments)
        finally:
            model.generation_config = held
        return routes


class _AllStopped:
    """Marks the rows that hold a stop id after the prompt; `generate` ends when all rows are marked."""

    def __init__(self, stop_ids: tuple[int, ...], prompt_width: int) -> None:
        self._stop_ids = stop_ids
        self._width = prompt_width

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        import torch

        stops = torch.tensor(self._stop_ids, dtype=torch.long, device=input_ids.device)
        return torch.isin(input_ids[:, self._width :], stops).any(dim=-1)


def transformers_engine_capabilities() -> EngineCapabilities:
    """What the installed transformers can give as a rollout engine."""
    able = transformers_capabilities()
    if not able.scoring:
        names = ("sampling", "prefill_scoring", "forced_decode", "routing")
        return EngineCapabilities(False, False, False, False, dict.fromkeys(names, able.reason["scoring"]))
    return EngineCapabilities(
        sampling=True,
        prefill_scoring=True,
        forced_decode=True,
        routing=able.routing,
        reason={
            "prefill_parameters": _PREFILL_REASON,
            "weight_reload": _RELOAD_REASON,
            "hidden_states": "the scorer transformers gives them",
        },
        keep_sets=True,
        prefill_parameters=frozenset({"temperature"}),
    )


@register_engine(
    "transformers",
    summary="transformers generate with its cache, the control",
    capabilities=transformers_engine_capabilities,
    warm=import_models,
)
def make_transformers_engine(spec: EngineSpec) -> TransformersEngine:
    """Loads the model."""
    return TransformersEngine(spec)
