"""A run directory: opening, locking, and where each thing lies in it."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mismatch_probe.errors import RunDirectoryError
from mismatch_probe.trace.checksums import JOURNAL, PartChecksums
from mismatch_probe.trace.parts import part_name, read_json, remove_partial_files, storage_errors, write_json
from mismatch_probe.trace.schema import MATRIX, ROLLOUT_FOLDER, ROUTING_FOLDER, SCHEMA_VERSION, SCORES_FOLDER

_MANIFEST = "manifest.json"
_LOCK = ".lock"
_MANIFEST_LOCK = ".manifest.lock"
_KEEP_SETS = "keep_sets"
_OURS = (
    ROLLOUT_FOLDER, SCORES_FOLDER, ROUTING_FOLDER, _KEEP_SETS, "imported", "figures", "export", "logs", "ablation", "tuning",
    _MANIFEST, JOURNAL, "result.json", "report.html", "ablation.json", "staleness.json", "drift.json",
    "location", "location.json", "cells", "matrix.json", "matrix.html", "matrix.png",
)  # fmt: skip


class RunDirectory:
    """Paths and manifest of one run.

    Args:
        path: The directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._checksums = PartChecksums(path, self.manifest_path, self.manifest_lock)

    @classmethod
    def open_existing(cls, path: Path) -> RunDirectory:
        """Opens a run for reading.

        Raises:
            RunDirectoryError: There is no run, or one of another schema version.
        """
        run = cls(path)
        if not path.is_dir():
            raise RunDirectoryError(
                f"run directory {path} does not exist", hint="check the path, or run an audit into it"
            )
        if not run.manifest_path.is_file():
            raise RunDirectoryError(f"{path} is not a run directory: it has no {_MANIFEST}")
        manifest = run.read_manifest()
        if manifest.get("kind") == MATRIX:
            raise RunDirectoryError(
                f"{path} is a matrix of runs",
                hint=f"give one of its cells, such as {path / manifest['cells'][0]}",
            )
        return run

    @property
    def manifest_path(self) -> Path:
        """manifest.json."""
        return self.path / _MANIFEST

    @property
    def result_path(self) -> Path:
        """result.json."""
        return self.path / "result.json"

    @property
    def drift_path(self) -> Path:
        """drift.json: the drift measured part by part."""
        return self.path / "drift.json"

    @property
    def matrix_path(self) -> Path:
        """matrix.json, of a matrix of runs."""
        return self.path / "matrix.json"

    @property
    def report_path(self) -> Path:
        """report.html."""
        return self.path / "report.html"

    def rollout_part(self, index: int) -> Path:
        """Part `index` of what was sampled."""
        return self.path / ROLLOUT_FOLDER / part_name(index, "parquet")

    def score_part(self, leg: str, index: int) -> Path:
        """Part `index` of what a leg scored."""
        return self.path / SCORES_FOLDER / leg / part_name(index, "parquet")

    def refit_outcome(self) -> Path:
        """What came of loading the checkpoint again; written last, so that it says that `rollout/refit` is done."""
        return self.path / SCORES_FOLDER / "rollout/refit" / "outcome.json"

    def leg_files(self, leg: str, num_parts: int) -> list[Path]:
        """The files that say, all together, that a leg was read: one for each part.

        `rollout/refit` reads a sample of the first part alone, so it has one.
        """
        if leg == "rollout/decode":
            return [self.rollout_part(part) for part in range(num_parts)]
        if leg == "rollout/refit":
            return [self.refit_outcome()]
        return [self.score_part(leg, part) for part in range(num_parts)]

    def routing_part(self, leg: str, index: int) -> Path:
        """Part `index` of the routes that a leg took."""
        return self.path / ROUTING_FOLDER / leg / part_name(index, "safetensors")

    def keep_set_part(self, index: int) -> Path:
        """Part `index` of the ids that truncated sampling could have drawn."""
        return self.path / _KEEP_SETS / part_name(index, "safetensors")

    def replay_part(self, index: int) -> Path:
        """Part `index` of the study of routing replay."""
        return self.path / ROUTING_FOLDER / "replay" / part_name(index, "parquet")

    def extras_part(self, index: int) -> Path:
        """Columns of an imported dump that have no place in part `index` of what was sampled."""
        return self.path / "imported" / part_name(index, "jsonl")

    def note_part(self, path: Path, digest: str) -> None:
        """Notes the SHA-256 of a part that is about to get its name; what writes parts calls it."""
        self._checksums.note(path, digest)

    def checked(self, path: Path) -> Path:
        """The path of a part, after its bytes were found to be those that were written.

        A part that is not there, or of which no checksum was noted, is left to the reader.

        Raises:
            RunDirectoryError: The part was changed.
        """
        self._checksums.verify(path)
        return path

    def log_path(self, name: str) -> Path:
        """Where a worker process of this run writes what its engine prints."""
        return self.path / "logs" / f"{name}.log"

    def read_manifest(self) -> dict[str, Any]:
        """The manifest.

        Raises:
            RunDirectoryError: It is damaged or of another schema version.
        """
        manifest = read_json(self.manifest_path)
        version = manifest.get("schema_version") if isinstance(manifest, dict) else None
        if version != SCHEMA_VERSION:
            raise RunDirectoryError(
                f"{self.manifest_path} has schema version {version!r}, this version reads {SCHEMA_VERSION}",
                hint="use the version of mismatch-probe that wrote it, or record again",
            )
        return dict(manifest)

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Replaces the manifest."""
        write_json(self.manifest_path, manifest)

    @contextmanager
    def manifest_lock(self) -> Iterator[None]:
        """Keeps the other shards from the manifest for a moment; they wait."""
        with storage_errors(self.path / _MANIFEST_LOCK):
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path / _MANIFEST_LOCK, os.O_CREAT | os.O_RDWR, 0o644)
        with os.fdopen(descriptor) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def edit_manifest(self) -> Iterator[dict[str, Any]]:
        """Reads the manifest and writes what was made of it; no other process writes it meanwhile.

        Raises:
            RunDirectoryError: As `read_manifest`.
        """
        with self.manifest_lock():
            manifest = self.read_manifest()
            yield manifest
            self._checksums.take_over(manifest)
            self.write_manifest(manifest)
            self._checksums.forget_journal()

    def take_checksums(self) -> None:
        """Takes the checksums of what was written since into the manifest.

        Raises:
            RunDirectoryError: As `read_manifest`.
        """
        with self.edit_manifest():
            pass

    def resume_base(self) -> dict[str, Any]:
        """The configuration that the run began with: only what was set, so that defaults stay defaults.

        Raises:
            RunDirectoryError: The manifest has no configuration.
        """
        manifest = self.read_manifest()
        try:
            return {key: manifest["config"][key] for key in manifest["config_set"]}
        except (KeyError, TypeError) as error:
            raise RunDirectoryError(f"{self.manifest_path} is damaged: no configuration in it") from error

    def check_free(self, *, force: bool, resume: bool, shared: bool = False) -> None:
        """Raises what `claim` would raise for a directory that cannot be used, before any work is done.

        Args:
            force: As `claim`.
            resume: As `claim`.
            shared: As `claim`.

        Raises:
            RunDirectoryError: As `claim`.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunDirectoryError(f"{self.path} is a file", hint="give another --out")
        has_run = self.manifest_path.is_file()
        if resume and not has_run:
            raise RunDirectoryError(f"nothing to resume in {self.path}", hint="leave out --resume")
        if has_run and not (resume or force or shared):
            raise RunDirectoryError(
                f"{self.path} already holds a run",
                hint="use --resume to go on, --force to replace it, or another --out",
            )
        if self.path.is_dir() and not has_run:
            ours = (*_OURS, _LOCK, _MANIFEST_LOCK)
            foreign = sorted(
                entry.name
                for entry in self.path.iterdir()
                # Another shard may be writing the manifest.
                if entry.name not in ours and not (shared and entry.name.startswith(_MANIFEST))
            )
            if foreign:
                raise RunDirectoryError(
                    f"{self.path} holds files that are not a run ({foreign[0]}, ...)",
                    hint="give an empty or new --out",
                )

    @contextmanager
    def claim(self, *, force: bool = False, resume: bool = False, shared: bool = False) -> Iterator[None]:
        """Holds the directory for writing; a second writer is refused, unless both share it.

        Args:
            force: Empties a run that is there.
            resume: Goes on with the run that is there.
            shared: For one of several shards, which write other parts: begins a run or goes on with it, and removes nothing.

        Raises:
            RunDirectoryError: The directory is in use, holds a run and neither was asked for, holds nothing to resume, or
                holds files that are not ours (those are never removed).
        """
        existed = self.path.exists()
        self.check_free(force=force, resume=resume, shared=shared)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path / _LOCK, os.O_CREAT | os.O_RDWR, 0o644)
        except OSError as error:
            raise RunDirectoryError(
                f"cannot write into {self.path}: {error.strerror}", hint="give another --out"
            ) from error
        try:
            self._lock(lock, shared=shared)
            # Again, now that nobody else can change it.
            self.check_free(force=force, resume=resume, shared=shared)
            if not shared:
                if self.manifest_path.is_file() and not resume:
                    self._clear()
                remove_partial_files(self.path)
            yield
        finally:
            os.close(lock)
            if not self.manifest_path.is_file() and not existed and not shared:
                # Nothing was recorded: leave nothing behind.
                shutil.rmtree(self.path, ignore_errors=True)

    def _lock(self, descriptor: int, *, shared: bool) -> None:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunDirectoryError(
                f"{self.path} is in use by another mismatch-probe process",
                hint="wait for it, or give another --out",
            ) from error
        except OSError as error:
            raise RunDirectoryError(
                f"the file system of {self.path} cannot lock files: {error.strerror}",
                hint="give another --out",
            ) from error

    def _clear(self) -> None:
        # The manifest goes first: a directory without it is never taken for a finished run.
        self.manifest_path.unlink()
        for name in _OURS:
            entry = self.path / name
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)
