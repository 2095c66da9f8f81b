"""Many measured runs over the steps of a training run: numbers by step, what changed along the way, and the trend of K3."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mismatch_probe.compare.records import changed_settings
from mismatch_probe.errors import ConfigError, InconclusiveError, MismatchProbeError
from mismatch_probe.result import check_schema, read_result, to_json
from mismatch_probe.trace.parts import read_table
from mismatch_probe.trace.run_directory import RunDirectory

HISTORY_SCHEMA_VERSION = 1
Basis = Literal["version", "model", "name", "time"]
BASES: tuple[Basis, ...] = ("version", "model", "name", "time")
MEANINGS = {
    "version": "the version of the weights that the rollout recorded",
    "model": "the number in the checkpoint's name",
    "name": "the number in the run's name",
    "time": "the time of the run",
}
FEWEST_FOR_TREND = 5
LEVEL = 0.05
_DEPTH = 2
_STEP = re.compile(r"(?:step|checkpoint|ckpt|iter(?:ation)?|version)s?[-_]?0*(\d+)", re.IGNORECASE)
_NUMBER = re.compile(r"(\d+)")
_VERSION = re.compile(r"[A-Za-z_\- ]*(\d+)")
# What is expected to differ between the checkpoints of one training run.
_EXPECTED = (
    "model.name",
    "model.weights_sha256",
    "model.note",
    "train_model.name",
    "train_model.weights_sha256",
)


@dataclass(frozen=True, slots=True)
class Trend:
    """Whether K3 rises or falls with the step.

    Attributes:
        direction: `rising`, `falling`, `none` (no trend beyond noise) or `unknown`.
        per_step: Factor of K3 a step, Theil-Sen; None where unknown.
        low: Lower end of its 95 % interval.
        high: Upper end.
        p_value: Of Kendall's tau, two-sided.
        num_runs: Runs with a K3 above 0.
        reason: Why it is unknown.
    """

    direction: str
    per_step: float | None
    low: float | None
    high: float | None
    p_value: float | None
    num_runs: int
    reason: str | None = None


@dataclass(frozen=True)
class _Run:
    path: Path
    result: dict[str, Any]
    manifest: Mapping[str, Any]


def read_history(folders: Sequence[Path], step_from: Basis | None = None) -> dict[str, Any]:
    """Reads all measured runs in some folders.

    Args:
        folders: Run directories, or folders that hold them up to two levels down.
        step_from: What a run's step is; None: the first of `BASES` that every run has.

    Returns:
        `rows` by step, `skipped` runs with reasons, `basis`, `trend` and `sentence`.

    Raises:
        ConfigError: A folder that is not there, or none holds a run.
        InconclusiveError: No run could be read.
    """
    runs, skipped = _read_all(folders)
    if not runs:
        why = "; ".join(f"{item['path']}: {item['reason']}" for item in skipped[:3])
        where = ", ".join(map(str, folders))
        raise InconclusiveError(
            f"no measured run could be read: {why}" if why else f"there is no run in {where}",
            hint="a run has a result.json: mismatch-probe measure RUN",
        )
    basis: Basis = step_from or _basis_of(runs)
    rows = []
    for run in runs:
        step = _STEPS[basis](run)
        if step is None:
            skipped.append({"path": str(run.path), "reason": f"no step: {MEANINGS[basis]} is not known"})
        else:
            rows.append((step, run))
    if not rows:
        raise InconclusiveError(f"no run has a step: {MEANINGS[basis]} is not known", hint="--step-from time")
    rows.sort(key=lambda row: (row[0], str(row[1].result["provenance"]["created_at"])))
    content = [_row(step, run) for step, run in rows]
    for (_, before), (_, after), row in zip(rows, rows[1:], content[1:], strict=False):
        settings = changed_settings(before.result, after.result)
        row["changed"] = to_json([item for item in settings if item.key not in _EXPECTED])
    trend = fit_trend([(row["step"], row["k3"]["value"]) for row in content if row["k3"] is not None])
    return {
        "schema_version": HISTORY_SCHEMA_VERSION,
        "basis": basis,
        "basis_meaning": MEANINGS[basis],
        "rows": content,
        "skipped": skipped,
        "trend": to_json(trend),
        "sentence": _sentence(content, trend),
    }


def _basis_of(runs: Sequence[_Run]) -> Basis:
    """The first basis that gives every run a step; the time at the worst."""
    return next((name for name in BASES if all(_STEPS[name](run) is not None for run in runs)), "time")


def fit_trend(points: Sequence[tuple[float, float | None]]) -> Trend:
    """Whether K3 has a trend: Kendall's tau of K3 and step, and the Theil-Sen slope of log K3 (scipy.stats).

    Both look at runs only: a run's own interval plays no part, so that a few odd runs do not make a trend.

    Args:
        points: Step and K3 in nats; runs without a K3 above 0 are left out.
    """
    from scipy.stats import kendalltau, theilslopes

    known = [(step, value) for step, value in points if value is not None and value > 0]
    if len(known) < FEWEST_FOR_TREND:
        counted = f"{len(known)} run{'' if len(known) == 1 else 's'}"
        reason = f"{counted} with a K3 above 0: a trend needs {FEWEST_FOR_TREND}"
        return Trend("unknown", None, None, None, None, len(known), reason)
    steps, logs = np.array([step for step, _ in known]), np.log([value for _, value in known])
    if np.ptp(steps) == 0:
        return Trend("unknown", None, None, None, None, len(known), "all runs have one step")
    fit, p_value = theilslopes(logs, steps), float(kendalltau(steps, logs).pvalue)
    slope = float(fit.slope)
    direction = "none" if p_value >= LEVEL or slope == 0 else "rising" if slope > 0 else "falling"
    low, high = math.exp(float(fit.low_slope)), math.exp(float(fit.high_slope))
    return Trend(direction, math.exp(slope), low, high, p_value, len(known))


def _read_all(folders: Sequence[Path]) -> tuple[list[_Run], list[dict[str, str]]]:
    runs, skipped = [], []
    for path in _run_folders(folders):
        try:
            result = read_result(path / "result.json")
            check_schema(result, path / "result.json")
            runs.append(_Run(path, result, RunDirectory.open_existing(path).read_manifest()))
        except MismatchProbeError as error:
            skipped.append({"path": str(path), "reason": error.message})
    return runs, skipped


def _run_folders(folders: Sequence[Path]) -> list[Path]:
    """Folders with a manifest or a result, each once."""
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is no folder", hint="give a folder with run directories in it")
        for depth in range(_DEPTH + 1):
            for name in ("result.json", "manifest.json"):
                for path in sorted(folder.glob("/".join(["*"] * depth + [name]))):
                    found.setdefault(path.parent.resolve(), path.parent)
    return list(found.values())


def _version(run: _Run) -> float | None:
    """The version of the weights, where every response of the first part names one number."""
    import pyarrow as pa

    try:
        held = RunDirectory(run.path)
        table = read_table(
            held.checked(held.rollout_part(0)), pa.schema([pa.field("weight_version", pa.string())])
        )
    except MismatchProbeError:
        return None
    named = set(table["weight_version"].to_pylist())
    # A hash or 1.2 is no step.
    match = _VERSION.fullmatch(str(named.pop())) if len(named) == 1 else None
    return None if match is None else float(match[1])


def _last_number(text: str) -> float | None:
    found = _NUMBER.findall(text)
    return float(found[-1]) if found else None


def _in_name(text: str) -> float | None:
    found = _STEP.findall(text)
    return float(found[-1]) if found else None


def _model(run: _Run) -> float | None:
    model = run.manifest.get("model") or {}
    step = _in_name(str(model.get("path") or ""))
    return _in_name(str(model.get("name") or "")) if step is None else step


def _name(run: _Run) -> float | None:
    name = run.path.resolve().name
    step = _in_name(name)
    return _last_number(name) if step is None else step


def _time(run: _Run) -> float | None:
    from datetime import datetime

    try:
        return datetime.fromisoformat(str(run.result["provenance"]["created_at"])).timestamp()
    except ValueError:
        return None


_STEPS: dict[Basis, Callable[[_Run], float | None]] = {
    "version": _version,
    "model": _model,
    "name": _name,
    "time": _time,
}


def _row(step: float, run: _Run) -> dict[str, Any]:
    result = run.result
    token, sequence, routing = result["token"], result["sequence"], result["routing"]
    measured = token.get("available") is not False
    return {
        "step": step,
        "run": run.path.resolve().name,
        "path": str(run.path),
        "created_at": result["provenance"]["created_at"],
        "model": result["provenance"]["model"]["name"],
        "verdict": result["verdict"],
        "exit_code": result["exit_code"],
        "num_tokens": result["provenance"]["num_tokens"],
        "reason": None if measured else token["reason"],
        "k3": token["k3"] if measured else None,
        "mean_abs_log_ratio": token["mean_abs_log_ratio"] if measured else None,
        "kappa": sequence["length_law"]["kappa"] if measured else None,
        "ess": sequence["ess"] if measured else None,
        "k_hat": sequence["k_hat"] if measured else None,
        "flip_rate": routing.get("token_any_flip_rate"),
        "findings": [item["code"] for item in result["findings"] if item["severity"] == "error"],
        "changed": [],
    }


def _sentence(rows: Sequence[Mapping[str, Any]], trend: Trend) -> str:
    drifting = sum(row["verdict"] == "drift" for row in rows)
    start = f"{len(rows)} run{'' if len(rows) == 1 else 's'}, {drifting} with drift"
    if trend.direction == "unknown":
        return f"{start}; no trend is claimed: {trend.reason}."
    if trend.direction == "none":
        return f"{start}; K3 has no trend beyond noise (Kendall's p {trend.p_value:.2g})."
    steps = [row["step"] for row in rows if row["k3"] is not None and row["k3"]["value"]]
    factor = (trend.per_step or 1.0) ** (steps[-1] - steps[0])
    told = f"{factor:.3g} times from the first step to the last (Kendall's p {trend.p_value:.2g})"
    mixed = ", though settings changed along the way" if any(row["changed"] for row in rows) else ""
    return f"{start}; K3 is {trend.direction}: {told}{mixed}."
