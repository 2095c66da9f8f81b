"""Import: a framework's dump becomes an ordinary run directory, part by part."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mismatch_probe import __version__
from mismatch_probe.config.model import ProbeConfig
from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.imports.importer import ImportedSequence, Notes, check_values, importers
from mismatch_probe.imports.routes import MISSING
from mismatch_probe.imports.turns import Row, row_of
from mismatch_probe.preflight.environment import package_versions
from mismatch_probe.stages.rollout_work import write_scores
from mismatch_probe.trace.parts import write_routing, write_table, write_text
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.schema import SCHEMA_VERSION, rollout_schema

UNKNOWN_MODEL = "unknown"
PART_ROWS = 256
_NOT_RECORDED = "the dump does not say"
_FACTS = (
    "architecture", "num_parameters", "num_layers", "num_moe_layers", "num_experts", "top_k", "vocab_size",
    "weights_sha256", "weights_hash_kind",
)  # fmt: skip


def import_dump(
    run: RunDirectory, name: str, path: Path, config: ProbeConfig, command: str
) -> dict[str, Any]:
    """Writes a dump into a claimed run directory.

    Args:
        run: Where to.
        name: A registered dump format.
        path: The dump.
        config: `model` and `sampling.temperature` where the user gave them; `out`.
        command: The command line, for the report.

    Returns:
        The manifest's section `imported`: what was renamed, kept beside, missing and left out.

    Raises:
        ConfigError: Unknown format, or a dump that is damaged or not safe to read.
        InconclusiveError: No sequence has a token that counts, or only some have a training side.
    """
    importer = importers.get(name).item
    notes = Notes()
    parts = _Parts(run)
    for sequence in importer(path, notes):
        row = _checked(sequence, notes)
        if row is not None:
            parts.add(sequence, row)
    parts.flush()
    if not parts.num_rows:
        raise InconclusiveError(
            f"{path} has no sequence with a token that counts", hint="check its loss masks"
        )
    if not parts.two_sided:
        notes.missing["train/forward"] = (
            "one side only: run `mismatch-probe score --model CHECKPOINT` before measuring"
        )
    for column, absent in parts.absent.items():
        if absent:
            follows = (
                "their tokens count as not routed"
                if column == "routes" and parts.routes
                else "it is used for none"
            )
            notes.missing[column] = f"not there for {absent} of {parts.num_rows} sequences, so {follows}"
    section = {
        "from": name,
        "renamed": dict(sorted(notes.renamed.items())),
        "kept_beside": sorted(notes.unknown),
        "missing": dict(sorted(notes.missing.items())),
        "left_out": dict(sorted(notes.dropped.items())),
        "two_sided": parts.two_sided,
        "masked_sequences": parts.masked,
        "routes": parts.routes,
    }
    run.write_manifest(_manifest(run, name, path, config, command, parts, section))
    run.take_checksums()
    return section


def _checked(sequence: ImportedSequence, notes: Notes) -> Row | None:
    row = row_of(sequence)
    if row is None:
        notes.dropped["sequence without a token that counts"] += 1
    elif not row.prompt.size:
        raise ConfigError(
            f"{sequence.where} has no prompt: its first token counts, and nothing precedes it",
            hint="is the mask shifted by one?",
        )
    return row


class _Parts:
    """Rows on their way to disk, a part at a time."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._rows: list[tuple[ImportedSequence, Row]] = []
        self._samples: dict[str, int] = {}
        self._prompts = hashlib.sha256()
        self._offsets, self._response = hashlib.sha256(), hashlib.sha256()
        self.num_parts = self.num_rows = self.masked = 0
        self.two_sided: bool | None = None
        self.absent = {"advantage": 0, "reward": 0, "weight_version": 0, "routes": 0}
        self.routes: dict[str, int] | None = None

    def add(self, sequence: ImportedSequence, row: Row) -> None:
        if self.two_sided is None:
            self.two_sided = row.train is not None
            if row.routes is not None:
                self.routes = {"layers": row.routes.shape[1], "top_k": row.routes.shape[2]}
        if self.two_sided != (row.train is not None):
            raise InconclusiveError(
                f"{sequence.where}: some sequences have the trainer's log-probabilities and some have not",
                hint="import the files apart",
            )
        if (shape := self._shape()) and row.routes is not None and row.routes.shape[1:] != shape:
            raise ConfigError(
                f"{sequence.where} has routes of {row.routes.shape[1:]} layers and experts, the first had {shape}",
                hint="are all files of one model?",
            )
        self.masked += row.counted is not None
        self._rows.append((sequence, row))
        if len(self._rows) == PART_ROWS:
            self.flush()

    def _shape(self) -> tuple[int, int] | None:
        return None if self.routes is None else (self.routes["layers"], self.routes["top_k"])

    def flush(self) -> None:
        """Writes what is held as one part."""
        if not self._rows:
            return
        import pyarrow as pa

        ids = [self.num_rows + place for place in range(len(self._rows))]
        names = [self._prompt_id(sequence, row) for sequence, row in self._rows]
        for sequence, row in self._rows:
            self._prompts.update(np.asarray([row.prompt.size, *row.prompt], dtype="<i8").tobytes())
            for column in self.absent:
                self.absent[column] += getattr(sequence, column) is None
        columns: dict[str, Any] = {
            "sequence_id": ids,
            "prompt_id": names,
            "sample_index": [self._sample_index(name) for name in names],
            "prompt_token_ids": [row.prompt for _, row in self._rows],
            "response_token_ids": [row.response for _, row in self._rows],
            "rollout_logprobs": [row.rollout for _, row in self._rows],
            "finish_reason": ["unknown"] * len(ids),
            "advantage": [sequence.advantage for sequence, _ in self._rows],
            "reward": [sequence.reward for sequence, _ in self._rows],
            "weight_version": [sequence.weight_version for sequence, _ in self._rows],
            "old_logprobs": [None] * len(ids),
            "loss_mask": [row.counted for _, row in self._rows],
        }
        if (shape := self._shape()) is not None:
            write_routing(
                self._run.routing_part("rollout/decode", self.num_parts),
                [_routes(row, shape) for _, row in self._rows],
                ids,
                note=self._run.note_part,
            )
        if self.two_sided:
            write_scores(
                self._run, "train/forward", self.num_parts, ids, [row.train for _, row in self._rows], None
            )
        lines = (
            json.dumps({"sequence_id": i, **_plain(s.extras, s.where)})
            for i, (s, _) in zip(ids, self._rows, strict=True)
        )
        write_text(self._run.extras_part(self.num_parts), "\n".join(lines) + "\n", self._run.note_part)
        table = pa.table(columns, schema=rollout_schema())
        write_table(self._run.rollout_part(self.num_parts), table, self._run.note_part)
        self.num_parts += 1
        self.num_rows += len(ids)
        self._rows = []

    @property
    def num_prompts(self) -> int:
        """Prompt groups seen."""
        return len(self._samples)

    @property
    def prompts_sha256(self) -> str:
        """Hash of all prompts, row by row."""
        return self._prompts.hexdigest()

    def _prompt_id(self, sequence: ImportedSequence, row: Row) -> str:
        if sequence.group is not None:
            return sequence.group
        # Rows of one sequence are of one prompt, whichever turn they begin with.
        first = sequence.tokens[: int(np.argmax(sequence.counted))]
        return "ids-" + hashlib.sha256(np.asarray(first, dtype="<i8").tobytes()).hexdigest()[:16]

    def _sample_index(self, name: str) -> int:
        self._samples[name] = self._samples.get(name, -1) + 1
        return self._samples[name]


