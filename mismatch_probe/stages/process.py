"""Starting a worker process, following its events, and turning its end into a result or a clear error."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from mismatch_probe import errors
from mismatch_probe.engines.foreign_python import foreign_environment
from mismatch_probe.engines.registry import WorkerEnvironment, engines
from mismatch_probe.errors import EngineCrashError, EngineKilledError, MismatchProbeError
from mismatch_probe.process_lifetime import end_process
from mismatch_probe.secrets import scrub, scrub_file, secret_values
from mismatch_probe.stages.job import Job, RolloutJob, Task

if TYPE_CHECKING:
    from mismatch_probe.stages.spare import SpareProcess

_KINDS: dict[str, type[MismatchProbeError]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, MismatchProbeError)
}


WORKER_MODULE = "mismatch_probe.stages.worker"


def worker_variables(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a worker.

    Args:
        environment: Variables beside this process's own.
    """
    quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**quiet, **os.environ, **(environment or {})}


class WorkerProcess:
    """A process that holds an engine.

    Args:
        job: What to do.
        log: Where the engine's own output goes (appended).
        environment: Variables of the process beside this process's own.
        handed: Whether tasks are handed over one by one (`hand`) instead of being the job's.
        spare: A process that waits for such a job; it ends with this one. Used unless it has died, or with `environment` or
            `handed`.
    """

    def __init__(
        self,
        job: Job,
        log: Path,
        environment: Mapping[str, str] | None = None,
        *,
        handed: bool = False,
        spare: SpareProcess | None = None,
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        self._end: dict[str, Any] | None = None
        self._tasks: TextIO | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="mismatch-probe-")
        job_file = Path(self._folder.name) / "job.json"
        job_file.write_text(job.model_dump_json(), encoding="utf-8")
        variables = worker_variables(environment)
        self._secrets = secret_values(job.spec.get("options", {}), variables)
        self._spare = spare
        given = None if spare is None or environment or handed else spare.give(job_file, log)
        if given is None:
            given = self._start(job, job_file, variables, handed=handed)
        self._process, self._stream = given

    def _start(
        self, job: Job, job_file: Path, variables: dict[str, str], *, handed: bool
    ) -> tuple[subprocess.Popen[bytes], TextIO]:
        receive, send = os.pipe()
        theirs = [send]
        if handed:
            take, give = os.pipe()
            theirs.append(take)
            self._tasks = os.fdopen(give, "w", buffering=1, encoding="utf-8")
        python, module = sys.executable, WORKER_MODULE
        foreign = _foreign(job)
        if foreign is not None and str(foreign.python) != sys.executable:
            python, module = str(foreign.python), foreign.module
            variables = foreign_environment(Path(self._folder.name), variables)
        with self._log.open("ab") as log_file:
            process = subprocess.Popen(  # noqa: S603 - an interpreter and our own module
                [python, "-m", module, str(job_file), *map(str, theirs)],
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=subprocess.STDOUT,
                pass_fds=theirs,
                env=variables,
            )
        for descriptor in theirs:
            os.close(descriptor)
        return process, os.fdopen(receive, encoding="utf-8")

    def hand(self, task: Task) -> None:
        """Hands a task over; one that is dead already is found out by its events."""
        if self._tasks is not None:
            with contextlib.suppress(BrokenPipeError):
                self._tasks.write(task.model_dump_json() + "\n")

    def events(self) -> Iterator[dict[str, Any]]:
        """Events as they come, until the process says that it is done or that it failed, or its pipe closes."""
        for line in self._stream:
            event = json.loads(line)
            if event["event"] in ("done", "error"):
                self._end = event
            else:
                yield event

    def finish(self) -> dict[str, Any]:
        """Waits for the process to end; no task is handed over any more.

        Returns:
            The facts of the engine that ran.

        Raises:
            MismatchProbeError: What the worker raised; EngineKilledError if it died without a word, EngineCrashError of
                another error.
        """
        self._close_tasks()
        for _ in self.events():
            continue
        status = self._process.wait()
        if self._end is not None and self._end["event"] == "done":
            return dict(self._end["facts"])
        if self._end is not None and self._end.get("message"):
            self._end["message"] = scrub(self._end["message"], self._secrets)
        raise _failure(self._end, status, self._log)

    def stop(self) -> None:
        """Ends the process, politely at first; nothing happens to one that has ended."""
        self._close_tasks()
        end_process(self._process)
        self._stream.close()
        if self._spare is not None:
            self._spare.stop()
        self._folder.cleanup()
        # An engine may print its options, or all its environment.
        scrub_file(self._log, self._secrets)

    def _close_tasks(self) -> None:
        if self._tasks is not None:
            # What a dead process did not take is still in the buffer.
            with contextlib.suppress(BrokenPipeError):
                self._tasks.close()


def _foreign(job: Job) -> WorkerEnvironment | None:
    """Where the job's engine has to run, if that is not here."""
    if not isinstance(job, RolloutJob):
        return None
    ask = engines.get(job.engine).item.environment
    return None if ask is None else ask(job.spec["options"])


def run_worker(
    job: Job,
    log: Path,
    on_event: Callable[[dict[str, Any]], None],
    environment: Mapping[str, str] | None = None,
    *,
    spare: SpareProcess | None = None,
) -> dict[str, Any]:
    """Runs a job in a process of its own and waits for it.

    Args:
        job: What to do.
        log: Where the engine's own output goes (appended).
        on_event: Called with every event.
        environment: Variables of the worker beside this process's own.
        spare: A process that waits for such a job.

    Returns:
        The facts of the engine that ran.

    Raises:
        MismatchProbeError: As `WorkerProcess.finish`.
    """
    worker = WorkerProcess(job, log, environment, spare=spare)
    try:
        for event in worker.events():
            on_event(event)
        return worker.finish()
    finally:
        worker.stop()


def _failure(end: dict[str, Any] | None, status: int, log: Path) -> MismatchProbeError:
    where = f"see {log}"
    if end is None:
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        memory = "; signal 9 is often the kernel's answer to too little memory" if status == -9 else ""
        return EngineKilledError(f"the engine process {how}{memory}", hint=where)
    kind = _KINDS.get(end["kind"])
    if kind is None:
        return EngineCrashError(f"the engine process failed: {end['message']}", hint=where)
    return kind(end["message"], hint=end["hint"])
