"""Starting a worker process, following its events, and turning its end into a result or a clear error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mismatch_probe import errors
from mismatch_probe.errors import EngineCrashError, MismatchProbeError
from mismatch_probe.stages.job import Job

_GRACE_S = 20
_KINDS: dict[str, type[MismatchProbeError]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, MismatchProbeError)
}


def run_worker(
    job: Job,
    log: Path,
    on_event: Callable[[dict[str, Any]], None],
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Runs a job in a process of its own and waits for it.

    Args:
        job: What to do.
        log: Where the engine's own output goes (appended).
        on_event: Called with every event.
        environment: Variables of the worker beside this process's own.

    Returns:
        The facts of the engine that ran.

    Raises:
        MismatchProbeError: What the worker raised; EngineCrashError if it died without a word or of another error.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    receive, send = os.pipe()
    with tempfile.TemporaryDirectory(prefix="mismatch-probe-") as folder, log.open("ab") as log_file:
        job_file = Path(folder) / "job.json"
        job_file.write_text(job.model_dump_json(), encoding="utf-8")
        quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", "mismatch_probe.stages.worker", str(job_file), str(send)],
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=subprocess.STDOUT,
            pass_fds=(send,),
            env={**quiet, **os.environ, **(environment or {})},
        )
        os.close(send)
        try:
            end = _follow(receive, on_event)
            status = process.wait()
        finally:
            _stop(process)
    if end is not None and end["event"] == "done":
        return dict(end["facts"])
    raise _failure(end, status, log)


def _follow(descriptor: int, on_event: Callable[[dict[str, Any]], None]) -> dict[str, Any] | None:
    """Reads events until the pipe closes; the last "done" or "error" is the end."""
    end = None
    with os.fdopen(descriptor, encoding="utf-8") as stream:
        for line in stream:
            event = json.loads(line)
            if event["event"] in ("done", "error"):
                end = event
            else:
                on_event(event)
    return end


def _failure(end: dict[str, Any] | None, status: int, log: Path) -> MismatchProbeError:
    where = f"see {log}"
    if end is None:
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        memory = "; signal 9 is often the kernel's answer to too little memory" if status == -9 else ""
        return EngineCrashError(f"the engine process {how}{memory}", hint=where)
    kind = _KINDS.get(end["kind"])
    if kind is None:
        return EngineCrashError(f"the engine process failed: {end['message']}", hint=where)
    return kind(end["message"], hint=end["hint"])


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