def _routes(row: Row, shape: tuple[int, int]) -> npt.NDArray[np.int16]:
    """A row's routes; a row without any has none for each of its tokens."""
    fed = row.prompt.size + row.response.size - 1
    return row.routes if row.routes is not None else np.full((fed, *shape), MISSING, dtype=np.int16)


def _plain(values: Any, where: str) -> dict[str, Any]:
    """Values that JSON has, as they are; others as text of bounded length."""
    return {str(name): _plain_value(value, str(name), where) for name, value in values.items()}


def _plain_value(value: Any, name: str, where: str) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    check_values(value, name, where)
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return str(value)[:1000]
    return json.loads(text)


def _manifest(
    run: RunDirectory,
    name: str,
    path: Path,
    config: ProbeConfig,
    command: str,
    parts: _Parts,
    section: dict[str, Any],
) -> dict[str, Any]:
    from mismatch_probe.trace.manifest import responses_hash
    from mismatch_probe.trace.trace import Trace

    now = datetime.now(UTC).isoformat(timespec="seconds")
    given = config.model_fields_set
    held = config.model_dump(mode="json")
    del held["matrix"]
    temperature = config.sampling.temperature if "sampling" in given else None
    section = {**section, "sampling": {**dict.fromkeys(held["sampling"]), "temperature": temperature}}
    side = {
        "version": "unknown",
        "dtype": "unknown",
        "device": "unknown",
        "logprobs_mode": "unknown",
        "options": {},
        "details": {},
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "tool_version": __version__,
        "run_id": hashlib.sha256(f"{now}{parts.prompts_sha256}".encode()).hexdigest()[:16],
        "created_at": now,
        "command": command,
        "config": held,
        "config_set": sorted(given - {"matrix"}),
        "legs": ["rollout/decode", *(["train/forward"] if parts.two_sided else [])],
        "routing": False,
        "num_parts": parts.num_parts,
        "num_sequences": parts.num_rows,
        "versions": package_versions(),
        "model": {
            **dict.fromkeys(_FACTS),
            "name": config.model if "model" in given else UNKNOWN_MODEL,
            "path": None,
            "note": _NOT_RECORDED,
            "is_random": False,
            "moe_layers": [],
        },
        "train_model": {"name": config.model if "model" in given else UNKNOWN_MODEL},
        "prompts": {
            "source": f"{name} dump {path.name}",
            "num_prompts": parts.num_prompts,
            "sha256": parts.prompts_sha256,
            "reward": None,
        },
        "seeds": {"sampling": None},
        "engines": {
            "rollout": {"engine": f"imported:{name}", **side},
            **({"train": {"scorer": f"imported:{name}", **side}} if parts.two_sided else {}),
        },
        "responses_sha256": responses_hash(Trace(run, parts.num_parts).recorded),
        "stages": {"record": "done", **({"score": "done"} if parts.two_sided else {})},
        "imported": section,
    }
