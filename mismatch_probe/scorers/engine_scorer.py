"""A rollout engine that reads finished sequences, in the place of the trainer.

Two engines can be held against each other this way, or one against itself under other options: the reading is a leg of the
training side like any other, so everything that is measured of a trainer is measured of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mismatch_probe.config.model import SamplingConfig
from mismatch_probe.config.options import read_options
from mismatch_probe.engines.protocol import EngineSpec, FixedSequence
from mismatch_probe.engines.registry import engines
from mismatch_probe.engines.vllm_engine import import_engine
from mismatch_probe.errors import CaptureError, ConfigError
from mismatch_probe.scorers.protocol import (
    ProgressCallback,
    ScoredSequence,
    ScorerCapabilities,
    ScoreRequest,
    ScorerFacts,
    ScorerSpec,
)
from mismatch_probe.scorers.registry import register_scorer

_NO_ROUTES = "a rollout engine returns experts of what it samples, not of what it scores"


class EngineScorerOptions(BaseModel):
    """`train.options.*` of a rollout engine as a scorer; every other option is handed to the engine.

    Attributes:
        engine: Registry name of the rollout engine.
        reading: "prefill" scores finished ids in one pass; "forced" sends them through the decode path.
        repeat_batch_size: Sequences handed over at a time, last first, for the noise floor `train/repeat`; the usual
            reading hands all of a part over at once.
        top_p: Truncation of the distribution that is read; 1 reads the whole, as a trainer does.
        top_k: Likewise; -1 reads the whole.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    engine: str
    reading: Literal["prefill", "forced"] = "prefill"
    repeat_batch_size: int = Field(1, ge=1)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(-1, ge=-1)


class EngineScorer:
    """A rollout engine behind the `Scorer` protocol.

    Args:
        spec: `options` as `EngineScorerOptions`.
        name: Registry name of the scorer.
    """

    def __init__(self, spec: ScorerSpec, name: str) -> None:
        self._options = _read(spec.options)
        if spec.max_sequence_len is None:
            raise ConfigError(
                "a rollout engine has to know the longest sequence before it starts",
                hint="give max_sequence_len",
            )
        able = _reading_capabilities(self._options)
        if not able.scoring:
            raise ConfigError(
                f"{self._options.engine} cannot read finished ids as asked: {able.reason['scoring']}",
                hint="set train.options.reading to the other of prefill and forced, or take another engine",
            )
        entry = engines.get(self._options.engine)
        self._name = name
        self._engine = entry.item.make(
            EngineSpec(
                model_path=spec.model_path,
                dtype=spec.dtype,
                max_model_len=spec.max_sequence_len,
                routing=False,
                num_moe_layers=0,
                top_k=0,
                options=dict(self._options.model_extra or {}),
                trust_remote_code=spec.trust_remote_code,
            )
        )

    def facts(self) -> ScorerFacts:
        """What was started."""
        facts = self._engine.facts()
        return ScorerFacts(
            scorer=self._name,
            version=facts.version,
            dtype=facts.dtype,
            device=facts.device,
            attention=str(facts.details.get("attention", "the engine's own")),
            options={
                **facts.options,
                **self._options.model_dump(include=set(EngineScorerOptions.model_fields)),
            },
            details={**facts.details, "engine": facts.engine, "logprobs_mode": facts.logprobs_mode},
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
        if capture_routing or any(request.routing is not None for request in requests):
            raise CaptureError(_NO_ROUTES, hint="audit without routing: --set routing=false")
        sampling = SamplingConfig(
            temperature=temperature, top_p=self._options.top_p, top_k=self._options.top_k
        )
        sequences = [FixedSequence(r.sequence_id, r.prompt_token_ids, r.response_token_ids) for r in requests]
        engine = self._engine
        read = engine.score_prefill if self._options.reading == "prefill" else engine.force_decode
        if batching == "forward":
            logprobs = read(sequences, sampling, progress)
            progress(0, sum(map(len, logprobs)))
        else:
            size = self._options.repeat_batch_size
            backwards = sequences[::-1]
            found: list[Any] = []
            for begin in range(0, len(backwards), size):
                batch = backwards[begin : begin + size]
                found += read(batch, sampling, progress)
                progress(0, sum(map(len, found[begin:])))
            logprobs = found[::-1]
        return [
            ScoredSequence(request.sequence_id, row, entropy=None, routing=None)
            for request, row in zip(requests, logprobs, strict=True)
        ]

    def close(self) -> None:
        """Ends the engine."""
        self._engine.close()


def _reading_capabilities(options: EngineScorerOptions) -> ScorerCapabilities:
    """What a rollout engine can give as a scorer, by what it declares and how it is asked to read."""
    able = engines.get(options.engine).item.able(options.model_extra or {})
    needed = "prefill_scoring" if options.reading == "prefill" else "forced_decode"
    follows = able.prefill_parameters if options.reading == "prefill" else able.sampling_parameters
    limit = able.reason.get(
        "prefill_parameters" if options.reading == "prefill" else "sampling_parameters", ""
    )
    reason = {
        **dict.fromkeys(("routing", "replay", "hidden_states"), _NO_ROUTES),
        "temperature": limit,
        "keep_sets": "an engine reads over the support that it would sample from itself",
    }
    scoring = bool(getattr(able, needed))
    if not scoring:
        reason["scoring"] = able.reason.get(needed, f"{options.engine} does not declare {needed}")
    for parameter, used in (("top_p", options.top_p < 1), ("top_k", options.top_k > 0)):
        if scoring and used and parameter not in follows:
            scoring, reason["scoring"] = False, f"{options.engine} does not read under {parameter}: {limit}"
    return ScorerCapabilities(
        scoring=scoring, routing=False, replay=False, reason=reason, temperature="temperature" in follows
    )


def _vllm_capabilities(options: Mapping[str, Any] | None = None) -> ScorerCapabilities:
    return _any_capabilities({**(options or {}), "engine": "vllm"})


def _any_capabilities(options: Mapping[str, Any] | None = None) -> ScorerCapabilities:
    if not options or "engine" not in options:
        reason = {**dict.fromkeys(("routing", "replay", "hidden_states"), _NO_ROUTES)}
        return ScorerCapabilities(scoring=True, routing=False, replay=False, reason=reason)
    return _reading_capabilities(_read(options))


def _read(options: Mapping[str, Any]) -> EngineScorerOptions:
    return read_options(EngineScorerOptions, options, "train.options", more=", and the engine's own options")


@register_scorer(
    "vllm",
    summary="vLLM reading finished ids, by prefill or by forced decode",
    capabilities=_vllm_capabilities,
    capabilities_with=_vllm_capabilities,
    warm=import_engine,
)
def make_vllm_scorer(spec: ScorerSpec) -> EngineScorer:
    """Starts vLLM as a scorer."""
    return EngineScorer(_with_engine(spec, "vllm"), "vllm")


register_scorer(
    "rollout-engine", summary="any rollout engine reading finished ids; train.options.engine names it",
    capabilities=_any_capabilities, capabilities_with=_any_capabilities,
)(partial(EngineScorer, name="rollout-engine"))  # fmt: skip


def _with_engine(spec: ScorerSpec, engine: str) -> ScorerSpec:
    import dataclasses

    return dataclasses.replace(spec, options={**spec.options, "engine": engine})
