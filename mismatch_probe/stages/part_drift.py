"""Drift of a run that does not fit into memory: accumulators over ranges of parts, made anywhere and merged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from mismatch_probe.errors import InconclusiveError
from mismatch_probe.result import RESULT_SCHEMA_VERSION, to_json
from mismatch_probe.stages.shard import check_shards, missing_parts, name_parts
from mismatch_probe.stats.accumulate import DriftAccumulator
from mismatch_probe.stats.dependence import largest_block
from mismatch_probe.trace.parts import write_json
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.trace import Rollout, Trace

Spread = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], list[Any]]
"""Calls a function once for each tuple of arguments, here or elsewhere; results in their order."""


def call_here(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    """The `Spread` of one process."""
    return [function(*each) for each in arguments]


def measure_parts(run: RunDirectory, spread: Spread = call_here, workers: int = 1) -> dict[str, Any]:
    """Measures `train/forward` against `rollout/decode` part by part and writes drift.json.

    Each worker holds one part at a time. The sums are exact, so that the result is the same bit for bit for any number
    of workers; what is approximate, and by how much, is said in `mismatch_probe.stats.accumulate`.

    Args:
        run: A scored run.
        spread: Who reads the parts.
        workers: Into how many ranges of parts the run is cut.

    Returns:
        The content of drift.json: `token` and `sequence` as in result.json, without curves and extrapolation.

    Raises:
        InconclusiveError: The leg was not taken over every part, there is no token, or ids do not line up.
        RunDirectoryError: A part is damaged, or shards are missing.
    """
    manifest = run.read_manifest()
    check_shards(run, manifest)
    num_parts = int(manifest["num_parts"])
    if missing := missing_parts(run, ["rollout/decode", "train/forward"], num_parts):
        raise InconclusiveError(
            f"train/forward was not read over every part: {name_parts(missing)} missing",
            hint=f"run: mismatch-probe score {run.path}",
        )
    cuts = np.linspace(0, num_parts, min(workers, num_parts) + 1).astype(int).tolist()
    ranges = [tuple(range(begin, end)) for begin, end in pairwise(cuts)]
    path = run.path.resolve()
    scanned = spread(scan_parts, [(path, parts) for parts in ranges])
    rows = [row for found in scanned for row in found]
    if not rows:
        raise InconclusiveError(
            "the run has no response token that counts", hint="check prompts and loss masks"
        )
    labels = {name: number for number, name in enumerate(dict.fromkeys(name for name, _ in rows))}
    block = largest_block(
        np.array([length for _, length in rows], dtype=np.int64),
        np.array([labels[name] for name, _ in rows], dtype=np.int64),
    )
    sums = spread(accumulate_parts, [(path, parts, labels, block) for parts in ranges])
    # Into a fresh one: arrays that come from another process may be read-only.
    whole = DriftAccumulator(largest_block=block)
    for other in sums:
        whole.merge(other)
    drift = {
        "schema_version": RESULT_SCHEMA_VERSION,
        "run_id": manifest["run_id"],
        "num_parts": num_parts,
        "token": to_json(whole.tokens()),
        "sequence": to_json(whole.sequences()),
    }
    write_json(run.drift_path, drift)
    return drift


def scan_parts(path: Path, parts: Sequence[int]) -> list[tuple[str, int]]:
    """Prompt and number of tokens that count, of the sequences of these parts."""
    rows: list[tuple[str, int]] = []
    for _, rollout in _parts_with_tokens(path, parts):
        names = [rollout.prompt_ids[index] for index in rollout.prompt_index]
        rows += zip(names, rollout.lengths.tolist(), strict=True)
    return rows


def accumulate_parts(
    path: Path, parts: Sequence[int], labels: Mapping[str, int], block: int
) -> DriftAccumulator:
    """Adds up these parts.

    Args:
        path: The run directory.
        parts: Which parts.
        labels: Number of each prompt, the same for all ranges of the run.
        block: Largest block of the growth of the variance, of `largest_block` over the whole run.

    Raises:
        InconclusiveError: A value is no log-probability, or ids do not line up.
    """
    sums = DriftAccumulator(largest_block=block)
    for trace, rollout in _parts_with_tokens(path, parts):
        sums.update(
            trace.logprobs("train/forward"),
            rollout.logprobs,
            rollout.offsets,
            [labels[rollout.prompt_ids[index]] for index in rollout.prompt_index],
            rollout.sequence_id,
            advantages=rollout.advantage,
            entropy=trace.entropy("train/forward"),
        )
    return sums


def _parts_with_tokens(path: Path, parts: Sequence[int]) -> Iterator[tuple[Trace, Rollout]]:
    for part in parts:
        trace = Trace(RunDirectory(path), part + 1, (part,))
        try:
            rollout = trace.rollout
        except InconclusiveError:
            # Not one token of it counts, so it adds nothing; a run of such parts alone is refused above.
            continue
        yield trace, rollout
