"""The next part is read while this one is worked on, and errors come in their turn."""

from __future__ import annotations

import threading

import pytest

from mismatch_probe.errors import RunDirectoryError
from mismatch_probe.stages.score_work import read_ahead


def test_the_next_part_is_read_meanwhile() -> None:
    started = {part: threading.Event() for part in range(3)}

    def read(part: int) -> str:
        started[part].set()
        return f"part {part}"

    seen = []
    for part, content in read_ahead(read, [0, 1, 2]):
        seen.append((part, content))
        if part < 2:
            assert started[part + 1].wait(timeout=10)
        assert part + 2 not in started or not started[part + 2].is_set()
    assert seen == [(0, "part 0"), (1, "part 1"), (2, "part 2")]
    assert list(read_ahead(read, [])) == []


def test_a_broken_part_stops_at_its_turn() -> None:
    def read(part: int) -> int:
        if part == 1:
            raise RunDirectoryError("part 1 is damaged", hint="score again")
        return part

    seen = []
    with pytest.raises(RunDirectoryError, match="part 1"):
        for part, _ in read_ahead(read, [0, 1, 2]):
            seen.append(part)
    assert seen == [0]
