"""Ablation: the run's own tokens read again with one thing changed, row by row."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mismatch_probe.assets.rewritten_checkpoint import write_int8_checkpoint
from mismatch_probe.causes.ablation import holm_over_rows, paired_change
from mismatch_probe.causes.knobs import REFIT, Knob, own_setting, settings_of, why_not
from mismatch_probe.errors import ConfigError, InconclusiveError, MismatchProbeError
from mismatch_probe.findings import Finding, finding, name_modules
from mismatch_probe.result import read_result, to_json
from mismatch_probe.stages.ablation_rows import TABLE, Row, Subject
from mismatch_probe.stages.events import Watcher
from mismatch_probe.stages.job import RolloutJob, ScoreJob, Task
from mismatch_probe.stages.recommendation import recommend_run
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
    num_prompts: int = 32,
    updated: Path | None = None,
) -> dict[str, Any]:
    """Turns each knob on the same tokens; writes `ablation.json`, and adds it to result.json where there is one.

    A row compares train/forward minus rollout/forced with the knob turned and without. Both readings of the
    baseline are taken anew on the chosen prompts, since the batches of a whole run are other batches. Rows on disk
    are kept, and the table keeps the rows of earlier calls that read the same tokens; the caller holds the run
    directory (`RunDirectory.claim`).

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
    path = run.path / TABLE
    content = merged(content, read_json(path) if path.is_file() else {})
    write_json(path, content)
    if run.result_path.is_file():
        write_json(run.result_path, {**read_result(run.result_path), "ablation": content})
        # A knob that brings the sides together is a thing to do.
        recommend_run(run)
    return content


def merged(content: dict[str, Any], held: dict[str, Any]) -> dict[str, Any]:
    """Adds what earlier calls found on the same tokens and this one was not asked for.

    Args:
        content: Of this call; its rows win over earlier ones of the same knob.
        held: What `ablation.json` holds, or nothing. Rows against another baseline are dropped: they do not compare.

    Returns:
        The table, ranked, with Holm's correction over all its rows that are in effect.
    """
    if any(held.get(key) != content[key] for key in ("schema_version", "tokens_sha256")):
        held = {}
    comparable = "rows" not in content or all(held.get(key) == content[key] for key in ("k3", "floor"))
    rows = {row["knob"]: row for row in held.get("rows", ()) if comparable}
    rows |= {row["knob"]: row for row in content.get("rows", ())}
    findings = held.get("findings", []) if "refit" not in content else content["findings"]
    whole = {**held, **content, "findings": findings}
    return {**whole, "rows": rank(list(rows.values()))} if rows else whole


def rank(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows in effect by how much they change K3, then those not in effect, then those that are not available."""
    p_values = [row["change"]["p_value"] if row["change"] and row["in_effect"] else None for row in rows]
    corrected = [
        {**row, "change": {**row["change"], "p_holm": p_holm}} if row["change"] else row
        for row, p_holm in zip(rows, holm_over_rows(p_values), strict=True)
    ]

    def place(row: dict[str, Any]) -> tuple[int, float]:
        if row["change"] is None:
            return 2, 0.0
        return (0, -abs(row["change"]["k3_change"]["value"] or 0.0)) if row["in_effect"] else (1, 0.0)

    return sorted(corrected, key=place)


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
    baseline = {side: _baseline(subject, side, watcher) for side in ("rollout", "train")}
    rollout, train = baseline["rollout"].trace(), baseline["train"].trace()
    tokens = rollout.rollout
    decode, forward = rollout.logprobs("rollout/forced"), train.logprobs("train/forward")
    floor = summarise_step(train.logprobs("train/repeat") - forward, tokens.offsets, tokens.prompt_index)
    rows: list[dict[str, Any]] = []
    for knob in knobs:
        row: dict[str, Any] = {"knob": knob.name, "side": knob.side, "changes": knob.changes}
        row |= {"unavailable": None, "in_effect": None, "change": None, "prefill": None}
        rows.append(row)
        settings = settings_of(baseline[knob.side].state["facts"])
        row["unavailable"] = why_not(knob, subject.config) or own_setting(knob, settings)
        if row["unavailable"] is not None:
            continue
        taken = _take(subject, Row(subject, knob.name), knob, watcher)
        row |= {key: taken.state[key] for key in ("unavailable", "seconds", "cpu_seconds")}
        if row["unavailable"] is not None:
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
            row["unavailable"] = error.message
            continue
        row |= {"change": to_json(change), "in_effect": change.in_effect}
        if knob.side == "rollout":
            step = trace.logprobs("rollout/prefill") - rollout.logprobs("rollout/prefill")
            row["prefill"] = to_json(summarise_step(step, tokens.offsets, tokens.prompt_index))
            row["in_effect"] = change.in_effect or not row["prefill"]["exact"]
    return {
        "rows": rows,
        "floor": to_json(floor.k3),
        "k3": to_json(summarise_step(forward - decode, tokens.offsets, tokens.prompt_index).k3),
        "num_tokens": int(tokens.offsets[-1]),
    }


def _baseline(subject: Subject, side: str, watcher: Watcher) -> Row:
    name = f"baseline-{side}"
    engine = subject.config[side]["scorer" if side == "train" else "engine"]
    row = _take(
        subject,
        Row(subject, name),
        Knob(name, "train" if side == "train" else "rollout", "nothing", engine),
        watcher,
    )
    if row.state["unavailable"] is not None:
        raise MismatchProbeError(
            f"the baseline of the {side} side cannot be read: {row.state['unavailable']}",
            hint=f"see {subject.run.log_path(f'ablation-{name}')}",
        )
    return row


def _take(subject: Subject, row: Row, knob: Knob, watcher: Watcher) -> Row:
    spec = subject.spec(knob.side, dtype=knob.dtype, options=knob.options)
    made = subject.folder / f"{knob.name}-checkpoint"
    if knob.checkpoint == "int8":
        try:
            write_int8_checkpoint(Path(spec["model_path"]), made)
        except ConfigError as error:
            row.state = {"unavailable": error.message, "seconds": 0.0, "cpu_seconds": 0.0}
            return row
        spec = {**spec, "model_path": str(made.resolve())}

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

    row.take(job, watcher, environment=knob.environment)
    if knob.checkpoint is not None:
        shutil.rmtree(made, ignore_errors=True)
    return row
