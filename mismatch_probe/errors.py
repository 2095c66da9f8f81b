"""Every error that the tool raises on purpose.

MismatchProbeError
├── ConfigError             what was asked for is wrong: option, config file, model name, prompts
├── EngineUnavailableError  a package or a device that the engine needs is missing or broken
│   ├── EngineCrashError    the engine's process died, or failed with something it did not foresee
│   │   └── EngineKilledError  it was killed, or ended without a word: the same work may succeed elsewhere
│   └── WorkerLostError     what held an engine is gone: a Ray actor or its node
├── CaptureError            an engine ran but did not give what it was asked for
├── RunDirectoryError       a run directory is in use, incomplete, or not ours
└── InconclusiveError       nothing can be concluded: no tokens, ids that do not line up, routing missing

A user's mistake always ends as one of these: one line that says what is wrong and, in `hint`, how to mend it.
"""

from __future__ import annotations

EXIT_PASS = 0
EXIT_DRIFT = 1
EXIT_ERROR = 2
EXIT_INCONCLUSIVE = 3


class MismatchProbeError(Exception):
    """Base of all errors raised on purpose.

    Attributes:
        message: What is wrong, in one line.
        hint: How to mend it, or None.
        exit_code: Status with which the command line ends.
    """

    exit_code = EXIT_ERROR

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message} ({self.hint})"


class ConfigError(MismatchProbeError):
    """An option, config file, model or prompt set that cannot be used."""


class EngineUnavailableError(MismatchProbeError):
    """A package or device that an engine or scorer needs is missing or broken."""


class EngineCrashError(EngineUnavailableError):
    """The process of an engine or scorer died, or failed with an error that it did not foresee."""


class EngineKilledError(EngineCrashError):
    """The process of an engine was killed or ended without a word, so nothing says that its work cannot be done."""


class WorkerLostError(EngineUnavailableError):
    """What held an engine is gone, a Ray actor or its node; the engine is not to blame."""


class CaptureError(MismatchProbeError):
    """An engine ran but did not return what it was asked for."""


class RunDirectoryError(MismatchProbeError):
    """A run directory that is in use, incomplete, damaged, or not one of ours."""


class InconclusiveError(MismatchProbeError):
    """Nothing can be concluded from the data; never a pass."""

    exit_code = EXIT_INCONCLUSIVE
