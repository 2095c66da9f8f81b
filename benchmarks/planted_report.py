"""Diagnoses planted cases and draws the confusion matrix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mismatch_probe.assets.catalog import resolve_model
from mismatch_probe.causes.catalogue import CAUSES
from mismatch_probe.causes.checkpoints import compare_checkpoints
from mismatch_probe.causes.diagnosis import above_floor, diagnose
from mismatch_probe.causes.evidence import Readings, gather_evidence
from mismatch_probe.preflight.pair import config_differences
from mismatch_probe.result import to_json
from mismatch_probe.routing.agreement import compare_routes
from mismatch_probe.stats.kl import token_k3
from mismatch_probe.stats.validity import validity_checks

NOT_NAMED = {"not_identified": "not identified", "nothing_to_explain": "nothing to explain"}


@dataclass(frozen=True)
class Outcome:
    """One case, diagnosed.

    Attributes:
        cause: Planted.
        severity: Planted.
        named: First named cause, or what was said instead.
        others: Causes named after it.
        above: Whether the fault itself is above the noise floor.
        k3: What the fault does to the log-probabilities, nats; the drift where there is no clean reading.
        because: The diagnosis' sentence.
    """

    cause: str
    severity: str
    named: str
    others: tuple[str, ...]
    above: bool
    k3: float
    because: str


def readings_of(case: Any, *, ids: bool) -> Readings:
    """The arrays of a case; `ids` says whether the training side's own ids are at hand."""
    recording, legs = case.recording, case.legs
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in recording.responses])])
    other = {
        name: _flat(rows)
        for name, rows in legs.items()
        if name.startswith("train/") and name != "train/forward"
    }
    fed = legs.get("ids") if ids else None
    return Readings(
        rollout=_flat(recording.decode),
        train=_flat(legs["train/forward"]),
        offsets=offsets,
        clusters=np.asarray(recording.clusters),
        response_tokens=np.concatenate([np.asarray(row, dtype=np.int32) for row in recording.responses]),
        prompts=recording.prompts,
        legs={**other, "rollout/prefill": _flat(recording.prefill)},
        train_prompts=None if fed is None else [prompt for prompt, _ in fed],
        train_responses=None
        if fed is None
        else np.concatenate([np.asarray(r, dtype=np.int32) for _, r in fed]),
    )


def result_of(case: Any, *, both_sides: bool) -> dict[str, Any]:
    """The sections of result.json that a diagnosis reads.

    Args:
        case: As read.
        both_sides: Whether tensors, constants and ids of both sides are at hand, or log-probabilities only.
    """
    readings = readings_of(case, ids=both_sides)
    checks = validity_checks(
        readings.train,
        readings.rollout,
        readings.offsets,
        readings.clusters,
        entropy=_flat(case.legs["entropy"]),
    )
    evidence = to_json(gather_evidence(readings))
    if both_sides:
        rollout = resolve_model("tiny-qwen3-moe").path
        train = case.checkpoint or rollout
        evidence["weights"] = to_json(compare_checkpoints(rollout, train))
        evidence["constants"] = [asdict(item) for item in config_differences(rollout, train)]
    temperature = case.recording.temperature
    cut = case.severity if case.cause == "truncated-sampling" else ""
    sampling = {
        "temperature": temperature,
        "top_p": float(cut.removeprefix("top-p-")) if cut.startswith("top-p") else 1.0,
        "top_k": int(cut.removeprefix("top-k-")) if cut.startswith("top-k") else -1,
    }
    routes = [np.concatenate(rows) for rows in (case.recording.routes, case.legs["routes"])]
    layers = []
    if routes[0].shape == routes[1].shape:
        flips = compare_routes(*routes, num_experts=16).flipped.mean(axis=0)
        layers = [{"layer": layer, "set_agreement": 1.0 - float(rate)} for layer, rate in enumerate(flips)]
    return {
        "routing": {"layers": layers},
        "data_quality": {"checks": to_json(checks)},
        "causes": {"evidence": evidence},
        "provenance": {"sampling": sampling},
    }


def outcome_of(case: Any, *, both_sides: bool) -> Outcome:
    """Diagnoses one case."""
    result = result_of(case, both_sides=both_sides)
    diagnosis = diagnose(result)
    names = tuple(item.cause for item in diagnosis.causes)
    above, size = _is_above(case, result)
    named = names[0] if names else NOT_NAMED[diagnosis.status]
    return Outcome(case.cause, case.severity, named, names[1:], above, size, diagnosis.sentence)


