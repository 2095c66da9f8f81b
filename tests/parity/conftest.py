"""The parity tests compare with the real TRL and verl; without them they fail and say what to install."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from parity.batches import discrepancy
from parity.installed import require
from parity.measured import Run, planted_run
from parity.table import documented

HERE = Path(__file__).parent
# What TRL and verl say of their own surroundings at import and at use.
NOISE = (
    "ignore:TRL currently supports vLLM versions:UserWarning",
    "ignore:You are using 'rollout_func':UserWarning",
    "ignore:set sequence parallel to false:UserWarning",
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning",
)
Agree = Callable[..., None]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("parity")
            for words in NOISE:
                item.add_marker(pytest.mark.filterwarnings(words))


@pytest.fixture(scope="session", autouse=True)
def frameworks() -> None:
    require()


@pytest.fixture(scope="session")
def documented_rows() -> set[tuple[str, str, str]]:
    return documented()


@pytest.fixture
def agree(
    record_property: Callable[[str, object], None], documented_rows: set[tuple[str, str, str]]
) -> Agree:
    """Asserts that two gradients agree, and records by how much they differ for the table of docs/parity.md."""

    def check(row: str, theirs: torch.Tensor, ours: torch.Tensor, within: float) -> None:
        found = discrepancy(theirs, ours)
        record_property("|".join((row, str(theirs.dtype).removeprefix("torch."))), found)
        framework, function, method, _ = row.split("|")
        assert (framework, function, method) in documented_rows, f"docs/parity.md lacks {row}; see table.py"
        assert found <= within, f"{row}: {found:.2e} apart, {within:.0e} allowed"

    return check


@pytest.fixture
def dtype_of_numbers(dtype: torch.dtype) -> Iterator[None]:
    """TRL makes tensors of the sampled log-probabilities, which are Python numbers, in torch's default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A measured run whose drift makes every cap, band and clip act."""
    run = planted_run(tmp_path_factory.mktemp("round_trip"))
    assert run.result["data_quality"]["trusted"]
    return run
