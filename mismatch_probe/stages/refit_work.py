"""A refit job, inside the worker process: read, load weights into the running engine, read again, compare."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from mismatch_probe.engines.protocol import EngineFacts, EngineSpec
from mismatch_probe.engines.refit import RefittableEngine
from mismatch_probe.engines.registry import engines
from mismatch_probe.errors import CaptureError
from mismatch_probe.result import to_json
from mismatch_probe.stages.job import RefitJob
from mismatch_probe.stages.rollout_work import read_sequences, write_scores
from mismatch_probe.stages.worker import EventWriter
from mismatch_probe.trace.parts import write_json
from mismatch_probe.trace.run_directory import RunDirectory

FRESH_LEGS = ("rollout/forced", "rollout/prefill")
REFIT_LEGS = ("refit/forced", "refit/prefill")
WEIGHTS_FILE = "weights.json"


def run_refit_job(job: RefitJob, events: EventWriter) -> EngineFacts:
    """Starts the engine and does the job.

    Raises:
        CaptureError: The engine cannot load weights while it runs, or refused to.
    """
    events.send("loading", what=job.engine)
    made = engines.get(job.engine).item.make(
        EngineSpec(**{**job.spec, "model_path": Path(job.spec["model_path"])})
    )
    try:
        if not isinstance(made, RefittableEngine):
            raise CaptureError(
                f"{job.engine} offers no way to load weights into a running engine",
                hint="leave out the knob refit",
            )
        facts = made.facts()
        if job.read_fresh:
            _read(job, made, FRESH_LEGS, events)
        if job.save is not None:
            made.save_state(job.save)
        if job.load is not None:
            made.load_weights(job.load)
            _read(job, made, REFIT_LEGS, events)
        if job.compare is not None:
            write_json(job.run / WEIGHTS_FILE, to_json(made.compare_state(job.compare)))
        return facts
    finally:
        made.close()


def _read(job: RefitJob, engine: RefittableEngine, legs: tuple[str, str], events: EventWriter) -> None:
    run = RunDirectory(job.run)
    sequences = read_sequences(run, 0)
    for leg, score in zip(legs, (engine.force_decode, engine.score_prefill), strict=True):
        events.send("leg", leg=leg)
        logprobs = score(sequences, job.sampling, partial(events.progress, leg))
        write_scores(run, leg, 0, [sequence.sequence_id for sequence in sequences], logprobs, None)
        events.send("part", leg=leg, part=0)
