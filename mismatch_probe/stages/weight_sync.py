"""The section `weight_sync` of a result: what loading the same checkpoint again did to the rollout engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mismatch_probe.findings import LAYER
from mismatch_probe.result import to_json
from mismatch_probe.stages.leg_steps import REFIT_STEP
from mismatch_probe.stats.step_summary import summarise_step
from mismatch_probe.trace.parts import read_json
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.trace import Trace


def weight_sync_section(run: RunDirectory, trace: Trace, legs: Sequence[str]) -> dict[str, Any]:
    """Compares the two readings of `rollout/refit`, and names the modules whose weights are not what they were.

    Args:
        run: The run directory.
        trace: Its trace.
        legs: Legs that were read.

    Returns:
        `exact`, `change` (a step summary, nats; absent where a value is not finite), `num_sequences`, `num_tokens`,
        `num_not_finite`, `path`, `weights`, `modules`, `layers` and seconds; or `available` false with the reason, and
        `failed` true where the engine did not get through the load.
    """
    if REFIT_STEP.end not in legs:
        return {"available": False, "failed": False, "reason": f"the leg {REFIT_STEP.end} was not taken"}
    outcome = read_json(run.refit_outcome())
    if outcome["unavailable"] is not None:
        return {"available": False, "failed": True, "reason": outcome["unavailable"]}
    reading = trace.refit()
    weights = outcome["weights"]
    not_finite = int(np.count_nonzero(~np.isfinite(reading.reloaded)))
    if not_finite or not np.all(np.isfinite(reading.fresh)):
        reason = f"{not_finite} log-probabilities are not finite after the load"
        change: dict[str, Any] = {"available": False, "reason": reason}
    else:
        step = summarise_step(reading.reloaded - reading.fresh, reading.offsets, reading.prompt_index)
        change = to_json(step)
    same = np.array_equal(reading.fresh, reading.reloaded, equal_nan=True)
    found = [LAYER.search(row["name"]) for row in weights["differences"]]
    return {
        "available": True,
        "exact": bool(same) and not weights["differences"],
        "path": outcome["path"],
        "num_sequences": int(reading.offsets.size - 1),
        "num_tokens": int(reading.offsets[-1]),
        "num_not_finite": not_finite,
        "change": change,
        "weights": weights,
        "modules": sorted({row["module"] for row in weights["differences"]}),
        "layers": sorted({int(layer[1]) for layer in found if layer}),
        "load_seconds": outcome["load_seconds"],
        "seconds": outcome["seconds"],
    }


def weight_sync_step(section: dict[str, Any]) -> dict[str, Any] | None:
    """The row of the legs' table, with the size of the sample; None where there is no number."""
    if not section["available"] or section["change"].get("available") is False:
        return None
    step = REFIT_STEP
    return {
        "from": step.start,
        "to": step.end,
        "meaning": step.meaning,
        "role": step.role,
        "waterfall": False,
        **section["change"],
        "num_sequences": section["num_sequences"],
        "num_tokens": section["num_tokens"],
    }
