"""The leg `rollout/refit`, inside the worker process: the engine loads its own checkpoint again and must not move.

It is the last leg of its engine: after a load that went wrong nothing read from it means anything.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from mismatch_probe.config.model import Leg, SamplingConfig
from mismatch_probe.engines.protocol import FixedSequence, ProgressCallback, RolloutEngine
from mismatch_probe.engines.refit import RefittableEngine, compare_digests
from mismatch_probe.errors import CaptureError, MismatchProbeError
from mismatch_probe.result import to_json
from mismatch_probe.trace.parts import write_json, write_table
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.schema import refit_schema

REFIT_LEG: Leg = "rollout/refit"
REFIT_SEQUENCES = 32
"""Sequences that are read before and after: a load that breaks a module moves nearly every token."""


def take_refit_leg(
    run: RunDirectory,
    engine: RolloutEngine,
    checkpoint: Path,
    sequences: Sequence[FixedSequence],
    sampling: SamplingConfig,
    *,
    forced_decode: bool,
    progress: ProgressCallback,
) -> None:
    """Reads the sequences, loads the checkpoint that the engine has, reads them again, compares the weights.

    Both readings are one batch of the same sequences on the same path, so an engine that repeats itself has to give
    the same bits. Whatever goes wrong is kept as the outcome: all other legs are on disk already.

    Args:
        run: The run directory.
        engine: Loaded with `checkpoint`; of no use afterwards.
        checkpoint: Folder that it was started from.
        sequences: What to read.
        sampling: Which distribution the log-probabilities describe.
        forced_decode: Whether the engine can force ids through its decode path; else prefill is read.
        progress: Told of the second reading.
    """
    begin, doing = time.monotonic(), "read the sequences"
    try:
        if not isinstance(engine, RefittableEngine):
            raise CaptureError("it offers no way to load weights while it runs")
        read = engine.force_decode if forced_decode else engine.score_prefill
        fresh = read(sequences, sampling, _quiet)
        doing = "digest its weights"
        held = engine.digest_state()
        doing = "load its own checkpoint again"
        loading = time.monotonic()
        engine.load_weights(checkpoint)
        load_seconds = time.monotonic() - loading
        doing = "read the sequences after the load"
        reloaded = read(sequences, sampling, progress)
        doing = "digest its weights after the load"
        comparison = compare_digests(held, engine.digest_state())
    except Exception as error:
        # An engine may answer a load with anything; the log has the whole story and the result one line of it.
        traceback.print_exc()
        lines = str(error).strip().splitlines()
        kind = "" if isinstance(error, MismatchProbeError) else f"{type(error).__name__}: "
        write_refit_failure(run, f"the engine could not {doing}: {kind}{lines[0] if lines else ''}")
        return
    import pyarrow as pa

    columns = {
        "sequence_id": [sequence.sequence_id for sequence in sequences],
        "fresh": fresh,
        "logprobs": reloaded,
    }
    write_table(run.score_part(REFIT_LEG, 0), pa.table(columns, schema=refit_schema()), run.note_part)
    outcome = {
        "unavailable": None,
        "path": "decode" if forced_decode else "prefill",
        "weights": to_json(comparison),
        "load_seconds": round(load_seconds, 2),
        "seconds": round(time.monotonic() - begin, 2),
    }
    write_json(run.refit_outcome(), outcome)


def write_refit_failure(run: RunDirectory, reason: str) -> None:
    """Keeps that the leg could not be read, and why."""
    write_json(run.refit_outcome(), {"unavailable": reason})


def _quiet(sequences: int, tokens: int) -> None:
    return None
