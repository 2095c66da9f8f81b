"""Reading what to do about a run must not need torch or a plotting library."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("package", ["mismatch_probe.export", "mismatch_probe.simulate"])
def test_importing_stays_cheap(package: str) -> None:
    code = (
        f"import sys, pkgutil, importlib, {package} as p\n"
        "[importlib.import_module(m.name) for m in pkgutil.walk_packages(p.__path__, p.__name__ + '.')]\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'scipy', 'transformers', 'matplotlib', 'yaml')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
