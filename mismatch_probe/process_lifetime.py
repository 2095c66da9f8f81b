"""Processes that must not outlive the one that started them."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys

_PR_SET_PDEATHSIG = 1
_GRACE_S = 20


def die_with_parent() -> None:
    """Asks the kernel to end this process when the parent dies, so that a killed audit leaves no engine behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def end_process(process: subprocess.Popen[bytes]) -> None:
    """Ends a process, politely at first; nothing happens to one that has ended."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
