"""SHA-256 of every part of a run, noted before the part has its name, so that a part that was changed is found.

A checksum finds what a disk, a copy or an editor did to a part. It is no signature: who can change a part can change the
manifest too.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from mismatch_probe.errors import RunDirectoryError
from mismatch_probe.trace.parts import read_json, storage_errors
from mismatch_probe.trace.schema import SCORES_FOLDER

JOURNAL = "parts.sha256"
"""What was written since the manifest was; lines as of `sha256sum`."""
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex; memory does not grow with the file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class PartChecksums:
    """The checksums of a run's parts: in the manifest, and until it is written again in a journal beside it.

    Workers of several processes and machines write parts at once, and a manifest with thousands of parts would be written
    thousands of times. So each part adds a line to the journal, and the next edit of the manifest takes the lines over.

    Args:
        folder: The run directory.
        manifest: Its manifest, which need not exist.
        lock: Gives what keeps other processes from manifest and journal.
    """

    def __init__(
        self, folder: Path, manifest: Path, lock: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._folder, self._manifest, self._lock = folder, manifest, lock
        self._journal = folder / JOURNAL
        self._stamp: tuple[object, ...] = ()
        self._accepted: dict[str, set[str]] = {}

    def note(self, path: Path, digest: str) -> None:
        """Notes what a part is about to be.

        Args:
            path: The part's name to be.
            digest: SHA-256 of its bytes, in hex.
        """
        line = f"{digest}  {self._name(path)}\n".encode()
        with self._lock(), storage_errors(self._journal), self._journal.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    # A full disk cut the last line off; its part was never named.
                    line = b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def verify(self, path: Path) -> None:
        """Compares a part with what was noted of it; a part of which nothing was noted passes.

        Raises:
            RunDirectoryError: Its bytes are others, or the manifest is damaged.
        """
        name = self._name(path)
        accepted = self._known().get(name)
        if accepted and path.is_file() and file_sha256(path) not in accepted:
            # Of what a leg scored, the part alone is made again; all else belongs to what was sampled.
            again = (
                "remove it and use --resume"
                if name.startswith(SCORES_FOLDER)
                else "record again with --force"
            )
            raise RunDirectoryError(
                f"{path} is damaged: it was changed after it was written (its SHA-256 is another)",
                hint=f"bring the file back, or {again}",
            )

    def take_over(self, manifest: dict[str, Any]) -> None:
        """Puts the journal's lines into a manifest that is about to be written; under the lock."""
        lines = self._lines()
        if lines:
            manifest["parts"] = dict(sorted({**_parts(manifest, self._manifest), **dict(lines)}.items()))

    def forget_journal(self) -> None:
        """Removes the journal, after a manifest with its lines was written; under the lock."""
        self._journal.unlink(missing_ok=True)

    def _known(self) -> dict[str, set[str]]:
        """The digests under which each part is accepted.

        More than one where a part is being replaced: a process that was killed meanwhile may have left either.
        """
        stamp = (_stamp(self._manifest), _stamp(self._journal))
        if stamp != self._stamp:
            held = read_json(self._manifest) if self._manifest.is_file() else {}
            accepted = {name: {digest} for name, digest in _parts(held, self._manifest).items()}
            for name, digest in self._lines():
                accepted.setdefault(name, set()).add(digest)
            self._stamp, self._accepted = stamp, accepted
        return self._accepted

    def _lines(self) -> list[tuple[str, str]]:
        try:
            text = self._journal.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        return [(found[2], found[1]) for found in map(_LINE.fullmatch, text.splitlines()) if found]

    def _name(self, path: Path) -> str:
        return path.relative_to(self._folder).as_posix()


def _parts(manifest: Any, path: Path) -> Mapping[str, str]:
    held = manifest.get("parts", {}) if isinstance(manifest, dict) else {}
    if not isinstance(held, dict) or not all(isinstance(digest, str) for digest in held.values()):
        raise RunDirectoryError(f"{path} is damaged: its checksums of parts are none")
    return held


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size
