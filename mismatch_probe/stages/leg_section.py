"""The `legs` section of a result: the drift decomposed, with the noise floor it is held against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mismatch_probe.result import to_json
from mismatch_probe.stages.leg_comparisons import leg_comparisons
from mismatch_probe.stages.leg_steps import LegStep, leg_steps
from mismatch_probe.stages.weight_sync import weight_sync_step
from mismatch_probe.stats.step_summary import StepSummary, covariance_of_steps, summarise_step
from mismatch_probe.trace.trace import Trace

_FLOORS = {
    "repeat_k3": ("train/forward", "train/repeat"),
    "decode_prefill_k3": ("rollout/decode", "rollout/prefill"),
    "rounding_k3": ("train/forward", "train/reference"),
}


def legs_section(trace: Trace, legs: Sequence[str], weight_sync: dict[str, Any]) -> dict[str, Any]:
    """Summarises every step between the legs that were read.

    Args:
        trace: The run.
        legs: Legs whose parts are all there.
        weight_sync: The section of that name; its step stands beside the others.
    """
    rollout = trace.rollout
    steps = leg_steps(legs)
    differences = {
        (step.start, step.end): trace.logprobs(step.end) - trace.logprobs(step.start) for step in steps
    }
    summaries = {
        pair: summarise_step(difference, rollout.offsets, rollout.prompt_index)
        for pair, difference in differences.items()
    }
    chain = [step for step in steps if step.role == "chain"]
    covariance = None
    if len(chain) > 1:
        named = {f"{step.start} -> {step.end}": differences[step.start, step.end] for step in chain}
        covariance = to_json(covariance_of_steps(named, rollout.offsets))
    rows = [_row(step, summaries[step.start, step.end]) for step in steps]
    return {
        "available": list(legs),
        "steps": [*rows, *(row for row in (weight_sync_step(weight_sync),) if row is not None)],
        "covariance": covariance,
        "comparisons": leg_comparisons(trace, legs),
        "floor": _floor(summaries),
    }


def _row(step: LegStep, summary: StepSummary) -> dict[str, Any]:
    return {
        "from": step.start,
        "to": step.end,
        "meaning": step.meaning,
        "role": step.role,
        "waterfall": step.role == "chain",
        **to_json(summary),
    }


def _floor(summaries: dict[tuple[str, str], StepSummary]) -> dict[str, Any]:
    """What each side does to itself, and the larger of the noises that were measured."""
    floors: dict[str, Any] = {
        name: to_json(summaries[pair].k3) if pair in summaries else None for name, pair in _FLOORS.items()
    }
    noise = {
        " -> ".join(pair): summaries[pair].k3.value
        for name, pair in _FLOORS.items()
        if name != "rounding_k3" and pair in summaries and summaries[pair].k3.value is not None
    }
    total = summaries.get(("rollout/decode", "train/forward"))
    source = max(noise, key=lambda name: noise[name] or 0.0) if noise else None
    k3 = noise[source] if source is not None else None
    exact = k3 == 0.0
    ratio = None
    if total is not None and total.k3.value is not None and k3:
        ratio = float(np.float64(total.k3.value) / k3)
    reason = None
    if ratio is None:
        reason = "EXACT: the floor is exactly 0" if exact else "no noise floor was measured"
    return {**floors, "k3": k3, "source": source, "exact": exact, "total_over_floor": ratio, "reason": reason}
