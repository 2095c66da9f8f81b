"""Compares two measured runs: reads their parts, or their results where the parts are not there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mismatch_probe.compare.differences import Difference, RunSums, compare_sums, shared_prompts
from mismatch_probe.compare.metrics import applicable, by_prompt, drift_sums, step_column, step_metric
from mismatch_probe.compare.records import changed_findings, changed_settings, compare_results, untested
from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.result import check_schema, read_result, to_json
from mismatch_probe.stages.leg_steps import LegStep, leg_steps
from mismatch_probe.stages.routing_section import accumulate_routing
from mismatch_probe.stats.kl import token_k3
from mismatch_probe.stats.layout import FloatArray, SequenceLayout
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.trace import Rollout, Trace

COMPARISON_SCHEMA_VERSION = 1
# Beside the chain: what replay leaves, what rounding does, what batching does. More steps would cost power and say no more.
_STEPS = {
    ("rollout/decode", "train/replay"),
    ("train/forward", "train/reference"),
    ("train/forward", "train/repeat"),
}


@dataclass(frozen=True)
class _Side:
    """One run: what it measured and, where its parts are there, its sums by prompt."""

    path: Path
    result: dict[str, Any]
    sums: RunSums | None
    responses: Counter[bytes]
    steps: tuple[LegStep, ...]


def compare_runs(first: Path, second: Path) -> dict[str, Any]:
    """Compares two runs.

    Args:
        first: A run directory, or a result.json, to compare with.
        second: The one that is compared.

    Returns:
        `outcome` (worse, better, mixed, no_difference, unknown), `sentence`, `metrics`, `untested`, `findings`, `settings`,
        `pairing`, and `first` and `second` in brief.

    Raises:
        ConfigError: A path that is not there.
        RunDirectoryError: A run that was not measured, or is damaged.
        InconclusiveError: A run has no numbers to compare.
    """
    one, two = _read(first), _read(second)
    for side in (one, two):
        if side.result["token"].get("available") is False:
            raise InconclusiveError(
                f"{side.path} has nothing to compare: {side.result['token']['reason']}",
                hint="mend its data and measure it again",
            )
    metrics = _metrics(one, two)
    outcome = _outcome(metrics)
    return {
        "schema_version": COMPARISON_SCHEMA_VERSION,
        "outcome": outcome,
        "sentence": _sentence(outcome, metrics),
        "first": _brief(one),
        "second": _brief(two),
        "pairing": _pairing(one, two),
        "metrics": to_json(metrics),
        "untested": to_json(untested(one.result, two.result)),
        "findings": to_json(changed_findings(one.result, two.result)),
        "settings": to_json(changed_settings(one.result, two.result)),
    }


def _read(path: Path) -> _Side:
    if not path.exists():
        raise ConfigError(f"{path} does not exist", hint="give a run directory or a result.json")
    if path.is_file():
        result = read_result(path)
        check_schema(result, path)
        return _Side(path, result, None, Counter(), ())
    run = RunDirectory.open_existing(path)
    result = read_result(run.result_path)
    manifest = run.read_manifest()
    num_parts = int(manifest["num_parts"])
    legs = list(result["provenance"]["legs"])
    there = all(
        file.is_file()
        for leg in ("rollout/decode", "train/forward")
        for file in run.leg_files(leg, num_parts)
    )
    if not there or result["token"].get("available") is False:
        return _Side(path, result, None, Counter(), ())
    trace = Trace(run, num_parts)
    legs = [leg for leg in legs if all(file.is_file() for file in run.leg_files(leg, num_parts))]
    broken = result["data_quality"].get("broken_legs") or {}
    taken = leg_steps([leg for leg in legs if leg not in broken])
    steps = tuple(step for step in taken if step.role == "chain" or (step.start, step.end) in _STEPS)
    return _Side(path, result, _sums(trace, result, steps), _responses(trace.rollout), steps)


def _sums(trace: Trace, result: Mapping[str, Any], steps: Sequence[LegStep]) -> RunSums:
    rollout = trace.rollout
    layout = SequenceLayout.from_arrays(rollout.offsets, rollout.prompt_index)
    columns = drift_sums(trace.logprobs("train/forward") - rollout.logprobs, layout)
    for step in steps:
        values = token_k3(trace.logprobs(step.end) - trace.logprobs(step.start))
        columns[step_column(step.start, step.end)] = by_prompt(layout, layout.sequence_sums(values))
    if rollout.reward is not None:
        columns["reward"] = by_prompt(layout, rollout.reward)
        columns["rewarded"] = by_prompt(layout, np.ones(layout.num_sequences))
    if result["routing"].get("available"):
        columns |= _routing(trace, result["routing"], layout.num_clusters)
    return RunSums(_prompt_keys(rollout), columns)


def _routing(trace: Trace, section: Mapping[str, Any], prompts: int) -> dict[str, FloatArray]:
    table = accumulate_routing(trace, num_experts=int(section["num_experts"])).by_layer.table()
    if len(table) != prompts:
        return {}
    layers = int(section["num_layers"])
    return {"agreeing": table[:, :layers].sum(axis=1), "routers": layers * table[:, -1]}


def _prompt_keys(rollout: Rollout) -> tuple[bytes, ...]:
    """A key for each prompt: its tokens; with its name where it has none, or shares them with another prompt of the run."""
    keys: dict[int, bytes] = {}
    for place, index in enumerate(rollout.prompt_index.tolist()):
        if index not in keys:
            tokens = rollout.prompt_tokens[rollout.prompt_offsets[place] : rollout.prompt_offsets[place + 1]]
            keys[index] = tokens.tobytes()
    count = Counter(keys.values())
    return tuple(
        key if key and count[key] == 1 else key + b"\0" + rollout.prompt_ids[index].encode()
        for index, key in sorted(keys.items())
    )


def _responses(rollout: Rollout) -> Counter[bytes]:
    prompts = _prompt_keys(rollout)
    place = {index: number for number, index in enumerate(np.unique(rollout.prompt_index).tolist())}
    return Counter(
        prompts[place[index]] + b"\0" + rollout.response_tokens[low:high].tobytes()
        for index, low, high in zip(
            rollout.prompt_index.tolist(),
            rollout.offsets[:-1].tolist(),
            rollout.offsets[1:].tolist(),
            strict=True,
        )
    )


def _metrics(one: _Side, two: _Side) -> tuple[Difference, ...]:
    if one.sums is None or two.sums is None:
        return compare_results(one.result, two.result)
    named = {(step.start, step.end) for step in two.steps}
    steps = tuple(step_metric(step.start, step.end) for step in one.steps if (step.start, step.end) in named)
    return compare_sums(one.sums, two.sums, applicable(one.sums.columns, two.sums.columns, steps))


def _pairing(one: _Side, two: _Side) -> dict[str, Any]:
    if one.sums is None or two.sums is None:
        return {
            "basis": "results",
            "sentence": "Compared by the intervals of the two results: the parts of a run are not there.",
        }
    shared = shared_prompts(one.sums, two.sums)
    prompts = [len(set(side.sums.prompts)) for side in (one, two) if side.sums is not None]
    same = (one.responses & two.responses).total()
    totals = [side.responses.total() for side in (one, two)]
    if not shared:
        sentence = "Unpaired: the runs have no prompt in common."
    elif same == max(totals):
        sentence = f"Paired: the same {same} responses to the same {shared} prompts."
    else:
        rest = "" if shared == max(prompts) else f" of {prompts[0]} and {prompts[1]}"
        sentence = f"Paired by {shared}{rest} prompts; {same} of {totals[0]} and {totals[1]} responses are the same tokens."
    return {
        "basis": "parts", "sentence": sentence, "shared_prompts": shared, "prompts": prompts, "same_responses": same,
        "responses": totals,
    }  # fmt: skip


def _brief(side: _Side) -> dict[str, Any]:
    provenance = side.result["provenance"]
    return {
        "path": str(side.path),
        "run_id": provenance["run_id"],
        "model": provenance["model"]["name"],
        "verdict": side.result["verdict"],
        "num_tokens": provenance["num_tokens"],
        "num_sequences": provenance["num_sequences"],
        "num_prompts": provenance["prompts"]["num_prompts"],
    }


def _outcome(metrics: Sequence[Difference]) -> str:
    worse = {item.worse for item in metrics if item.worse is not None}
    if worse == {True, False}:
        return "mixed"
    if worse:
        return "worse" if True in worse else "better"
    states = {item.beyond_noise for item in metrics}
    if "yes" in states:
        return "changed"
    return "no_difference" if "no" in states else "unknown"


def _sentence(outcome: str, metrics: Sequence[Difference]) -> str:
    beyond = [item for item in metrics if item.beyond_noise == "yes"]
    tested = [item for item in metrics if item.beyond_noise != "unknown"]
    count = f"{len(beyond)} of {len(tested)} numbers differ beyond noise"
    if outcome == "unknown":
        reason = next((item.reason for item in metrics if item.reason), "no number could be compared")
        return f"Nothing can be concluded: {reason}."
    if outcome == "no_difference":
        if all(item.change.value == 0.0 for item in metrics):
            return "The two runs agree in every number."
        told = f"as far as these data tell ({len(tested)} numbers compared)"
        return f"The second run does not drift otherwise than the first, {told}."
    lead = next((item for item in beyond if item.worse is not None), beyond[0])
    how = {
        "worse": "The second run drifts more",
        "better": "The second run drifts less",
        "mixed": "The second run drifts more by some numbers and less by others",
        "changed": "The second run differs, in no number that is better or worse",
    }[outcome]
    return f"{how}: {lead.label} {_change(lead)}; {count}."


def _change(item: Difference) -> str:
    if item.ratio is not None and item.ratio.value is not None:
        ends = "" if item.ratio.ci_low is None else f" [{item.ratio.ci_low:.3g}, {item.ratio.ci_high:.3g}]"
        return f"is {item.ratio.value:.3g} times that of the first{ends}"
    return f"goes from {item.first:.3g} to {item.second:.3g}"
