"""Running this package under the interpreter of another environment, which does not have it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import mismatch_probe


def foreign_environment(folder: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process of another interpreter that can import this package and nothing else from here.

    Args:
        folder: Where a link to the package is put; it has to outlive the process.
        environment: What the process would get under this interpreter.
    """
    package = Path(mismatch_probe.__file__).parent
    link = folder / package.name
    if not link.exists():
        link.symlink_to(package, target_is_directory=True)
    # Only the link: what else stands on this environment's path is built for this environment.
    kept = {key: value for key, value in environment.items() if key not in ("PYTHONHOME", "VIRTUAL_ENV")}
    return {**kept, "PYTHONPATH": str(folder)}