def _is_above(case: Any, result: Mapping[str, Any]) -> tuple[bool, float]:
    """Whether the fault moves the log-probabilities by more than the clean pair's own drift.

    For faults of what is sampled there is no clean reading of the same tokens; there the drift itself is compared with the
    clean pair's. Sentinels are always above: no floor has any.
    """
    if case.cause == "sentinel-values":
        return True, float("nan")
    if case.clean is None:
        return above_floor(result["causes"]["evidence"]) is not False, result["causes"]["evidence"]["total"][
            "k3"
        ]
    train, clean = _flat(case.legs["train/forward"]), _flat(case.clean["train/forward"])
    rollout = _flat(case.recording.decode)
    if train.size == clean.size and case.clean_is_paired:
        moved, floor = np.abs(train - clean), np.abs(clean - rollout)
        size = float(token_k3(train - clean).mean())
    else:
        # What is measured holds the clean pair's own drift as well.
        moved, floor = np.abs(train - rollout), 2.0 * np.abs(clean - _flat(case.clean_rollout))
        size = float(token_k3(train - rollout).mean())
    return bool(moved.mean() > floor.mean()), size


def clean_outcomes(cases: Sequence[Any], runs: int, seed: int = 0) -> Iterator[Outcome]:
    """Diagnoses random subsets of prompts of the clean cases."""
    rng = np.random.default_rng(seed)
    clean = [case for case in cases if case.cause == "clean"]
    for run in range(runs):
        case = clean[run % len(clean)]
        prompts = np.unique(case.recording.clusters)
        chosen = rng.choice(prompts, size=max(24, prompts.size // 2), replace=False)
        yield outcome_of(case.take(np.flatnonzero(np.isin(case.recording.clusters, chosen))), both_sides=True)


def _flat(rows: Sequence[Any]) -> np.ndarray:
    return np.concatenate([np.asarray(row, dtype=np.float64) for row in rows])


def rates(outcomes: Sequence[Outcome]) -> tuple[int, int, int, int]:
    """(right above the floor, all above, right below, all below)."""
    above = [item for item in outcomes if item.above]
    below = [item for item in outcomes if not item.above]
    return (
        sum(item.named == item.cause for item in above), len(above),
        sum(item.named == item.cause for item in below), len(below),
    )  # fmt: skip


def table(outcomes: Sequence[Outcome]) -> str:
    """Every case as a row of Markdown."""
    lines = [
        "| planted | severity | K3 of the fault | above the floor | first named |",
        "|---|---|---|---|---|",
    ]
    for item in outcomes:
        mark = item.named if item.named == item.cause else f"**{item.named}**"
        lines.append(
            f"| {item.cause} | {item.severity} | {item.k3:.1e} | {'yes' if item.above else 'no'} | {mark} |"
        )
    return "\n".join(lines)


def draw_matrix(panels: Mapping[str, Sequence[Outcome]], path: Path) -> None:
    """Draws planted against first named; one panel for each of `panels`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    order = {name: index for index, name in enumerate(CAUSES)}
    planted = sorted(
        {item.cause for items in panels.values() for item in items if item.cause != "clean"},
        key=order.__getitem__,
    )
    rows = ["clean", *planted]
    extra = (
        {item.named for items in panels.values() for item in items} - set(planted) - set(NOT_NAMED.values())
    )
    columns = [*NOT_NAMED.values(), *planted, *sorted(extra, key=order.__getitem__)]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(9.5 * len(panels), 8.4), squeeze=False, sharey=True, layout="constrained"
    )
    for axis, (title, outcomes) in zip(axes[0], panels.items(), strict=True):
        counts = np.zeros((len(rows), len(columns)))
        for item in outcomes:
            if item.above or item.cause == "clean":
                counts[rows.index(item.cause), columns.index(item.named)] += 1
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axis.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (row, column), count in np.ndenumerate(counts):
            if count:
                axis.text(
                    column,
                    row,
                    f"{count:.0f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if share[row, column] > 0.5 else "black",
                )
        axis.set_xticks(range(len(columns)), columns, rotation=60, ha="right", fontsize=8)
        axis.set_yticks(range(len(rows)), rows, fontsize=8)
        axis.set_xticks(np.arange(-0.5, len(columns)), minor=True)
        axis.set_yticks(np.arange(-0.5, len(rows)), minor=True)
        axis.grid(which="minor", color="0.9", linewidth=0.6)
        axis.tick_params(which="minor", length=0)
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("first named")
    axes[0, 0].set_ylabel("planted")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
