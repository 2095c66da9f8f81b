"""Runs a printed example in a folder that holds what it names, up to where an engine would start.

A shell example goes through bash, which expands it and hands each command of ours back; the command then runs in this process
through the real command line. What it would start (worker processes, Ray, gigabytes of random weights) is a border:
everything before it runs, nothing behind it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import itertools
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest
from documentation.printed import COMMANDS, ROOT, Example, blocks, kind_of
from gguf_model import write_gguf
from packaging.requirements import Requirement

from mismatch_probe.assets.catalog import resolve_model
from mismatch_probe.engines.registry import engines
from mismatch_probe.export.exporter import exporters
from mismatch_probe.imports.importer import importers
from mismatch_probe.scorers.registry import scorers
from mismatch_probe.weights.registry import methods
from mismatch_probe_cli import showing
from mismatch_probe_cli.app import app

_real_write_reports = showing.write_reports
# What stands for something else in the examples, and what is put there.
PUT_IN = {"/shared/": "shared/", "explain <id>": "explain stale-weights", "--rollout NAME": "--rollout vllm"}
DEFAULT_OUT = "runs/audit"
NOT_RUN = {"ray": "starts a cluster of several machines; tests/e2e/test_distributed.py starts a local one"}
MODELS = (
    "MODEL",
    "CHECKPOINT",
    "Qwen/Qwen3-30B-A3B",
    "runs/policy-step-100",
    "out/step-8",
    "out/last",
    "checkpoints/last",
)
STEPS = (1, 2, 4, 8, 16, 32, 64, 100)
RUNS = "runs"
IMPORTED = "runs/imported"
_RUN = re.compile(r"(shared/run|runs/[\w.-]+|RUN\w*)$")
_MADE = ("--out", "-o")
_GOLDEN = ROOT / "tests" / "core" / "imports" / "golden"


class Border(BaseException):
    """Where an engine, a cluster or a download would begin; not an Exception, so that no stage takes it for a crash."""


@dataclass
class Workbench:
    """A folder with what the examples name.

    Attributes:
        folder: Where examples run, each in a folder of its own.
        run: A measured run of the embedded model, copied wherever an example names a run.
        patch: For the borders and the current folder.
        done: Commands that ran to their end on a copy of the run, whatever the copy was called.
        ends: How commands ended: "end", "border" or "done before".
        drawn: What each verb's report was written to.
    """

    folder: Path
    run: Path
    patch: pytest.MonkeyPatch
    done: set[str] = field(default_factory=set)
    ends: list[str] = field(default_factory=list)
    drawn: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for place in (
            "mismatch_probe.stages.process.WorkerProcess",
            "mismatch_probe.distributed.ray_executor.RayExecutor.__call__",
            "mismatch_probe.distributed.ray_executor.RayExecutor.spread",
            "mismatch_probe.assets.catalog.write_random_checkpoint",
        ):
            self.patch.setattr(place, _border)
        # Nothing is made ready for engines that will not start.
        self.patch.setattr("mismatch_probe.stages.executor.expected_jobs", lambda *_: [])
        self.patch.setattr(showing, "write_reports", self._write_reports)
        self._model = self._make_model()
        self._gguf = write_gguf(self._model, self.folder / "model.gguf")
        self._slime = self._make_slime()

    def _write_reports(self, *arguments: Any, **options: Any) -> Any:
        """Draws the report once for each verb: it takes seconds, and all that differs between two is the result."""
        verb = sys.argv[1]
        if verb not in self.drawn:
            self.drawn[verb] = _real_write_reports(*arguments, **options)
        return self.drawn[verb]

    def _make_model(self) -> Path:
        """The embedded model, with room for the long responses of the examples."""
        source, model = resolve_model("tiny-qwen3-moe").path, self.folder / "model"
        shutil.copytree(source, model)
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 40960}))
        return model

    def _make_slime(self) -> Path:
        """A dump that the embedded model could have sampled: without the routes, which are those of another shape."""
        import torch

        dump = torch.load(next((_GOLDEN / "slime").rglob("rollout_data/*.pt")), weights_only=False)
        for sample in dump["samples"]:
            sample.pop("rollout_routed_experts", None)
        torch.save(dump, self.folder / "rollout_0.pt")
        return self.folder / "rollout_0.pt"

    def try_out(self, example: Example, number: int) -> None:
        """Runs one example; raises whatever is wrong with it."""
        place = self.folder / f"example-{number}"
        self._lay_out(place)
        self.patch.chdir(place)
        if example.kind == "python":
            self._run_python(example.text)
        elif example.kind == "toml":
            _load_toml(example.text, place)
        else:
            for command in _expand(example.text, place):
                self._run_command(command)
        self.patch.chdir(self.folder)
        shutil.rmtree(place)

    def _lay_out(self, place: Path) -> None:
        for name in (*MODELS, *(f"checkpoints/step-{step}" for step in STEPS)):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).symlink_to(self._model)
        (place / "FILE.gguf").symlink_to(self._gguf)
        for name in ("mismatch_probe", "examples", "benchmarks", "tools", ".venv-sglang"):
            (place / name).symlink_to(ROOT / name)
        (place / "math.jsonl").write_text(
            "".join(json.dumps({"prompt_id": f"p{i}", "prompt": f"{i}+1="}) + "\n" for i in range(256))
        )
        (place / "probe.toml").write_text(_probe_toml())
        (place / "ppo_trainer.yaml").write_text("algorithm:\n  gamma: 1.0  # as before\n")
        (place / "rl.toml").write_text("[trainer.loss]\ndppo_mask_low = 0.1  # as before\n")
        (place / "bars.toml").write_text(_toml("check.md", "k3_max"))
        (place / "logs").mkdir()
        shutil.copy(_GOLDEN / "nemo-rl" / "train_data_step5.jsonl", place / "logs")
        shutil.copy(self._slime, place / "rollout_0.pt")
        shutil.copytree(_GOLDEN / "verl", place / "rollout_dump")

    def _run_command(self, command: list[str]) -> None:
        name, *arguments = command
        if name == "mismatch-probe":
            self._run_verb(arguments)
        elif name == "python":
            _parse_python(arguments)
            self._pretend(arguments)
        elif name == "make":
            subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, check=True, capture_output=True)
        elif name == "pip":
            _check_requirements(arguments)
        elif name not in NOT_RUN:
            raise AssertionError(f"nobody knows how to try {name}")

    def _run_verb(self, arguments: list[str]) -> None:
        resumed = "--resume" in arguments
        existing = [
            argument
            for before, argument in itertools.pairwise(["", *arguments])
            if _RUN.match(argument) and (resumed or before not in _MADE) and not Path(argument).is_symlink()
        ]
        if RUNS in arguments and not Path(RUNS, "first").exists():
            # A folder of runs.
            self._provide(Path(RUNS, "first"), unscored=False)
        canonical = " ".join("RUN" if a in existing else a for a in arguments)
        fresh = [Path(run) for run in existing if not Path(run).exists()]
        if existing and len(fresh) == len(existing) and canonical in self.done:
            self.ends.append("done before")
            return
        for run in fresh:
            self._provide(run, unscored=arguments[0] == "score" or resumed)
        self.patch.setattr(sys, "argv", ["mismatch-probe", *arguments])
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            try:
                status = app(arguments, standalone_mode=False)
                self.ends.append("end")
            except Border:
                status = 0
                self.ends.append("border")
                self._pretend(arguments)
                if arguments[0] == "score":
                    shutil.rmtree(existing[0])
                    shutil.copytree(self.run, existing[0])
        # The dumps at hand are of a few prompts: too few to conclude anything.
        allowed = (0, 1, 3) if any(_is_imported(Path(run)) for run in existing) else (0, 1)
        assert (status or 0) in allowed, f"{arguments} ended with {status}: {shown.getvalue()[-2000:]}"
        if fresh and len(fresh) == len(existing):
            self.done.add(canonical)

    def _provide(self, run: Path, *, unscored: bool) -> None:
        """A measured run where the example names one."""
        if str(run) == IMPORTED:
            self._run_verb(["import", "--from", "slime", "rollout_0.pt", "--out", IMPORTED])
            return
        shutil.copytree(self.run, run)
        if unscored:
            shutil.rmtree(run / "scores" / "train")

    def _pretend(self, arguments: list[str]) -> None:
        """What would have been written, as the next command of the example finds it."""
        if "--out" not in arguments:
            shutil.rmtree(DEFAULT_OUT, ignore_errors=True)
        for option, value in itertools.pairwise(arguments):
            if option in _MADE and _RUN.match(value):
                shutil.rmtree(value, ignore_errors=True)
                shutil.copytree(self.run, value)

    def _run_python(self, text: str) -> None:
        """Executes a snippet with the names that the text around it speaks of."""
        from mismatch_probe.stages.events import SilentWatcher
        from mismatch_probe.trace.run_directory import RunDirectory

        shutil.copytree(self.run, "RUN")
        # Dataclasses look for their module.
        module = ModuleType("printed_example")
        vars(module).update(run=RunDirectory(Path("RUN")), Path=Path, SilentWatcher=SilentWatcher)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, module.__name__, module)
            for registry in (engines, scorers, methods, importers, exporters):
                # Loaded first, so that what an example registers is gone after it and nothing else is.
                patch.setattr(registry, "_entries", {entry.name: entry for entry in registry})
            with contextlib.suppress(Border), contextlib.redirect_stdout(io.StringIO()):
                exec(compile(text, "example", "exec", dont_inherit=True), vars(module))


def _is_imported(run: Path) -> bool:
    return "imported" in json.loads((run / "manifest.json").read_text())


def _border(*_: Any, **__: Any) -> NoReturn:
    raise Border


def _expand(text: str, place: Path) -> list[list[str]]:
    """Commands of a shell example as bash reads them: quotes, comments, variables, loops, pipes."""
    for there, here in PUT_IN.items():
        text = text.replace(there, here)
    named = "\n".join(
        f"{name}() {{ printf '%s\\0' $(($# + 1)) {name} \"$@\" >> commands; }}" for name in COMMANDS
    )
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "1"}
    # A filter that finds nothing in the recorder's silence ends with 1; only bash's own errors are of interest.
    run = subprocess.run(
        ["bash", "-u", "-c", f"{named}\n{text}"], cwd=place, env=environment, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert not run.stderr, run.stderr
    return list(_read((place / "commands").read_bytes().decode().split("\0")[:-1]))


def _read(fields: list[str]) -> Iterator[list[str]]:
    while fields:
        count = int(fields[0])
        yield fields[1 : count + 1]
        fields = fields[count + 1 :]


def _parse_python(arguments: list[str]) -> None:
    """Runs a script of ours up to the end of its own argument parser."""
    real = argparse.ArgumentParser.parse_args

    def parse(parser: argparse.ArgumentParser, *given: Any) -> NoReturn:
        real(parser, *given)
        raise Border

    module = arguments[1] if arguments[0] == "-m" else None
    rest = arguments[2:] if module else arguments[1:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse)
        patch.setattr(sys, "argv", [arguments[0], *rest])
        with pytest.raises(Border):
            if module:
                runpy.run_module(module, run_name="__main__")
            else:
                runpy.run_path(arguments[0], run_name="__main__")


def _check_requirements(arguments: list[str]) -> None:
    """What is installed exists: our extras, and pins that this project knows."""
    verb, *words = arguments
    metadata = importlib.metadata.metadata("mismatch-probe")
    assert verb == "install"
    for wanted in (Requirement(word) for word in words if not word.startswith("-")):
        if wanted.name == "mismatch-probe":
            assert wanted.extras <= set(metadata.get_all("Provides-Extra") or ()), wanted
        else:
            assert wanted.specifier.contains(importlib.metadata.version(wanted.name)), wanted


def _load_toml(text: str, place: Path) -> None:
    from mismatch_probe.config.load import load_config

    (place / "example.toml").write_text(text)
    load_config(place / "example.toml", (), {})


def _probe_toml() -> str:
    """The probe.toml that docs/distributed.md prints."""
    text = _toml("distributed.md", "[train]")
    for there, here in PUT_IN.items():
        text = text.replace(there, here)
    # The page prints it for Ray; the jobs of a queue next to it go without.
    return text.partition("[ray]")[0]


def _toml(page: str, word: str) -> str:
    """The TOML with a certain word that a page prints."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    (found,) = (block for _, block in blocks(text) if kind_of(block) == "toml" and word in block)
    return found
