"""Running the command line in tests."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from mismatch_probe.result import check_schema, read_result


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    status: int
    stdout: str
    stderr: str


def run_cli(
    *arguments: str, timeout: int = 900, python: tuple[str, ...] = (), **environment: str
) -> Finished:
    """Runs `mismatch-probe` as a user would, without a terminal; `python` are options of the interpreter.

    Every result that it writes is held against the published schema.
    """
    began = time.time()
    run = subprocess.run(
        [sys.executable, *python, "-m", "mismatch_probe_cli", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "COLUMNS": "110", **environment},
        check=False,
    )
    assert "Traceback" not in run.stdout + run.stderr, run.stderr
    for written in _results(arguments, began):
        check_schema(read_result(written), written)
    return Finished(run.returncode, run.stdout, run.stderr)


def _results(arguments: tuple[str, ...], began: float) -> list[Path]:
    """What was written since then into folders that the command names, the cells of a matrix included."""
    folders = [Path(argument) for argument in arguments if "\0" not in argument and Path(argument).is_dir()]
    found = [
        path
        for folder in folders
        for pattern in ("result.json", "*/result.json")
        for path in folder.glob(pattern)
    ]
    return [path for path in found if path.stat().st_mtime >= began]
