"""A server of our own on the loopback interface: started, waited for, ended."""

from __future__ import annotations

import secrets
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence

from mismatch_probe.errors import EngineUnavailableError
from mismatch_probe.process_lifetime import die_with_parent, end_process

HOST = "127.0.0.1"


class OwnServerProcess:
    """A server reachable from this machine only and only with its key.

    Attributes:
        name: What it is called in messages.
        port: Its port.
        url: Its base address.
        key: Its key: random, handed over in the environment, on no command line and in no file.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.key = secrets.token_urlsafe(32)
        self.port = _free_port()
        self.url = f"http://{HOST}:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Starts it; it ends with this process.

        Args:
            command: Program and arguments.
            environment: All of its environment.
        """
        self._process = subprocess.Popen(  # noqa: S603 - an interpreter; options are arguments, not a shell line
            list(command), stdin=subprocess.DEVNULL, env=dict(environment), preexec_fn=die_with_parent
        )

    def ended(self) -> str | None:
        """How the server ended; None while it runs."""
        status = None if self._process is None else self._process.poll()
        if status is None:
            return None
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        return f"the {self.name} server {how}; what it said is in the log"

    def wait_until_ready(self, timeout_s: float) -> None:
        """Waits until the server answers.

        Raises:
            EngineUnavailableError: It ended, or does not answer in time.
        """
        import httpx

        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            ended = self.ended()
            if ended is not None:
                raise EngineUnavailableError(ended, hint="change rollout.options.* or the model")
            try:
                answer = httpx.get(f"{self.url}/health", timeout=5.0, trust_env=False)
                if answer.status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                time.sleep(0.5)
            else:
                time.sleep(0.5)
        raise EngineUnavailableError(
            f"the {self.name} server did not answer within {timeout_s:.0f} s",
            hint="raise rollout.options.start_timeout_s",
        )

    def stop(self) -> None:
        """Ends the server, politely first."""
        if self._process is not None:
            end_process(self._process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
