"""Ablation: the run's own tokens read again with one thing changed, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mismatch_probe.causes.ablation import PairedChange, correct, paired_change
from mismatch_probe.causes.knobs import REFIT, Knob, why_not
from mismatch_probe.errors import InconclusiveError, MismatchProbeError
from mismatch_probe.findings import Finding, finding, name_modules
from mismatch_probe.result import read_result, to_json
from mismatch_probe.stages.ablation_rows import Row, Subject
from mismatch_probe.stages.events import Watcher
from mismatch_probe.stages.job import RolloutJob, ScoreJob, Task
from mismatch_probe.stages.refit import refit_study
from mismatch_probe.stats.step_summary import summarise_step
from mismatch_probe.trace.parts import read_json, write_json
from mismatch_probe.trace.run_directory import RunDirectory

ABLATION_SCHEMA_VERSION = 1
_ROLLOUT_LEGS = ("rollout/forced", "rollout/prefill")
_TRAIN_LEGS = ("train/forward", "train/repeat")


def ablate_run(
    run: RunDirectory,
    knobs: Sequence[Knob],
    watcher: Watcher,
    *,
    num_prompts: int = 16,
    updated: Path | None = None,
) -> dict[str, Any]:
    """Turns each knob on the same tokens; writes `ablation.json`, and adds it to result.json where there is one.

    A row compares train/forward minus rollout/forced with the knob turned and without. Both readings of the
    baseline are taken anew on the chosen prompts, since the batches of a whole run are other batches. Rows on disk
    are kept; the caller holds the run directory (`RunDirectory.claim`).

    Args:
        run: A recorded run.
        knobs: What to turn.
        watcher: Told of progress.
        num_prompts: First prompts of the run to read, all their samples.
        updated: For the knob refit: a later checkpoint; None makes one, see `refit_study`.

    Raises:
        MismatchProbeError: The baseline cannot be read.
    """
    subject = Subject(run, num_prompts)
    content: dict[str, Any] = {
        "schema_version": ABLATION_SCHEMA_VERSION,
        "num_prompts": len(set(subject.table["prompt_id"].to_pylist())),
        "num_sequences": subject.table.num_rows,
        "tokens_sha256": subject.tokens_sha256,
    }
    turned = [knob for knob in knobs if knob.side != REFIT]
    findings: list[Finding] = []
    if len(turned) < len(knobs):
        reason = why_not(next(knob for knob in knobs if knob.side == REFIT), subject.config)
        content["refit"] = {"unavailable": reason} if reason else refit_study(subject, updated, watcher)
        findings += refit_findings(content["refit"])
    if turned:
        content |= _knob_rows(subject, turned, watcher)
    content["findings"] = to_json(findings)
    path = run.path / "ablation.json"
    content = _with_earlier(content, read_json(path) if path.is_file() else {})
    write_json(path, content)
    if run.result_path.is_file():
        write_json(run.result_path, {**read_result(run.result_path), "ablation": content})
    return content


def _with_earlier(content: dict[str, Any], held: dict[str, Any]) -> dict[str, Any]:
    """Adds what an earlier call found on the same tokens and this one was not asked for."""
    same = all(held.get(key) == content[key] for key in ("schema_version", "tokens_sha256"))
    if not same:
        return content
    findings = held["findings"] if "refit" not in content else content["findings"]
    return {**held, **content, "findings": findings}


def refit_findings(refit: dict[str, Any]) -> list[Finding]:
    """MP601 for the same checkpoint, MP602 for an updated one, where a load did not do what it should.

    Args:
        refit: What `refit_study` returned.
    """
    found = []
    meanings = {
        "same": ("MP601", "after the same checkpoint was loaded again"),
        "updated": ("MP602", "after an updated checkpoint was loaded, against an engine started from it"),
    }
    for case, (code, when) in meanings.items():
        held = refit.get(case) or {}
        if held.get("unavailable") is not None or held.get("exact", True):
            continue
        worst = max(("decode", "prefill"), key=lambda path: held[path]["max_abs"])
        gap = held[worst]["mean_abs"]["value"]
        where = name_modules(row["module"] for row in held["weights"]["differences"])
        found.append(
            finding(
                code, "error",
                f"log-probabilities differ by {gap:.3g} nats on average ({held[worst]['max_abs']:.3g} at most) {when}; "
                f"modules that differ: {where or 'none that could be read'}",
                observed=gap, bar=0.0, unit="nats", n=held[worst]["mean_abs"]["n"],
            )
        )  # fmt: skip
    return found


def _knob_rows(subject: Subject, knobs: Sequence[Knob], watcher: Watcher) -> dict[str, Any]:
    rollout, train = _baseline(subject, "rollout", watcher), _baseline(subject, "train", watcher)
    tokens = rollout.trace().rollout
    decode, forward = (
        rollout.trace().logprobs("rollout/forced"),
        train.trace().logprobs("train/forward"),
    )
    floor = summarise_step(
        train.trace().logprobs("train/repeat") - forward, tokens.offsets, tokens.prompt_index
    )
    rows: list[dict[str, Any]] = []
    changes: list[PairedChange] = []
    for knob in knobs:
        row: dict[str, Any] = {"knob": knob.name, "side": knob.side, "changes": knob.changes}
        reason = why_not(knob, subject.config)
        taken = Row(subject, knob.name)
        if reason is None:
            reason = _take(subject, taken, knob, watcher)["unavailable"]
        rows.append({**row, "unavailable": reason, "change": None, "prefill": None})
        if reason is not None:
            continue
        trace = taken.trace()
        after = (
            forward - trace.logprobs("rollout/forced")
            if knob.side == "rollout"
            else trace.logprobs("train/forward") - decode
        )
        try:
            change = paired_change(
                forward - decode, after, tokens.offsets, tokens.prompt_index, floor_k3=floor.k3.value
            )
        except InconclusiveError as error:
            rows[-1]["unavailable"] = error.message
            continue
        if knob.side == "rollout":
            step = trace.logprobs("rollout/prefill") - rollout.trace().logprobs("rollout/prefill")
            rows[-1]["prefill"] = to_json(summarise_step(step, tokens.offsets, tokens.prompt_index))
        rows[-1]["change"] = len(changes)
        changes.append(change)
    corrected = correct(changes)
    for row in rows:
        if row["change"] is not None:
            change = corrected[row["change"]]
            still = row["prefill"] is None or row["prefill"]["exact"]
            row["change"] = to_json(change)
            row["in_effect"] = change.in_effect or not still
    rows.sort(key=lambda row: -abs(row["change"]["k3_change"]["value"] or 0.0) if row["change"] else 1.0)
    return {
        "rows": rows,
        "floor": to_json(floor.k3),
        "k3": to_json(summarise_step(forward - decode, tokens.offsets, tokens.prompt_index).k3),
        "num_tokens": int(tokens.offsets[-1]),
    }


def _baseline(subject: Subject, side: str, watcher: Watcher) -> Row:
    row = Row(subject, f"baseline-{side}")
    knob = Knob(
        row.name, "train" if side == "train" else "rollout", "nothing", subject.config[side]["model"] or ""
    )
    state = _take(subject, row, knob, watcher)
    if state["unavailable"] is not None:
        raise MismatchProbeError(
            f"the baseline of the {side} side cannot be read: {state['unavailable']}",
            hint=f"see {subject.run.log_path(f'ablation-{row.name}')}",
        )
    return row


def _take(subject: Subject, row: Row, knob: Knob, watcher: Watcher) -> dict[str, Any]:
    spec = subject.spec(knob.side, dtype=knob.dtype, options=knob.options)

    def job(folder: Path) -> RolloutJob | ScoreJob:
        if knob.side == "train":
            return ScoreJob(
                run=folder,
                scorer=subject.config["train"]["scorer"],
                spec=spec,
                temperature=subject.sampling.temperature,
                routing=False,
                tasks=tuple(Task(leg=leg, parts=(0,)) for leg in _TRAIN_LEGS),
            )
        return RolloutJob(
            run=folder,
            engine=subject.config["rollout"]["engine"],
            spec=spec,
            sampling=subject.sampling,
            prompts=(),
            prompts_per_part=1,
            reward=None,
            tokenizer_path=None,
            tasks=tuple(Task(leg=leg, parts=(0,)) for leg in _ROLLOUT_LEGS),
        )

    return row.take(job, watcher, environment=knob.environment)
