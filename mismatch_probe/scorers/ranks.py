"""Launching the ranks of a scorer that runs on several processes, and talking to them.

torchrun starts the ranks and ends them all when one dies; every rank has a line of its own (a Unix socket in a private
folder) to the process that launched them, so an answer, an error and a death are told apart at once.

Run as a module, this file is torchrun under a parent that it must not outlive.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, cast

from mismatch_probe import errors
from mismatch_probe.errors import EngineCrashError, MismatchProbeError

ADDRESS_VARIABLE = "MISMATCH_PROBE_RANKS"
_GRACE_S = 20


@dataclass(frozen=True, slots=True)
class Message:
    """What a rank says.

    Attributes:
        kind: "ready" (payload: facts), "batch" (index and results), "done", or "error" (class, message, hint).
        payload: By kind.
    """

    kind: str
    payload: Any = None


class RankGroup:
    """Ranks of one scorer on this machine.

    Args:
        world_size: How many.
        setup: Sent to every rank first; it must pickle.

    Raises:
        EngineCrashError: A rank or torchrun ended before all ranks were there.
    """

    def __init__(self, world_size: int, setup: Any) -> None:
        self._connections: dict[Connection[Any, Message], int] = {}
        with (
            tempfile.TemporaryDirectory(prefix="mismatch-probe-ranks-") as folder,
            socket.socket(socket.AF_UNIX) as listener,
        ):
            address = str(Path(folder) / "line")
            listener.bind(address)
            listener.listen(world_size)
            listener.settimeout(1)
            environment = {ADDRESS_VARIABLE: address, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
            if sys.platform == "linux":
                # The name of the machine may not resolve, and nothing here leaves it.
                environment["GLOO_SOCKET_IFNAME"] = "lo"
            how = [
                "--standalone",
                "--local-addr=127.0.0.1",
                "--max-restarts=0",
                f"--nproc-per-node={world_size}",
            ]
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and modules
                [sys.executable, "-m", __name__, *how, "-m", "mismatch_probe.scorers.rank_worker"],
                stdin=subprocess.DEVNULL,
                env={**environment, **os.environ, ADDRESS_VARIABLE: address},
            )
            try:
                self._accept(listener, world_size)
                self.send(setup)
            except BaseException:
                self.close()
                raise

    @property
    def process_id(self) -> int:
        """Of torchrun, the parent of the ranks."""
        return self._process.pid

    def send(self, message: Any) -> None:
        """Sends the same to every rank.

        Raises:
            EngineCrashError: A rank is dead.
        """
        for connection, rank in self._connections.items():
            try:
                connection.send(message)
            except OSError as error:
                raise self._died(rank) from error

    def answers(self, last: str) -> Iterator[tuple[int, Message]]:
        """Yields (rank, message) as they come, until every rank has sent a message of kind `last`.

        Raises:
            MismatchProbeError: A rank sent an error, which is raised here, or died.
        """
        waiting = dict(self._connections)
        while waiting:
            for ready in wait(list(waiting)):
                connection = cast("Connection[Any, Message]", ready)
                rank = self._connections[connection]
                try:
                    message = connection.recv()
                except (EOFError, OSError) as error:
                    raise self._died(rank) from error
                if message.kind == "error":
                    name, text, hint = message.payload
                    kind = getattr(errors, name, EngineCrashError)
                    lost = self._dead_beside(rank) if kind is EngineCrashError else None
                    raise kind(text, hint=hint) if lost is None else self._died(lost)
                if message.kind == last:
                    del waiting[connection]
                yield rank, message

    def close(self) -> None:
        """Ends the ranks: politely, then by signal through torchrun, which takes its ranks with it."""
        for connection in self._connections:
            connection.close()
        try:
            self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            try:
                self._process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _accept(self, listener: socket.socket, world_size: int) -> None:
        while len(self._connections) < world_size:
            try:
                line, _ = listener.accept()
            except TimeoutError:
                if self._process.poll() is not None:
                    raise EngineCrashError(
                        f"torchrun ended with status {self._process.returncode} before its ranks were there",
                        hint="see the log",
                    ) from None
                continue
            line.setblocking(True)
            connection: Connection[Any, Any] = Connection(line.detach())
            self._connections[connection] = int(connection.recv())

    def _dead_beside(self, rank: int) -> int | None:
        """A rank that is dead already when another one fails: the survivor's error is only that nobody answers."""
        others = [connection for connection, own in self._connections.items() if own != rank]
        for ready in wait(others, timeout=0):
            connection = cast("Connection[Any, Message]", ready)
            try:
                while connection.poll():
                    connection.recv()
            except (EOFError, OSError):
                return self._connections[connection]
        return None

    def _died(self, rank: int) -> MismatchProbeError:
        return EngineCrashError(
            f"rank {rank} of {len(self._connections)} died",
            hint="the log has its last words and torchrun's report; signal 9 is often too little memory",
        )


def main(arguments: list[str]) -> None:
    """Runs torchrun with `arguments`, tied to the life of the parent."""
    from torch.distributed.run import main as torchrun

    from mismatch_probe.process_lifetime import die_with_parent

    die_with_parent()
    torchrun(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
