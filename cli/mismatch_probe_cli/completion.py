"""What the shell completes: names that the tool knows and run directories, found without importing an engine."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

MANIFEST = "manifest.json"
Suggestions = list[tuple[str, str]]


def codes(incomplete: str) -> Suggestions:
    """Codes of findings and causes, ids of causes."""
    from mismatch_probe.causes.catalogue import CAUSES
    from mismatch_probe.findings import CATALOGUE

    known = [(code, entry.title) for code, entry in CATALOGUE.items()]
    known += [(name, cause.title) for cause in CAUSES.values() for name in (cause.code, cause.id)]
    wanted = incomplete.upper() if incomplete.lower().startswith("mp") else incomplete
    return _matching(known, wanted)


def methods(incomplete: str) -> Suggestions:
    """Corrections."""
    from mismatch_probe.weights.registry import methods as known

    return _matching(((entry.name, entry.summary) for entry in known), incomplete)


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


def runs(incomplete: str) -> list[str]:
    """Run directories, and directories on the way to one; the shell adds nothing to what is not there."""
    typed = Path(incomplete)
    folder, start = (typed, "") if incomplete.endswith("/") or not incomplete else (typed.parent, typed.name)
    # Path drops "./", which the shell needs to recognise what was typed.
    prefix = incomplete[: len(incomplete) - len(start)]
    try:
        below = sorted(path for path in folder.iterdir() if path.name.startswith(start) and path.is_dir())
    except OSError:
        return []
    visible = [path for path in below if start or not path.name.startswith(".")]
    found = []
    for path in visible:
        if (path / MANIFEST).is_file():
            found.append(prefix + path.name)
        elif _holds_run(path):
            found.append(prefix + path.name + "/")
    return found


def _holds_run(folder: Path) -> bool:
    """Whether a run is right below, or one folder further; no deeper search, for it has to be quick."""
    try:
        return any(next(folder.glob(pattern), None) for pattern in (f"*/{MANIFEST}", f"*/*/{MANIFEST}"))
    except OSError:
        return False


def _matching(known: Iterable[tuple[str, str]], incomplete: str) -> Suggestions:
    return [(name, text) for name, text in known if name.startswith(incomplete)]
