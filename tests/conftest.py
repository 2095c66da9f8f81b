"""How the suite is spread over worker processes (`pytest -n 2 --dist loadfile --no-loadscope-reorder`).

Tests of one file stay together, since they share fixtures. Real engines come first: they are what takes the time, and the small
tests then fill the other worker. Files that need the one shared audit take turns with those that do not, so that one worker
makes it while the other has something else to do.
"""

import os

# Before torch or numpy is imported: two workers that each spin on every core are slower than one.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest

_SHARED_AUDIT = "embedded"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the tests of real engines first, and among them those that share the audit."""
    shared = {item.path for item in items if _SHARED_AUDIT in getattr(item, "fixturenames", ())}
    place: dict[Path, tuple[int, bool]] = {}
    for kind in (True, False):
        files = dict.fromkeys(item.path for item in items if (item.path in shared) is kind)
        place |= {path: (number, not kind) for number, path in enumerate(files)}
    items.sort(key=lambda item: (item.path.parent.name != "e2e", *place[item.path]))
