"""What the shell completes: names that the tool knows and run directories, found without importing an engine."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

MANIFEST = "manifest.json"
# Folders below the one that was typed in which runs are looked for; a deeper search of a home directory is not quick.
FURTHER = 1
Suggestions = list[tuple[str, str]]


def codes(incomplete: str) -> Suggestions:
    """Codes of findings and causes, ids of causes."""
    from mismatch_probe.causes.catalogue import CAUSES
    from mismatch_probe.findings import CATALOGUE

    known = [(code, entry.title) for code, entry in CATALOGUE.items()]
    known += [(name, cause.title) for cause in CAUSES.values() for name in (cause.code, cause.id)]
    return _matching(known, incomplete)


def methods(incomplete: str) -> Suggestions:
    """Corrections."""
    from mismatch_probe.weights.registry import methods as known

    return _matching(((entry.name, entry.summary) for entry in known), incomplete)


def goals(incomplete: str) -> Suggestions:
    """What a correction can serve."""
    from mismatch_probe.recommendation.goals import CRITERIA

    return _matching(((goal, criterion.words) for goal, criterion in CRITERIA.items()), incomplete)


def frameworks(incomplete: str) -> Suggestions:
    """Frameworks whose code is known."""
    from mismatch_probe.weights.presets import FRAMEWORKS

    return _matching(FRAMEWORKS.items(), incomplete)


def engines(incomplete: str) -> Suggestions:
    """Rollout engines."""
    from mismatch_probe.engines.registry import engines as known

    return _matching(((entry.name, entry.summary) for entry in known), incomplete)


def scorers(incomplete: str) -> Suggestions:
    """Training-side scorers."""
    from mismatch_probe.scorers.registry import scorers as known

    return _matching(((entry.name, entry.summary) for entry in known), incomplete)


def sides(incomplete: str) -> Suggestions:
    """Engines and scorers."""
    return list(dict([*scorers(incomplete), *engines(incomplete)]).items())


def knobs(incomplete: str) -> Suggestions:
    """Knobs of an ablation."""
    from mismatch_probe.causes.knobs import KNOBS

    return _matching(((knob.name, knob.changes) for knob in KNOBS), incomplete)


def exporters(incomplete: str) -> Suggestions:
    """Frameworks that settings can be written for, and the drift profile."""
    from mismatch_probe.drift.profile import EXPORT_NAME
    from mismatch_probe.export.exporter import exporters as known

    names = [(entry.name, entry.summary) for entry in known]
    return _matching([*names, (EXPORT_NAME, "the measured drift, to be injected again")], incomplete)


def importers(incomplete: str) -> Suggestions:
    """Frameworks whose dumps can be read."""
    from mismatch_probe.imports.importer import importers as known

    return _matching(((entry.name, entry.summary) for entry in known), incomplete)


def models(incomplete: str) -> Suggestions:
    """Models that come with the tool, and geometries."""
    from mismatch_probe.assets.catalog import available_models

    return _matching(available_models().items(), incomplete)


def runs(incomplete: str) -> list[str]:
    """Run directories whose path begins with what was typed: in that folder and right below it."""
    start = incomplete.rpartition("/")[2]
    # The shell replaces what was typed, so the suggestion has to begin with the same characters.
    typed = incomplete[: len(incomplete) - len(start)]
    return sorted(typed + run for run in _runs_below(Path(typed or "."), start, FURTHER))


def _runs_below(folder: Path, start: str, further: int) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            folders = [entry.name for entry in entries if entry.name.startswith(start) and entry.is_dir()]
    except OSError:
        return
    for name in folders:
        if name.startswith(".") and not start:
            continue
        if (folder / name / MANIFEST).is_file():
            yield name
        elif further:
            yield from (f"{name}/{below}" for below in _runs_below(folder / name, "", further - 1))


def _matching(known: Iterable[tuple[str, str]], incomplete: str) -> Suggestions:
    return [(name, text) for name, text in known if name.startswith(incomplete)]
