"""A job on hidden states, inside the worker process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mismatch_probe.engines.layer_sites import HEAD
from mismatch_probe.engines.layer_states import LayerStateEngine
from mismatch_probe.engines.protocol import EngineFacts, EngineSpec, FixedSequence
from mismatch_probe.engines.registry import engines
from mismatch_probe.errors import CaptureError
from mismatch_probe.scorers.layer_states import LayerStateScorer
from mismatch_probe.scorers.protocol import ScoreRequest, ScorerFacts, ScorerSpec
from mismatch_probe.scorers.registry import scorers
from mismatch_probe.stages.job import LayerStatesJob
from mismatch_probe.stages.worker import EventWriter

LEG = "hidden states"


def run_layer_states_job(job: LayerStatesJob, events: EventWriter) -> EngineFacts | ScorerFacts:
    """Starts the engine or the scorer and feeds every sequence.

    Raises:
        CaptureError: This side does not hand over its hidden states.
    """
    events.send("loading", what=job.name)
    spec = {**job.spec, "model_path": Path(job.spec["model_path"])}
    events.send("leg", leg=LEG)
    return _rollout(job, spec, events) if job.side == "rollout" else _train(job, spec, events)


def _rollout(job: LayerStatesJob, spec: dict[str, Any], events: EventWriter) -> EngineFacts:
    from safetensors.numpy import save_file

    engine = engines.get(job.name).item.make(EngineSpec(**spec))
    try:
        if not isinstance(engine, LayerStateEngine):
            raise _refusal(job.name)
        sequences = [
            FixedSequence(s.sequence_id, s.prompt_token_ids, s.response_token_ids) for s in job.sequences
        ]
        for sequence in sequences:
            engine.write_layer_states([sequence], job.states)
            events.progress(LEG, 1, len(sequence.response_token_ids))
        logprobs = engine.score_prefill(sequences, job.sampling, lambda _sequences, _tokens: None)
        rows = {str(s.sequence_id): row for s, row in zip(sequences, logprobs, strict=True)}
        save_file(rows, job.states / f"{HEAD}.safetensors")
        return engine.facts()
    finally:
        engine.close()


def _train(job: LayerStatesJob, spec: dict[str, Any], events: EventWriter) -> ScorerFacts:
    from safetensors.numpy import save_file

    scorer = scorers.get(job.name).item.make(ScorerSpec(**spec))
    try:
        if not isinstance(scorer, LayerStateScorer) or job.out is None:
            raise _refusal(job.name)
        for sequence in job.sequences:
            given = read_states(job.states / f"{sequence.sequence_id}.safetensors")
            routes = given.pop("routes", None)
            request = ScoreRequest(
                sequence.sequence_id,
                sequence.prompt_token_ids,
                sequence.response_token_ids,
                # The last token predicts nothing that was sampled, so a request has no row of it.
                None if routes is None or not spec["num_moe_layers"] else routes[:-1],
            )
            read = scorer.read_layer_states(request, given, temperature=job.sampling.temperature)
            named = {f"{way}/{name}": rows for way, states in read.items() for name, rows in states.items()}
            save_file(named, job.out / f"{sequence.sequence_id}.safetensors")
            events.progress(LEG, 1, len(sequence.response_token_ids))
        return scorer.facts()
    finally:
        scorer.close()


def read_states(path: Path) -> dict[str, Any]:
    """States of one sequence as numpy arrays: float32, routes int16."""
    import torch
    from safetensors.torch import load_file

    return {
        name: (rows.float() if rows.dtype in (torch.bfloat16, torch.float16) else rows).numpy()
        for name, rows in load_file(path).items()
    }


def _refusal(name: str) -> CaptureError:
    return CaptureError(
        f"{name} does not hand over its hidden states", hint="locate works between vllm and transformers"
    )
