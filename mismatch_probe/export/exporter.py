"""Exporters by name, and what every one of them refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.export.annotated import Entry
from mismatch_probe.registry import Registry

if TYPE_CHECKING:
    from mismatch_probe.export.effect import ConfigEffect
    from mismatch_probe.simulate.responses import Responses
    from mismatch_probe.weights import WeightMethod

# What is written, in this order, where a framework cannot express what the run recommends.
_STAND_INS = ("token_tis", "prime_dppo")


@dataclass(frozen=True, slots=True)
class ExportedConfig:
    """A config fragment.

    Attributes:
        text: Each key's comment names the measurement that set it.
        format: "yaml", "toml", or "bash" for an array of command-line arguments.
        notes: What the framework cannot express, and what was forced.
        entries: The keys by themselves, for merging into an existing file.
        contents: What the weights contain in this framework's recipe.
        applies: What the framework does with these keys, as methods coded and set as there; phi is their product.
        effect: What that does to the run's tokens; None where they were not given.
    """

    text: str
    format: str
    notes: tuple[str, ...] = ()
    entries: tuple[Entry, ...] = ()
    contents: str = ""
    applies: tuple[WeightMethod, ...] = ()
    effect: ConfigEffect | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What an exporter is to write.

    Attributes:
        method: Name of the correction.
        parameters: Hyperparameters that the recommendation names.
        routing_replay: Whether the trainer is to use the rollout's experts.
        fp32_head: Whether the output head is to be computed in float32.
        summary: The recommendation in a sentence.
        instead_of: What the run recommends and the framework cannot express; None where `method` is the choice.
        responses: The run's tokens, to say what the config does to them; None leaves that out.
    """

    method: str
    parameters: Mapping[str, Any]
    routing_replay: bool
    fp32_head: bool
    summary: str
    instead_of: str | None = None
    responses: Responses | None = None


class Exporter(Protocol):
    """Writes one framework's config."""

    def __call__(self, result: Mapping[str, Any], plan: Plan) -> ExportedConfig:
        """Turns result.json and a plan into a config.

        Raises:
            ConfigError: The framework cannot express the method.
        """
        ...


def _load_own() -> None:
    from importlib import import_module

    # Each registers itself.
    for name in (
        "areal",
        "mis",
        "ms_swift",
        "nemo_rl",
        "openrlhf",
        "prime_rl",
        "roll",
        "skyrl",
        "slime",
        "trl",
        "verl",
        "vespo_recipe",
    ):
        import_module(f"mismatch_probe.export.{name}")


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
    goal: str | None = None,
    force: bool = False,
    responses: Responses | None = None,
) -> ExportedConfig:
    """A training config that fits what was measured.

    Args:
        result: result.json; its section `recommendation` says what is written.
        to: One of `available_exporters()`.
        method: A correction other than the recommended one. Without one, a framework that cannot express the
            recommended correction gets token truncation, or what comes next to it there, and a note says so.
        goal: What the correction is to serve, where it is not the goal that the run was measured for.
        force: Whether to export a run that failed validity or was inconclusive.
        responses: The run's tokens; with them the config's heading says what it does to them.

    Raises:
        ConfigError: Unknown framework, method or goal, the framework cannot express the method, the run failed validity, or
            it was measured by a version that recommends nothing for the goal.
        InconclusiveError: The run's verdict is inconclusive.
    """
    from mismatch_probe.weights import get_method

    exporter = exporters.get(to).item
    warnings = _objections(result, force=force)
    recommended = _for_goal(result, goal)
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
        responses=responses,
    )
    try:
        exported = exporter(result, plan)
    except ConfigError as refusal:
        if method is not None:
            raise
        exported = _stand_in(exporter, result, plan, refusal)
    return replace(exported, notes=warnings + exported.notes)


def read_contents(result: Mapping[str, Any], to: str) -> str:
    """What the weights contain where the config of the recommended correction, or of what stands in for it, is used.

    Args:
        result: result.json with its recommendation.
        to: One of `available_exporters()`.
    """
    try:
        return export_config(result, to, force=True).contents
    except ConfigError as refusal:
        return f"not written: {refusal.message}"


def _for_goal(result: Mapping[str, Any], goal: str | None) -> Mapping[str, Any]:
    """The recommendation with the correction that serves a goal."""
    recommended = result.get("recommendation")
    if not isinstance(recommended, Mapping) or "actions" not in recommended:
        raise ConfigError(
            "this result has no recommendation",
            hint="mismatch-probe measure RUN works it out from the run's tokens",
        )
    if goal is None or goal == recommended.get("goal"):
        return recommended
    choices = recommended.get("goals") or {}
    if goal not in choices:
        if choices:
            raise ConfigError(f"unknown goal {goal!r}", hint=f"known: {', '.join(choices)}")
        raise ConfigError(
            f"this run has no choice for the goal {goal!r}: it agrees in every bit, failed validity, or is an older result",
            hint="leave the goal out, or work the choice out: mismatch-probe recommend RUN",
        )
    choice = choices[goal]
    candidate = (recommended.get("candidates") or {}).get(choice.get("chosen")) or {}
    summary = f"For {goal}: {candidate.get('label')}, {choice.get('because')}."
    return {
        **recommended,
        "method": candidate.get("method", "ppo_clip"),
        "parameters": candidate.get("parameters") or {},
        "summary": summary,
    }


def _stand_in(
    exporter: Exporter, result: Mapping[str, Any], plan: Plan, refusal: ConfigError
) -> ExportedConfig:
    """The first method that the framework can express, with a note of what was recommended."""
    for method in _STAND_INS:
        note = f"{refusal.message}; {method} was written in its place"
        try:
            exported = exporter(result, replace(plan, method=method, parameters={}, instead_of=plan.method))
        except ConfigError:
            continue
        return replace(exported, notes=(note, *exported.notes))
    raise refusal


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
