"""Keep-sets on disk: what was written is what is read, and nothing else passes."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from mismatch_probe.errors import RunDirectoryError
from mismatch_probe.trace.keep_sets import KeepSet, read_keep_sets, write_keep_sets

RESPONSES = [[4, 7, 7], [], [2]]


def keep_set(rows):
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return KeepSet(np.array([token for row in rows for token in row], dtype=np.int32), offsets)


SETS = [keep_set([[4, 1], [7], [3, 7, 9]]), keep_set([]), keep_set([[2, 5]])]


@pytest.fixture
def part(tmp_path):
    path = tmp_path / "part.safetensors"
    write_keep_sets(path, SETS, [10, 11, 12])
    return path


def test_what_is_written_is_read(part):
    for read, written in zip(read_keep_sets(part, [10, 11, 12], RESPONSES), SETS, strict=True):
        assert np.array_equal(read.ids, written.ids) and np.array_equal(read.offsets, written.offsets)


@given(
    st.lists(st.lists(st.sets(st.integers(0, 40), min_size=1), max_size=6), min_size=1, max_size=5),
    st.randoms(),
)
def test_any_sets_come_back(tmp_path_factory, sets, random):
    path = tmp_path_factory.mktemp("sets") / "part.safetensors"
    responses = [[random.choice(sorted(row)) for row in rows] for rows in sets]
    write_keep_sets(path, [keep_set([sorted(row) for row in rows]) for rows in sets], range(len(sets)))
    read = read_keep_sets(path, range(len(sets)), responses)
    for got, rows in zip(read, sets, strict=True):
        pieces = [got.ids[a:b] for a, b in pairwise(got.offsets)]
        assert [set(piece.tolist()) for piece in pieces] == rows


@pytest.mark.parametrize(
    ("response", "says"),
    [([4, 7], "covers 3 of 2"), ([4, 7, 8], "position 2"), ([1, 4, 7], "position 1"), ([4, 7, 9], None)],
)
def test_a_set_without_the_drawn_id_is_no_keep_set(response, says):
    problem = SETS[0].problem(response)
    assert problem is None if says is None else says in problem


def test_other_responses_and_other_sequences_are_refused(part):
    with pytest.raises(RunDirectoryError, match="sequence 10: the id drawn at response position 0"):
        read_keep_sets(part, [10, 11, 12], [[9, 7, 7], [], [2]])
    with pytest.raises(RunDirectoryError, match="other sequences"):
        read_keep_sets(part, [10, 11, 13], RESPONSES)


def spoil(tensors, name, change):
    return {**tensors, name: change(tensors[name])}


@pytest.mark.parametrize(
    "broken",
    [
        lambda t: {k: v for k, v in t.items() if k != "counts"},
        lambda t: spoil(t, "ids", lambda ids: ids[:-1]),
        lambda t: spoil(t, "counts", lambda counts: counts[:-1]),
        lambda t: spoil(t, "counts", lambda counts: counts * 0),
        lambda t: spoil(t, "tokens", lambda tokens: tokens - 2),
    ],
)
def test_a_damaged_part_is_refused(part, broken):
    save_file(broken(load_file(part)), part)
    with pytest.raises(RunDirectoryError, match="damaged"):
        read_keep_sets(part, [10, 11, 12], RESPONSES)


def test_a_file_cut_short_is_refused(part):
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(RunDirectoryError, match="damaged"):
        read_keep_sets(part, [10, 11, 12], RESPONSES)
