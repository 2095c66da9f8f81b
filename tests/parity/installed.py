"""That the frameworks are there, at the versions that the documentation speaks of."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "requirements" / "parity.txt"


def pinned() -> dict[str, str]:
    """Version by package, as of requirements/parity.txt."""
    return dict(re.findall(r"^([\w-]+)==(\S+)$", REQUIREMENTS.read_text(encoding="utf-8"), re.MULTILINE))


def require() -> None:
    """Raises a RuntimeError that says what to run where a package is missing or of another version."""
    wrong = []
    for name, version in pinned().items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            found = "none"
        if found != version:
            wrong.append(f"{name}=={version} (found: {found})")
    if wrong:
        raise RuntimeError(
            f"the parity tests run other projects' code and need {', '.join(wrong)}; `make test` installs it, or "
            "`uv pip install --no-deps -r requirements/parity.txt`"
        )
