"""From evidence to named causes, in the order that the evidence supports; or to "not identified"."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mismatch_probe.causes import rules
from mismatch_probe.causes.rules import NamedCause, number

Status = Literal["identified", "not_identified", "nothing_to_explain"]

K3_OVER_REPEAT = 10.0
K3_OVER_REFERENCE = 4.0
ABS_OVER_FLOOR = 2.0
ABS_ALONE = 3.0
NEGLIGIBLE_K3 = 1e-8
"""Below a mean |log_ratio| of about 1e-4 nats nothing is worth a cause."""


_LEGS = {
    "train/repeat": "the noise floor",
    "train/reference": "what precision explains",
    "train/replay": "what routing explains",
    "rollout/prefill": "the engine against itself",
}


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What a run's drift comes from.

    Attributes:
        status: "identified", "not_identified" (drift above the floor that nothing here explains) or
            "nothing_to_explain".
        sentence: One sentence.
        causes: The most certain first.
        above_floor: Whether the drift is above the noise floor; None where no floor was measured.
        looked_at: What there was to look at, in order.
        missing: What would allow more, and how to get it.
    """

    status: Status
    sentence: str
    causes: tuple[NamedCause, ...]
    above_floor: bool | None
    looked_at: tuple[str, ...]
    missing: tuple[str, ...]


def diagnose(result: Mapping[str, Any], ablation: Mapping[str, Any] | None = None) -> Diagnosis:
    """Names causes.

    Looks at broken data first, since nothing after it can be trusted; then at what both sides are made of (ids, constants,
    tensors); at what was sampled; and only then, where none of these was found, at what is left: one broken sequence,
    routing, the engine against itself, the head. A cause is named where its own test fires beyond its own noise.

    Args:
        result: Sections `data_quality`, `causes.evidence`, `provenance.sampling` and, where there is one, `routing`.
        ablation: Content of ablation.json, or None.
    """
    evidence = result["causes"]["evidence"]
    checks = [check for check in result["data_quality"]["checks"] if check["status"] == "fail"]
    above = above_floor(evidence)
    causes = list(rules.find_broken_data(checks))
    if not causes:
        causes = [*rules.find_ids(evidence), *rules.find_constants(evidence), *rules.find_weights(evidence)]
        causes += [
            item
            for item in rules.find_sampling(evidence, checks, result)
            if item.cause not in _ids_of(causes)
        ]
    if not causes:
        causes = [*rules.find_sequences(evidence, checks)]
    if not causes:
        causes = list(rules.find_noisy_router(evidence, result.get("routing")))
    if not causes and above is not False:
        routers = list(rules.find_low_precision_router(evidence, result.get("routing")))
        causes = [
            *(routers or rules.find_routing(evidence)),
            *rules.find_own_prefill(evidence),
            *rules.find_head(evidence),
        ]
    if above is not False:
        causes += [item for item in rules.find_knobs(ablation) if item.cause not in _ids_of(causes)]
    status: Status = "identified" if causes else "nothing_to_explain" if above is False else "not_identified"
    return Diagnosis(
        status=status,
        sentence=_sentence(status, causes, above),
        causes=tuple(causes),
        above_floor=above,
        looked_at=tuple(_looked_at(evidence, ablation)),
        missing=tuple(_missing(evidence, ablation)),
    )


def above_floor(evidence: Mapping[str, Any]) -> bool | None:
    """Whether the drift is above what repetition and rounding do.

    K3 rests on few tokens, so it may cross its bar (10 times repetition, 4 times rounding) by chance, and so may its floor;
    the mean |log_ratio| does not. The drift is above the floor where K3 is and the mean |log_ratio| is twice its own floor,
    or where the latter is three times.

    Returns:
        None where neither train/repeat nor train/reference was read.
    """
    total, legs = evidence["total"], evidence["legs"]
    repeat, reference = legs.get("train/repeat"), legs.get("train/reference")
    if number(total["k3"]) < NEGLIGIBLE_K3:
        return False
    if repeat is None and reference is None:
        return None
    k3 = max(
        K3_OVER_REPEAT * number((repeat or {}).get("k3")),
        K3_OVER_REFERENCE * number((reference or {}).get("k3")),
    )
    size = max(number((leg or {}).get("mean_abs")) for leg in (repeat, reference))
    above = number(total["mean_abs"]) / size if size else math.inf
    return above > ABS_ALONE or (number(total["k3"]) > k3 and above > ABS_OVER_FLOOR)


def _ids_of(causes: list[NamedCause]) -> set[str]:
    return {item.cause for item in causes}


def _sentence(status: Status, causes: list[NamedCause], above: bool | None) -> str:
    if causes:
        first = f"{causes[0].title} ({causes[0].code}): {causes[0].because}"
        return first if len(causes) == 1 else f"{first}; and {len(causes) - 1} more"
    if status == "nothing_to_explain":
        return "the drift is no larger than what rounding and repetition do"
    if above is None:
        return "not identified: no noise floor was measured, and no test fires"
    return "not identified: the drift is above the noise floor, and nothing that was looked at explains it"


def _looked_at(evidence: Mapping[str, Any], ablation: Mapping[str, Any] | None) -> Iterator[str]:
    yield "validity of the data"
    for key, what in (("ids", "token ids of both sides"), ("constants", "constants of both checkpoints"),
                      ("weights", "tensors of both checkpoints")):  # fmt: skip
        if evidence.get(key) is not None:
            yield what
    yield "what was sampled and logged"
    yield "single sequences"
    yield from (f"leg {leg}" for leg in evidence["legs"])
    if ablation:
        yield "knobs"


def _missing(evidence: Mapping[str, Any], ablation: Mapping[str, Any] | None) -> Iterator[str]:
    if evidence.get("weights") is None:
        yield "tensors of both sides: give train.model, the checkpoint that the trainer really holds"
    for leg, why in _LEGS.items():
        if leg not in evidence["legs"]:
            yield f"leg {leg}: {why}"
    if not ablation:
        yield "knobs: mismatch-probe ablate RUN"
