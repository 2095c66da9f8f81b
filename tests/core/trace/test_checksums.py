"""A part that was changed after it was written is found, whoever reads it."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from mismatch_probe.errors import RunDirectoryError
from mismatch_probe.trace.checksums import JOURNAL, file_sha256
from mismatch_probe.trace.parts import read_table, write_routing, write_table
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.schema import SCHEMA_VERSION, score_schema


def table(value: float = -0.5) -> pa.Table:
    columns = {"sequence_id": [1], "logprobs": [[value] * 50], "entropy": [None]}
    return pa.table(columns, schema=score_schema())


@pytest.fixture
def run(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    run.write_manifest({"schema_version": SCHEMA_VERSION})
    for part in range(3):
        write_table(run.score_part("train/forward", part), table(), run.note_part)
    routes = [np.zeros((4, 2, 2), np.int16)]
    write_routing(run.routing_part("rollout/decode", 0), routes, [1], note=run.note_part)
    return run


def parts(run):
    return sorted(path for path in run.path.rglob("part-*"))


def change(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("where", ["journal", "manifest"])
def test_every_changed_byte_is_found(run, where):
    if where == "manifest":
        run.take_checksums()
        assert not (run.path / JOURNAL).exists()
        assert run.read_manifest()["parts"] == {
            path.relative_to(run.path).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in parts(run)
        }
    for path in parts(run):
        assert run.checked(path) == path
        whole = path.read_bytes()
        for place in range(0, len(whole), 7):
            change(path, place)
            with pytest.raises(RunDirectoryError, match="changed after it was written"):
                RunDirectory(run.path).checked(path)
            path.write_bytes(whole)
        path.write_bytes(whole[:-1])
        with pytest.raises(RunDirectoryError, match=path.name):
            run.checked(path)


def test_the_hint_says_what_can_be_made_again(run):
    for path, mend in ((parts(run)[0], "--force"), (parts(run)[-1], "--resume")):
        change(path, 9)
        with pytest.raises(RunDirectoryError) as caught:
            run.checked(path)
        assert mend in str(caught.value.hint)


def test_a_value_that_still_reads_is_found(run):
    path = run.score_part("train/forward", 1)
    write_table(path, table(-0.25))
    assert read_table(path, score_schema()).num_rows == 1
    with pytest.raises(RunDirectoryError, match="part-00001"):
        run.checked(path)


def test_a_part_may_be_written_again(run):
    run.take_checksums()
    path = run.score_part("train/forward", 1)
    before = path.read_bytes()
    write_table(path, table(-0.25), run.note_part)
    run.checked(path)
    # A process killed between noting the new part and naming it leaves the old one.
    after = path.read_bytes()
    path.write_bytes(before)
    run.checked(path)
    path.write_bytes(after)
    run.take_checksums()
    run.checked(path)
    path.write_bytes(before)
    with pytest.raises(RunDirectoryError):
        run.checked(path)


def test_a_part_without_a_checksum_is_left_to_its_reader(run):
    path = run.score_part("train/repeat", 0)
    assert run.checked(path) == path
    write_table(path, table())
    change(path, 60)
    run.checked(path)


def test_a_line_that_a_full_disk_cut_off_is_no_line(run):
    journal = run.path / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-20])
    path = run.score_part("train/forward", 3)
    write_table(path, table(), run.note_part)
    run.take_checksums()
    assert run.read_manifest()["parts"]["scores/train/forward/part-00003.parquet"] == file_sha256(path)


WRITER = """
import sys
from pathlib import Path
import pyarrow as pa
from mismatch_probe.trace.parts import write_table
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.schema import score_schema

run, worker = RunDirectory(Path(sys.argv[1])), int(sys.argv[2])
for part in range(worker, 40, 4):
    columns = {"sequence_id": [part], "logprobs": [[-0.5] * 50], "entropy": [None]}
    write_table(run.score_part("train/forward", part), pa.table(columns, schema=score_schema()), run.note_part)
    if part % 10 == 0:
        run.take_checksums()
"""


def test_processes_that_write_at_once_lose_no_checksum(run):
    workers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(run.path), str(worker)]) for worker in range(4)
    ]
    assert [worker.wait() for worker in workers] == [0] * 4
    run.take_checksums()
    held = run.read_manifest()["parts"]
    assert held == {path.relative_to(run.path).as_posix(): file_sha256(path) for path in parts(run)}
    assert len(held) == 41


def test_the_journal_is_one_of_sha256sum(run):
    subprocess.run(
        ["sha256sum", "--check", "--strict", JOURNAL], cwd=run.path, check=True, stdout=subprocess.DEVNULL
    )


@pytest.mark.parametrize("held", [[], "x", {"a": 1}, 3])
def test_a_manifest_without_checksums_where_they_should_be_is_damaged(run, held):
    manifest = {**run.read_manifest(), "parts": held}
    run.manifest_path.write_text(json.dumps(manifest))
    with pytest.raises(RunDirectoryError, match="damaged"):
        run.checked(parts(run)[0])
    with pytest.raises(RunDirectoryError, match="damaged"):
        run.take_checksums()
