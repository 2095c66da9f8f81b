"""One row of an ablation: its own run directory, its own process, kept when it is there already."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mismatch_probe.assets.catalog import resolve_model
from mismatch_probe.config.model import SamplingConfig
from mismatch_probe.errors import ConfigError, EngineCrashError, MismatchProbeError
from mismatch_probe.result import to_json
from mismatch_probe.secrets import lacks_secret
from mismatch_probe.stages.events import Watcher
from mismatch_probe.stages.job import RefitJob, RolloutJob, ScoreJob
from mismatch_probe.stages.process import run_worker
from mismatch_probe.trace.parts import read_json, read_table, write_json, write_table
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.schema import rollout_schema
from mismatch_probe.trace.trace import Trace

FOLDER = "ablation"
TABLE = "ablation.json"
_STATE = "row.json"


@dataclass(frozen=True)
class Subject:
    """The run under test and the tokens that every row reads.

    Attributes:
        run: The run.
        num_prompts: First prompts of the run that are read, all their samples.
    """

    run: RunDirectory
    num_prompts: int

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Of the run."""
        return self.run.read_manifest()

    @property
    def config(self) -> dict[str, Any]:
        """Of the run, as the manifest keeps it."""
        return dict(self.manifest["config"])

    @property
    def sampling(self) -> SamplingConfig:
        """Which distribution every reading describes."""
        return SamplingConfig.model_validate(self.config["sampling"])

    @property
    def folder(self) -> Path:
        """Where rows are kept."""
        return self.run.path / FOLDER

    @cached_property
    def table(self) -> Any:
        """The sequences, an Arrow table of the rollout's schema."""
        import pyarrow as pa
        import pyarrow.compute as pc

        parts = range(int(self.manifest["num_parts"]))
        tables = [
            read_table(self.run.checked(self.run.rollout_part(part)), rollout_schema()) for part in parts
        ]
        table = pa.concat_tables(tables)
        names = list(dict.fromkeys(table["prompt_id"].to_pylist()))[: self.num_prompts]
        return table.filter(pc.is_in(table["prompt_id"], value_set=pa.array(names))).combine_chunks()

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest prompt and response."""
        sizes = [
            np.array([len(row) for row in self.table[name].to_pylist()])
            for name in ("prompt_token_ids", "response_token_ids")
        ]
        return int((sizes[0] + sizes[1]).max())

    @cached_property
    def tokens_sha256(self) -> str:
        """Hash of all ids that every row reads."""
        columns = {name: self.table[name].to_pylist() for name in ("prompt_token_ids", "response_token_ids")}
        return hashlib.sha256(json.dumps(columns).encode()).hexdigest()

    def spec(self, side: str, *, dtype: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of the `EngineSpec` or `ScorerSpec` of a side, with a knob's changes.

        Raises:
            ConfigError: The run was made with an option that the manifest keeps secret, or its checkpoint is gone.
        """
        section, model = self.config[side], self.manifest["model"]
        if lacks_secret(section["options"]):
            raise ConfigError(
                f"{side}.options hold a secret that the manifest does not keep",
                hint="record the run with options that need none",
            )
        named = section["model"]
        path = Path(model["path"]) if named is None else resolve_model(named).path
        if not (path / "config.json").is_file():
            raise ConfigError(f"the run's checkpoint {path} is not here any more", hint="put it back")
        spec = {
            "model_path": str(path),
            "dtype": dtype or section["dtype"],
            "num_moe_layers": 0,
            "top_k": 0,
            "options": {**section["options"], **options},
            "trust_remote_code": self.config["trust_remote_code"],
        }
        return {**spec, "routing": False, "max_model_len": self.longest + 1} if side == "rollout" else spec


class Row:
    """A row on disk: RUN/ablation/NAME.

    Args:
        subject: The run under test.
        name: Name of the row.

    Attributes:
        state: What `take` returned last; empty before.
    """

    def __init__(self, subject: Subject, name: str) -> None:
        self.subject = subject
        self.name = name
        self.run = RunDirectory(subject.folder / name)
        self.state: dict[str, Any] = {}

    def trace(self) -> Trace:
        """What the row read."""
        return Trace(self.run, 1)

    def prepare(self) -> None:
        """Puts the sequences where a worker reads them."""
        if not self.run.rollout_part(0).is_file():
            write_table(self.run.rollout_part(0), self.subject.table, self.run.note_part)

    def take(
        self,
        make_job: Callable[[Path], RolloutJob | ScoreJob | RefitJob],
        watcher: Watcher,
        *,
        environment: Mapping[str, str] | None = None,
        also: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Runs the row's job in a process of its own, unless a finished row of the same job is on disk.

        Args:
            make_job: Makes the job for the row's folder.
            watcher: Told of progress.
            environment: Variables of the worker.
            also: What else the row depends on.

        Returns:
            `facts` of the engine, or `unavailable`: its own sentence; `seconds` and `cpu_seconds` of the process. A
            refusal is kept like a result; a crash (`crashed`) is kept for the table and tried again by the next call.
        """
        job = make_job(self.run.path.resolve())
        identity = to_json(
            {
                "job": job.model_dump(mode="json", exclude={"run"}),
                "environment": dict(environment or {}),
                "also": dict(also or {}),
                "tokens_sha256": self.subject.tokens_sha256,
                "weights_sha256": self.subject.manifest["model"].get("weights_sha256"),
                "versions": self.subject.manifest["versions"],
            }
        )
        state_path = self.run.path / _STATE
        if state_path.is_file():
            held = read_json(state_path)
            if held.get("identity") == identity and not held["crashed"]:
                self.state = dict(held)
                return self.state
        shutil.rmtree(self.run.path, ignore_errors=True)
        self.prepare()
        total = self.subject.table.num_rows

        def on_event(event: dict[str, Any]) -> None:
            stage = f"{self.name} {event.get('leg', '')}".strip()
            if event["event"] == "leg":
                watcher.stage_started(stage, total, 0, "ablation")
            elif event["event"] == "progress":
                watcher.stage_progress(stage, event["sequences"], event["tokens"])
            elif event["event"] == "part":
                watcher.stage_finished(stage)

        watcher.message(f"starting {self.name}")
        state: dict[str, Any] = {"identity": identity, "facts": None, "unavailable": None, "crashed": False}
        log = self.subject.run.log_path(f"ablation-{self.name}")
        begun, used = time.monotonic(), _cpu_seconds()
        try:
            state["facts"] = to_json(run_worker(job, log, on_event, environment))
        except MismatchProbeError as error:
            state["unavailable"] = error.message
            state["crashed"] = isinstance(error, EngineCrashError)
            watcher.message(f"{self.name}: unavailable: {error.message}")
        state |= {"seconds": time.monotonic() - begun, "cpu_seconds": _cpu_seconds() - used}
        write_json(state_path, state)
        self.state = state
        return state


def clear_rows(run: RunDirectory) -> None:
    """Removes every row of a run's ablation, refusals included, and the table made of them."""
    shutil.rmtree(run.path / FOLDER, ignore_errors=True)
    (run.path / TABLE).unlink(missing_ok=True)


def _cpu_seconds() -> float:
    """Of processes that were started from here and have ended, and of theirs."""
    spent = os.times()
    return spent.children_user + spent.children_system
