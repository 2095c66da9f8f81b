"""Every reader of what comes from outside, called as the command line calls it, on bytes.

A target writes the bytes to a file and reads them. The only exceptions that may come out are this project's own, each of which
the command line turns into one sentence and status 2 or 3.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mismatch_probe.errors import MismatchProbeError

Target = Callable[[bytes], None]
TARGETS: dict[str, Target] = {}
CORPUS = Path(__file__).with_name("corpus")


@functools.cache
def _folder(_process: int) -> tempfile.TemporaryDirectory[str]:
    """In memory where the system has such a place; of this process, since workers run at once."""
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)


def target(name: str, file: str) -> Callable[[Callable[[Path], Any]], Target]:
    """Registers a reader of files of that name."""

    def register(read: Callable[[Path], Any]) -> Target:
        def run(data: bytes) -> None:
            path = Path(_folder(os.getpid()).name) / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            try:
                read(path)
            except MismatchProbeError as error:
                # What a user sees: one line, and the mend.
                assert str(error)

        TARGETS[name] = run
        return run

    return register


@target("prompts", "prompts.jsonl")
def _prompts(path: Path) -> Any:
    from mismatch_probe.prompts import prompt_set

    return prompt_set._read(path)


@target("prompts_table", "prompts.parquet")
def _prompts_table(path: Path) -> Any:
    from mismatch_probe.prompts import prompt_set

    return prompt_set._read(path)


@target("config", "probe.toml")
def _config(path: Path) -> Any:
    from mismatch_probe.config.load import load_config

    return load_config(path)


@target("assignment", "text")
def _assignment(path: Path) -> Any:
    from mismatch_probe.config.load import load_config

    return load_config(assignments=[path.read_bytes().decode("utf-8", "surrogateescape")])


@target("bars", "bars.toml")
def _bars(path: Path) -> Any:
    from mismatch_probe.config.load import read_bars

    return read_bars(path)


@target("result", "result.json")
def _result(path: Path) -> Any:
    from mismatch_probe.result import check_schema, read_result

    result = read_result(path)
    check_schema(result, path)
    return result


@target("report", "result.json")
def _report(path: Path) -> Any:
    """`report` draws the page of a result of any origin."""
    from mismatch_probe.result import read_result
    from mismatch_probe_reports import render_markdown

    return render_markdown(read_result(path))


@target("manifest", "manifest.json")
def _manifest(path: Path) -> Any:
    from mismatch_probe.trace.run_directory import RunDirectory

    run = RunDirectory.open_existing(path.parent)
    run.resume_base()
    return run.read_manifest()


@target("profile", "drift_profile.json")
def _profile(path: Path) -> Any:
    from mismatch_probe.drift import DriftProfile

    return DriftProfile.read(path)


@target("merge_yaml", "config.yaml")
def _merge_yaml(path: Path) -> Any:
    return _merged(path, "yaml")


@target("merge_toml", "config.toml")
def _merge_toml(path: Path) -> Any:
    return _merged(path, "toml")


def _merged(path: Path, layout: str) -> Any:
    from mismatch_probe.errors import ConfigError
    from mismatch_probe.export import ExportedConfig
    from mismatch_probe.export.annotated import Entry
    from mismatch_probe.export.merge import merge_config

    entries = (Entry("a.b", 1.5, "measured"), Entry("a.c", "x", "measured"), Entry("d", True, "measured"))
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(str(error)) from error
    return merge_config(text, ExportedConfig("", layout, (), entries))


@target("pickle", "dump.pkl")
def _pickle(path: Path) -> Any:
    from mismatch_probe.imports.unpickling import read_pickle

    return read_pickle(path)


@target("torch", "dump.pt")
def _torch(path: Path) -> Any:
    from mismatch_probe.imports.unpickling import read_torch

    return read_torch(path)


def _imported(name: str, path: Path) -> Any:
    """As the first half of `import`: the rows of a dump, held against each other."""
    from mismatch_probe.imports.importer import Notes, importers
    from mismatch_probe.imports.turns import row_of

    return [row_of(sequence) for sequence in importers.get(name).item(path, Notes())]


@target("nemo", "train_data_step1.jsonl")
def _nemo(path: Path) -> Any:
    return _imported("nemo-rl", path)


@target("prime", "rank_0.jsonl")
def _prime(path: Path) -> Any:
    return _imported("prime-rl", path)


@target("trl", "completions_1.parquet")
def _trl(path: Path) -> Any:
    return _imported("trl", path)


DUMPS = {
    "verl": ("verl", "exp_proj/GBS4_N2_in8_out16/1/gen_batch.dp", 4),
    "verl_queue": ("verl", "exp_proj/GBS4_N2_in8_out16/1/0/tq_batch.pt", 5),
    "skyrl": ("skyrl", "dumped_data/global_step_2_training_input.pkl", 2),
    "roll": ("roll", "train/step_000001.pkl", 2),
    "slime": ("slime", "rollout_data/0.pt", 2),
    "slime_train": ("slime", "train_data/0.pt", 2),
    "miles": ("miles", "rollout_data/0.pt", 2),
    "miles_train": ("miles", "train_data/0_0.pt", 2),
}
"""Importer, place of a file in a dump, and how deep that is; one file of each kind that an importer reads."""


def _dump(importer: str, place: str, depth: int) -> Callable[[Path], Any]:
    return lambda path: _imported(importer, path.parents[depth - 1])


for _name, (_importer, _place, _depth) in DUMPS.items():
    target(_name, _place)(_dump(_importer, _place, _depth))


@target("prompts_text", "prompts.txt")
def _prompts_text(path: Path) -> Any:
    from mismatch_probe.prompts import prompt_set

    return prompt_set._read(path)


@target("keep_sets", "part-00000.safetensors")
def _keep_sets(path: Path) -> Any:
    from mismatch_probe.trace.keep_sets import read_keep_sets

    return read_keep_sets(path, [0, 1], [[3, 5], [7]])


@target("checksums", "run/parts.sha256")
def _checksums(path: Path) -> Any:
    """A journal of any content, and a manifest that holds what it holds."""
    from mismatch_probe.trace.run_directory import RunDirectory

    run = RunDirectory(path.parent)
    part = run.rollout_part(0)
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(b"x")
    run.manifest_path.write_bytes(b'{"schema_version": 1}')
    run.checked(part)
    run.take_checksums()
    run.checked(part)


@target("part", "part-00000.parquet")
def _part(path: Path) -> Any:
    from mismatch_probe.trace.parts import read_table
    from mismatch_probe.trace.schema import rollout_schema

    return read_table(path, rollout_schema())


@target("routes", "part-00000.safetensors")
def _routes(path: Path) -> Any:
    from mismatch_probe.trace.parts import read_routing_part

    return read_routing_part(path)


@target("gguf", "model.gguf")
def _gguf(path: Path) -> Any:
    from mismatch_probe.engines.gguf_file import read_gguf

    return read_gguf(path)


def seeds(name: str) -> list[bytes]:
    """The corpus of a target."""
    return [file.read_bytes() for file in sorted((CORPUS / name).glob("*"))]


def nested(depth: int) -> bytes:
    """JSON that is nothing but nesting."""
    return b'{"schema_version": 1, "a": ' + b"[" * depth + b"]" * depth + b"}"


def dumped(value: Any) -> bytes:
    """JSON bytes."""
    return json.dumps(value).encode()
