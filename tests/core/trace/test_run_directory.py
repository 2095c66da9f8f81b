import json
import os
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pytest

from mismatch_probe.errors import RunDirectoryError
from mismatch_probe.trace.parts import (
    part_name,
    read_routing,
    read_routing_part,
    read_table,
    write_atomically,
    write_json,
    write_routing,
    write_table,
)
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.schema import SCHEMA_VERSION, score_schema


def manifest():
    return {"schema_version": SCHEMA_VERSION, "config": {"model": "x"}, "config_set": ["model"]}


def test_a_failed_write_leaves_nothing(tmp_path):
    def fail(path):
        path.write_text("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        write_atomically(tmp_path / "a.json", fail)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_what_was_there(tmp_path):
    target = tmp_path / "a.json"
    write_json(target, {"v": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(target, {"v": float("nan")})
    assert json.loads(target.read_text()) == {"v": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_parts_come_back_as_written(tmp_path):
    table = pa.table(
        {"sequence_id": [1, 2], "logprobs": [[-0.5], []], "entropy": [None, None]}, schema=score_schema()
    )
    write_table(tmp_path / part_name(0, "parquet"), table)
    assert read_table(tmp_path / "part-00000.parquet", score_schema()).equals(table)
    routes = [np.arange(12, dtype=np.int16).reshape(2, 2, 3), np.zeros((0, 2, 3), np.int16)]
    write_routing(tmp_path / "r.safetensors", routes, [4, 5])
    experts, offsets, ids = read_routing(tmp_path / "r.safetensors")
    assert np.array_equal(experts, routes[0])
    assert offsets.tolist() == [0, 2, 2]
    assert ids.tolist() == [4, 5]


def test_gate_weights_and_margins_are_optional(tmp_path):
    path = tmp_path / "r.safetensors"
    routes = [np.arange(12, dtype=np.int16).reshape(2, 2, 3), np.arange(6, dtype=np.int16).reshape(1, 2, 3)]
    write_routing(path, routes, [4, 5])
    assert read_routing_part(path).gates is None and read_routing_part(path).margins is None
    gates = [np.full(ids.shape, 0.25, np.float32) for ids in routes]
    margins = [np.full(ids.shape[:2], np.inf, np.float32) for ids in routes]
    write_routing(path, routes, [4, 5], gates=gates, margins=margins)
    part = read_routing_part(path)
    assert part.gates.dtype == part.margins.dtype == np.float16
    assert part.gates.shape == part.experts.shape and (part.gates == 0.25).all()
    assert part.margins.shape == (3, 2) and np.isinf(part.margins).all()


def test_a_damaged_part_is_a_clear_error(tmp_path):
    path = tmp_path / "part-00000.parquet"
    path.write_bytes(b"PAR1 nothing")
    with pytest.raises(RunDirectoryError, match="damaged"):
        read_table(path, score_schema())
    path.write_bytes(b"x" * 40)
    with pytest.raises(RunDirectoryError, match="damaged"):
        read_routing(path)


def test_a_missing_column_is_a_clear_error(tmp_path):
    path = tmp_path / "part-00000.parquet"
    write_table(path, pa.table({"sequence_id": [1]}))
    with pytest.raises(RunDirectoryError, match="another version"):
        read_table(path, score_schema())


def test_a_run_is_not_overwritten_unasked(tmp_path):
    run = RunDirectory(tmp_path / "run")
    with run.claim():
        run.write_manifest(manifest())
    with pytest.raises(RunDirectoryError, match="already holds a run") as caught, run.claim():
        pass
    assert "--force" in (caught.value.hint or "")
    (run.path / "result.json").write_text("{}")
    with run.claim(force=True):
        assert not run.manifest_path.exists()
        assert not run.result_path.exists()
        run.write_manifest(manifest())


def test_foreign_files_are_never_removed(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    run = RunDirectory(tmp_path)
    for force in (False, True):
        with pytest.raises(RunDirectoryError, match="not a run"), run.claim(force=force):
            pass
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_force_on_a_run_keeps_foreign_files_beside_it(tmp_path):
    run = RunDirectory(tmp_path / "run")
    with run.claim():
        run.write_manifest(manifest())
    (run.path / "notes.md").write_text("mine")
    with run.claim(force=True):
        assert (run.path / "notes.md").read_text() == "mine"


def test_nothing_is_left_where_nothing_was_recorded(tmp_path):
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(RuntimeError), run.claim():
        raise RuntimeError
    assert not run.path.exists()


def test_partial_files_of_a_killed_run_are_removed(tmp_path):
    run = RunDirectory(tmp_path / "run")
    with run.claim():
        run.write_manifest(manifest())
    left = run.score_part("train/forward", 0).with_name("part-00000.parquet.123.partial")
    left.parent.mkdir(parents=True)
    left.write_text("half")
    with run.claim(resume=True):
        assert not left.exists()


def test_two_writers_exclude_each_other(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom mismatch_probe.trace.run_directory import RunDirectory\n"
        "with RunDirectory(Path(sys.argv[1])).claim():\n    print('held', flush=True)\n    time.sleep(30)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline().strip() == "held"
        with pytest.raises(RunDirectoryError, match="in use"), RunDirectory(tmp_path / "run").claim():
            pass
    finally:
        other.kill()
        other.wait()
    # A killed holder holds nothing: the kernel drops its lock.
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            with RunDirectory(tmp_path / "run").claim():
                break
        except RunDirectoryError:
            time.sleep(0.1)
    else:
        pytest.fail("the lock outlived its holder")


@pytest.mark.parametrize("content", ["", "[]", '{"schema_version": 99}', "{", "null"])
def test_a_damaged_manifest_is_a_clear_error(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(RunDirectoryError):
        RunDirectory.open_existing(tmp_path)


def test_what_was_not_set_stays_a_default_on_resume(tmp_path):
    run = RunDirectory(tmp_path / "run")
    with run.claim():
        run.write_manifest({**manifest(), "config": {"model": "x", "layers": 5}})
    assert run.resume_base() == {"model": "x"}


@pytest.mark.parametrize("resume", [False, True])
def test_a_file_in_the_way_is_a_clear_error(tmp_path, resume):
    (tmp_path / "run").write_text("")
    with (
        pytest.raises(RunDirectoryError, match="is a file"),
        RunDirectory(tmp_path / "run").claim(resume=resume),
    ):
        pass


def test_everything_that_a_verb_writes_counts_as_the_runs_own(tmp_path):
    run = RunDirectory(tmp_path)
    run.write_manifest({"schema_version": 1})
    for folder in ("tuning", "ablation", "export", "figures"):
        (tmp_path / folder).mkdir()
    for name in ("staleness.json", "ablation.json", "result.json", "report.html"):
        (tmp_path / name).write_text("{}")
    with run.claim(force=True):
        assert [entry.name for entry in tmp_path.iterdir()] == [".lock"]
