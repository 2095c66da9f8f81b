"""How the suite is spread over worker processes (`pytest -n 2 --dist loadfile --no-loadscope-reorder`).

Tests of one file stay together, since they share fixtures; the one real audit that several files share is made once in each
process. Real engines come first: they are what takes the time, and the small tests then fill the other worker.
"""

import os

# Before torch or numpy is imported: two workers that each spin on every core are slower than one.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

_SHARED_AUDIT = "embedded"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the tests of real engines first, and among them those that share the audit."""
    shared = {item.path for item in items if _SHARED_AUDIT in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: (item.path.parent.name != "e2e", item.path not in shared))
