"""A training framework as an exporter sees it: which versions its keys hold for, and how its configs are written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from mismatch_probe.errors import ConfigError, MismatchProbeError
from mismatch_probe.export.annotated import Entry, comment, overrides, render, render_arguments, render_toml
from mismatch_probe.export.applied.keys import Methods
from mismatch_probe.export.effect import expected_effect
from mismatch_probe.export.exporter import ExportedConfig, Plan
from mismatch_probe.export.provenance import heading

WITHOUT_MISMATCH = (
    "The ratio is pi / pi_old, recomputed by the trainer: the mismatch with the rollout engine is not in it."
)
ON_TOP = "The clipped ratio is pi / pi_old; pi_old / mu, the mismatch, is a weight on top of it."
IN_THE_RATIO = (
    "The ratio is pi / mu, mismatch and staleness together: the rollout's log-probabilities are the old ones."
)

Layout = Literal["yaml", "overrides", "toml", "arguments", "hydra"]


@dataclass(frozen=True, slots=True)
class Target:
    """One framework at the versions that its keys were checked against.

    Attributes:
        name: What `export --to` takes.
        title: Name with version, for the first comment.
        fragment: What the text is and where it goes.
        layout: "yaml"; "overrides", which is YAML with KEY=VALUE below it in comments; "toml"; "arguments" or "hydra", a
            bash array of `--key value` or of KEY=VALUE.
        package: Its distribution, to compare the installed version with; None where it has none.
        versions: Prefixes of the versions that the keys hold for.
        history: What the keys were called before, or None.
        loaded: Whether the tests hand the exported text to the framework's own code.
        applied: What the framework does with keys that were written; their phi multiply.
    """

    name: str
    title: str
    fragment: str
    layout: Layout
    package: str | None
    versions: tuple[str, ...]
    history: str | None
    loaded: bool
    applied: Callable[[Iterable[Entry]], Methods]

    def refuse_unless(
        self, plan: Plan, expressible: Iterable[str], reasons: Mapping[str, str] | None = None
    ) -> None:
        """Raises where the framework has no keys for the plan's method.

        Args:
            plan: Whose method is asked for.
            expressible: Methods that the framework can express.
            reasons: What to say of methods that one would expect it to.

        Raises:
            ConfigError: With the reason, and what it can express as the hint.
        """
        known = sorted(set(expressible))
        if plan.method in known:
            return
        reason = (reasons or {}).get(plan.method)
        raise ConfigError(
            f"{self.title} cannot express {plan.method!r}" + (f": {reason}" if reason else ""),
            hint=f"it can express {', '.join(known)}",
        )

    def version_notes(self) -> list[str]:
        """A warning where another version is installed here than the keys were checked against."""
        if self.package is None:
            return []
        try:
            installed = version(self.package)
        except PackageNotFoundError:
            return []
        if any(installed == prefix or installed.startswith(f"{prefix}.") for prefix in self.versions):
            return []
        return [
            f"{self.package} {installed} is installed here; the keys were checked against {', '.join(self.versions)}"
        ]

    def write(
        self,
        result: Mapping[str, Any],
        plan: Plan,
        contents: str,
        entries: Iterable[Entry],
        notes: Iterable[str],
        *,
        below: Iterable[str] = (),
    ) -> ExportedConfig:
        """Lays a config out.

        Args:
            result: result.json, for the heading.
            plan: The plan; with responses the heading says what the config does to them.
            contents: What the weights contain, for the heading.
            entries: Keys; those of one parent follow each other.
            notes: What cannot be expressed, without a full stop.
            below: Finished comment lines for the end.
        """
        listed = tuple(entries)
        said = [*notes, *self.version_notes()]
        head = heading(result, plan, f"{self.title}: {self.fragment}", contents)
        applies = self.applied(listed)
        effect = None
        if plan.responses is not None:
            try:
                effect = expected_effect(applies, plan.responses)
                head.append(effect.sentence())
            except MismatchProbeError as error:
                # A config is no worse for it, and a ConfigError here would read as "cannot express".
                said.append(f"what this config does to the run's tokens is not known: {error.message}")
        if self.history:
            head.append(self.history)
        tail = [f"Note: {note}." for note in said]
        if self.layout == "toml":
            text = render_toml(head, listed, tail)
        elif self.layout in ("arguments", "hydra"):
            text = render_arguments(head, listed, tail, hydra=self.layout == "hydra")
        else:
            text = render(head, listed, tail)
        lines = list(below)
        if self.layout == "overrides":
            lines = [
                *comment("The same on the command line:"),
                *(f"#   {line}" for line in overrides(listed)),
                *lines,
            ]
        text += "".join(f"{line}\n" for line in lines)
        kinds = {"toml": "toml", "arguments": "bash", "hydra": "bash"}
        return ExportedConfig(
            text,
            kinds.get(self.layout, "yaml"),
            tuple(said),
            listed,
            contents,
            applies=applies,
            effect=effect,
        )
