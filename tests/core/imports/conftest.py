"""The golden dumps: files that make_golden.py wrote, so that reading them needs none of the frameworks."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="session")
def golden_module() -> ModuleType:
    """make_golden.py."""
    spec = importlib.util.spec_from_file_location("make_golden", Path(__file__).with_name("make_golden.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_golden"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def golden(golden_module: ModuleType) -> tuple[Path, list[Any]]:
    """The folder of the dumps, and the sequences in them."""
    return Path(__file__).with_name("golden"), golden_module.sequences()
