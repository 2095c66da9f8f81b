"""The parity tests compare with the real TRL and verl; without them they fail and say what to install."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from parity.batches import discrepancy
from parity.installed import require

HERE = Path(__file__).parent
Agree = Callable[..., None]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("parity")


@pytest.fixture(scope="session", autouse=True)
def frameworks() -> None:
    require()


@pytest.fixture
def agree(record_property: Callable[[str, object], None]) -> Agree:
    """Asserts that two gradients agree, and records by how much they differ for the table of docs/parity.md."""

    def check(row: str, theirs: torch.Tensor, ours: torch.Tensor, within: float) -> None:
        found = discrepancy(theirs, ours)
        record_property("|".join((row, str(theirs.dtype).removeprefix("torch."))), found)
        assert found <= within, f"{row}: {found:.2e} apart, {within:.0e} allowed"

    return check
