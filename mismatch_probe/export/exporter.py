"""Exporters by name, and what every one of them refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.export.recommend import recommend
from mismatch_probe.registry import Registry


@dataclass(frozen=True, slots=True)
class ExportedConfig:
    """A config fragment.

    Attributes:
        text: YAML; each key's comment names the measurement that set it.
        format: Always "yaml" here.
        notes: What the framework cannot express, and what was forced.
    """

    text: str
    format: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What an exporter is to write.

    Attributes:
        method: Name of the correction.
        parameters: Hyperparameters that the recommendation names.
        routing_replay: Whether the trainer is to use the rollout's experts.
        fp32_head: Whether the output head is to be computed in float32.
        summary: The recommendation in a sentence.
    """

    method: str
    parameters: Mapping[str, Any]
    routing_replay: bool
    fp32_head: bool
    summary: str


class Exporter(Protocol):
    """Writes one framework's config."""

    def __call__(self, result: Mapping[str, Any], plan: Plan) -> ExportedConfig:
        """Turns result.json and a plan into a config.

        Raises:
            ConfigError: The framework cannot express the method.
        """
        ...


def _load_own() -> None:
    import mismatch_probe.export.trl
    import mismatch_probe.export.verl  # noqa: F401  (each registers itself)


exporters: Registry[Exporter] = Registry("framework", "mismatch_probe.exporters", _load_own)


def register_exporter(name: str, *, summary: str) -> Callable[[Exporter], Exporter]:
    """Decorates a function so that `export --to NAME` finds it."""

    def register(exporter: Exporter) -> Exporter:
        exporters.add(name, exporter, summary)
        return exporter

    return register


def available_exporters() -> tuple[str, ...]:
    """The names of all frameworks, sorted."""
    return tuple(entry.name for entry in exporters)


def export_config(
    result: Mapping[str, Any],
    to: str,
    *,
    method: str | None = None,
    force: bool = False,
) -> ExportedConfig:
    """A training config that fits what was measured.

    Args:
        result: result.json.
        to: One of `available_exporters()`.
        method: A correction other than the recommended one.
        force: Whether to export a run that failed validity or was inconclusive.

    Raises:
        ConfigError: Unknown framework or method, the framework cannot express the method, or the run failed
            validity.
        InconclusiveError: The run's verdict is inconclusive.
    """
    from mismatch_probe.weights import get_method

    exporter = exporters.get(to).item
    warnings = _objections(result, force=force)
    recommended = result.get("recommendation")
    if not isinstance(recommended, Mapping) or "actions" not in recommended:
        recommended = recommend(result)
    chosen = method or recommended.get("method")
    if chosen is None:
        # Only a forced export of a broken run comes here: its numbers recommend nothing.
        chosen = "token_tis"
        warnings += ("the run recommends no correction; token TIS was written",)
    get_method(chosen)
    same = method is None or method == recommended.get("method")
    plan = Plan(
        method=chosen,
        parameters=dict(recommended.get("parameters") or {}) if same else {},
        routing_replay=bool(recommended.get("routing_replay")),
        fp32_head=bool(recommended.get("fp32_head")),
        summary=str(recommended.get("summary") or ""),
    )
    exported = exporter(result, plan)
    return ExportedConfig(exported.text, exported.format, warnings + exported.notes)


def _objections(result: Mapping[str, Any], *, force: bool) -> tuple[str, ...]:
    """Why the numbers of a run are no basis for a config: raised, or returned as notes when forced."""
    quality = result.get("data_quality") or {}
    failed = [
        f"{check.get('code')} {check.get('name')}"
        for check in quality.get("checks") or []
        if check.get("status") == "fail" and check.get("severity") != "info"
    ]
    if not quality.get("trusted", False):
        reason = "the run failed validity" + (f": {', '.join(failed)}" if failed else "")
        if not force:
            raise ConfigError(
                f"{reason}; numbers measured on it would set wrong thresholds",
                hint="mend what the findings name and audit again, or export with force",
            )
        return (f"forced: {reason}",)
    if result.get("verdict") not in ("pass", "drift"):
        reason = f"the run's verdict is {result.get('verdict')}"
        if not force:
            raise InconclusiveError(
                f"{reason}; there is nothing to fit thresholds to",
                hint="use more prompts or longer responses, or export with force",
            )
        return (f"forced: {reason}",)
    return ()
