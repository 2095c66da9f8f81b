"""A rollout engine that reads finished sequences, in the place of the trainer.

Two engines can be held against each other this way, or one against itself under other options: the reading is a leg of the
training side like any other, so everything that is measured of a trainer is measured of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mismatch_probe.config.model import SamplingConfig
from mismatch_probe.config.options import read_options
from mismatch_probe.engines.protocol import EngineSpec, FixedSequence
from mismatch_probe.engines.registry import engines
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

_NO_ROUTES = "a rollout engine returns the experts of what it samples, not of what it scores"


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
        self._options = read_options(
            EngineScorerOptions, spec.options, "train.options", more=", and the engine's own options"
        )
        if spec.max_sequence_len is None:
            raise ConfigError(
                "a rollout engine has to know the longest sequence before it starts",
                hint="give max_sequence_len",
            )
        entry = engines.get(self._options.engine)
        able = entry.item.able(self._options.model_extra or {})
        needed = "prefill_scoring" if self._options.reading == "prefill" else "forced_decode"
        if not getattr(able, needed):
            raise ConfigError(
                f"{entry.name} cannot read finished ids by {self._options.reading}: {able.reason.get(needed, '')}",
                hint="set train.options.reading to the other of prefill and forced",
            )
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


def _vllm_capabilities() -> ScorerCapabilities:
    able = engines.get("vllm").item.capabilities()
    scoring = able.prefill_scoring or able.forced_decode
    reason = {"routing": _NO_ROUTES, "replay": _NO_ROUTES}
    if not scoring:
        reason["scoring"] = next(iter(able.reason.values()), "vLLM is not available")
    return ScorerCapabilities(scoring=scoring, routing=False, replay=False, reason=reason)


def _any_capabilities() -> ScorerCapabilities:
    return ScorerCapabilities(
        scoring=True, routing=False, replay=False, reason={"routing": _NO_ROUTES, "replay": _NO_ROUTES}
    )


@register_scorer(
    "vllm",
    summary="vLLM reading finished ids, by prefill or by forced decode",
    capabilities=_vllm_capabilities,
)
def make_vllm_scorer(spec: ScorerSpec) -> EngineScorer:
    """Starts vLLM as a scorer."""
    return EngineScorer(_with_engine(spec, "vllm"), "vllm")


register_scorer(
    "rollout-engine", summary="any rollout engine reading finished ids; train.options.engine names it",
    capabilities=_any_capabilities,
)(partial(EngineScorer, name="rollout-engine"))  # fmt: skip


def _with_engine(spec: ScorerSpec, engine: str) -> ScorerSpec:
    import dataclasses

    return dataclasses.replace(spec, options={**spec.options, "engine": engine})
