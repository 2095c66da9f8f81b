"""Do the other training-side legs drift less than the forward, on the same tokens, beyond what prompts vary?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mismatch_probe.result import to_json
from mismatch_probe.stats.comparisons import holm, paired_difference
from mismatch_probe.stats.kl import token_k3
from mismatch_probe.stats.layout import SequenceLayout
from mismatch_probe.trace.trace import Trace

_BASELINE = "train/forward"
_QUESTIONS = {
    "train/replay": "forcing the rollout's experts",
    "train/reference": "computing the forward in float32",
    "train/repeat": "another batching (a control: nothing should change)",
}


def leg_comparisons(trace: Trace, legs: Sequence[str]) -> list[dict[str, Any]]:
    """Token K3 from `rollout/decode` to each other training-side leg, less that to `train/forward`.

    Paired by prompt: the interval resamples prompts, the p-value flips the signs of prompts' differences, and
    Holm's correction is over the legs compared.

    Args:
        trace: The run.
        legs: Legs whose parts are all there.
    """
    if _BASELINE not in legs:
        return []
    rollout = trace.rollout
    layout = SequenceLayout.from_arrays(rollout.offsets, rollout.prompt_index)

    def k3_sums(leg: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        return layout.sequence_sums(token_k3(trace.logprobs(leg) - rollout.logprobs))

    baseline = k3_sums(_BASELINE)
    rows: list[dict[str, Any]] = []
    for leg in (leg for leg in _QUESTIONS if leg in legs):
        other = k3_sums(leg)
        row: dict[str, Any] = {"leg": leg, "baseline": _BASELINE, "changes": _QUESTIONS[leg]}
        if np.all(np.isfinite(other - baseline)):
            found = paired_difference(
                baseline, other, rollout.prompt_index, sizes=layout.lengths.astype(np.float64)
            )
            row |= {
                "k3_difference": to_json(found.difference),
                "p_value": found.p_value,
                "num_prompts": found.num_clusters,
            }
        else:
            reason = "a token's K3 leaves float64"
            row |= {"k3_difference": {"value": None, "reason": reason}, "p_value": None, "num_prompts": None}
        rows.append(row)
    tested = [row for row in rows if row["p_value"] is not None]
    for row, adjusted in zip(tested, holm([row["p_value"] for row in tested]), strict=True):
        row["p_holm"] = adjusted
    return rows
