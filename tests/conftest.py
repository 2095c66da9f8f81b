"""How the suite is spread over worker processes (`pytest -n 2 --dist loadgroup --no-loadscope-reorder`).

Tests of one file stay together, since they share fixtures. All files that use the one shared real audit are one group, so
that it is made once. Real engines come first: they are what takes the time, and the small tests then fill the other worker.
"""

import os

# Before torch or numpy is imported: two workers that each spin on every core are slower than one.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

_SHARED_AUDIT = "embedded"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts the tests of real engines first and names each test's group."""
    shared = {item.path for item in items if _SHARED_AUDIT in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: (item.path not in shared, item.path.parent.name != "e2e"))
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            item.add_marker(pytest.mark.xdist_group(_SHARED_AUDIT if item.path in shared else str(item.path)))
