"""The sections `data_quality`, `token` and `sequence` of a result: how far the two sides are apart on the sampled tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mismatch_probe.outcomes import NOT_INVALIDATING
from mismatch_probe.result import to_json
from mismatch_probe.stats.naming import framework_metrics
from mismatch_probe.stats.sequence_summary import SequenceSummary, summarise_sequences
from mismatch_probe.stats.tails import quantiles
from mismatch_probe.stats.token_summary import summarise_tokens
from mismatch_probe.stats.validity import usable_tokens, validity_checks
from mismatch_probe.trace.trace import Rollout, Trace

# Levels of the distribution function that a report draws: even, with both tails resolved.
_ECDF_LEVELS = tuple(
    np.unique(np.concatenate([np.linspace(0, 1, 101), 1 - np.geomspace(1e-4, 1e-2, 20)])).tolist()
)


# Response lengths that a report extrapolates to: multiples of the longest one, and lengths people train at.
_STRETCHES = (1, 2, 4, 8)
_LONG_LENGTHS = (8192, 32768)
_NAMED_SEQUENCES = 8


def drift_sections(
    trace: Trace, *, token_classes: tuple[npt.NDArray[np.int64], tuple[str, ...]] | None = None
) -> dict[str, Any]:
    """Measures `train/forward` against `rollout/decode`.

    Args:
        trace: The run.
        token_classes: int64 [response tokens] class of each token, and the names of the classes; None where unknown.

    Returns:
        `data_quality`, `token` and `sequence`. Where a value is no log-probability (MP102) the last two are absent with
        the reason: a sequence sum with a hole in it is no sequence sum, and nothing downstream of one can be had.
    """
    rollout = trace.rollout
    train = trace.logprobs("train/forward")
    entropy = trace.entropy("train/forward")
    checks = validity_checks(train, rollout.logprobs, rollout.offsets, rollout.prompt_index, entropy=entropy)
    trusted = not any(check.status == "fail" and check.code not in NOT_INVALIDATING for check in checks)
    quality = {"trusted": trusted, "checks": to_json(checks), "excluded_tokens": 0}
    quality["unusable"] = _unusable(rollout, train)
    if quality["unusable"] is not None:
        absent = {"available": False, "reason": quality["unusable"]["reason"]}
        return {"data_quality": quality, "token": absent, "sequence": dict(absent)}
    log_ratio = train - rollout.logprobs
    classes, names = (None, ()) if token_classes is None else token_classes
    tokens = summarise_tokens(
        log_ratio,
        rollout_logprobs=rollout.logprobs,
        train_logprobs=train,
        offsets=rollout.offsets,
        clusters=rollout.prompt_index,
        entropy=entropy,
        token_class=classes,
    )
    sequences = summarise_sequences(
        log_ratio,
        rollout.offsets,
        rollout.prompt_index,
        advantages=rollout.advantage,
        train_logprobs=train,
    )
    return {
        "data_quality": quality,
        "token": {
            **to_json(tokens),
            "token_class_names": list(names),
            "ecdf": {
                "levels": list(_ECDF_LEVELS),
                "abs_log_ratio": to_json(quantiles(np.abs(log_ratio), _ECDF_LEVELS)),
            },
            "dashboards": to_json(framework_metrics(train, rollout.logprobs, rollout.offsets)),
        },
        "sequence": _with_extrapolation(sequences),
    }


def _with_extrapolation(sequences: SequenceSummary) -> dict[str, Any]:
    """The section `sequence`, with what the length law says of longer responses or why it says nothing."""
    law = sequences.length_law
    lengths = {stretch * law.max_length for stretch in _STRETCHES}
    lengths |= {length for length in _LONG_LENGTHS if length > law.max_length}
    section: dict[str, Any] = to_json(sequences)
    section["length_law"]["extrapolation"] = [to_json(law.extrapolate(length)) for length in sorted(lengths)]
    section["max_length"] = law.max_length
    return section


def _unusable(rollout: Rollout, train: npt.NDArray[np.float64]) -> dict[str, Any] | None:
    """How many values are no log-probabilities and in which sequences; None where all are."""
    holes = ~usable_tokens(train, rollout.logprobs)
    if not holes.any():
        return None
    found = np.unique(np.searchsorted(rollout.offsets, np.flatnonzero(holes), side="right") - 1)
    named = [int(rollout.sequence_id[place]) for place in found[:_NAMED_SEQUENCES]]
    return {
        "num_tokens": int(holes.sum()),
        "num_sequences": int(found.size),
        "sequences": named,
        "reason": f"{int(holes.sum())} of {holes.size} tokens have no log-probability on a side (MP102), first in sequence "
        f"{named[0]}: no number that they enter means anything",
    }


def broken_legs(trace: Trace, legs: Sequence[str]) -> dict[str, int]:
    """Tokens without a log-probability in each of the legs beside the two that are compared; legs without any are left out.

    Args:
        trace: The run.
        legs: Legs that were read over the whole run.
    """
    compared = ("rollout/decode", "train/forward", "rollout/refit")
    counts = {}
    for leg in (leg for leg in legs if leg not in compared):
        values = trace.logprobs(leg)
        counts[leg] = int(np.count_nonzero(~usable_tokens(values, values)))
    return {leg: count for leg, count in counts.items() if count}
