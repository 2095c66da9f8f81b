"""Running the command line in tests."""

import os
import subprocess
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    status: int
    stdout: str
    stderr: str


def run_cli(
    *arguments: str, timeout: int = 900, python: tuple[str, ...] = (), **environment: str
) -> Finished:
    """Runs `mismatch-probe` as a user would, without a terminal; `python` are options of the interpreter."""
    run = subprocess.run(
        [sys.executable, *python, "-m", "mismatch_probe_cli", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "COLUMNS": "110", **environment},
        check=False,
    )
    assert "Traceback" not in run.stdout + run.stderr, run.stderr
    return Finished(run.returncode, run.stdout, run.stderr)
