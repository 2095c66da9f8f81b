"""slime and miles: `.pt` files with one dict a sample, and the trainer's half beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.imports.context_parallel import stitch_shards
from mismatch_probe.imports.importer import (
    FloatArray,
    ImportedSequence,
    Notes,
    dump_files,
    name_of,
    per_token,
    register_importer,
    require,
    token_ids,
)
from mismatch_probe.imports.padded import as_array
from mismatch_probe.imports.routes import fed_routes
from mismatch_probe.imports.unpickling import read_torch

_RENAMED = {
    "tokens": "prompt_token_ids + response_token_ids",
    "response_length": "where the response begins",
    "rollout_log_probs": "rollout_logprobs",
    "log_probs": "train/forward",
    "loss_mask": "counted tokens",
    "group_index": "prompt_id",
    "reward": "reward",
    "advantages": "advantage",
    "weight_versions": "weight_version",
}
_ROUTES = "rollout_routed_experts"
_INDEXER = "rollout_indexer_topk"


@register_importer("slime", summary="rollout_data/N.pt, and train_data/N.pt where it is there")
def slime(path: Path, notes: Notes) -> Iterator[ImportedSequence]:
    """Reads slime's debug dumps: both halves of `--dump-details`, or the rollout's alone."""
    for file in _rollout_files(path):
        samples = _samples(file)
        trainer = file.parent.parent / "train_data" / file.name
        train = _slime_train(trainer) if path.is_dir() and trainer.is_file() else {}
        yield from _joined(samples, train, file, notes)


@register_importer("miles", summary="rollout_data/N.pt, and train_data/N_RANK.pt where they are there")
def miles(path: Path, notes: Notes) -> Iterator[ImportedSequence]:
    """Reads miles' debug dumps; the trainer's half is one file a rank, with sequences cut over context-parallel ranks."""
    for file in _rollout_files(path):
        samples = _samples(file)
        folder = file.parent.parent / "train_data"
        ranks = sorted(folder.glob(f"{file.stem}_*.pt")) if path.is_dir() and folder.is_dir() else []
        yield from _joined(samples, _miles_train(ranks, samples), file, notes)


def _rollout_files(path: Path) -> list[Path]:
    files = dump_files(path, ("rollout_data/*.pt", "*.pt"), "rollout_data/*.pt")
    return [file for file in files if not file.name.startswith("eval_")]


def _samples(file: Path) -> list[Mapping[str, Any]]:
    payload = read_torch(file)
    samples = payload.get("samples") if isinstance(payload, dict) else None
    if not isinstance(samples, list) or not all(isinstance(sample, dict) for sample in samples):
        raise ConfigError(
            f"{file} holds no samples", hint="give a file of rollout_data, or the dump's folder"
        )
    return samples


def _slime_train(file: Path) -> dict[int, Mapping[str, Any]]:
    """The trainer's samples by place in the rollout file."""
    samples = _samples(file)
    places = [sample.get("rollout_position") for sample in samples]
    if any(place is None for place in places):
        raise ConfigError(
            f"{file} has samples without rollout_position: they cannot be joined with the rollout's"
        )
    return {int(place): sample for place, sample in zip(places, samples, strict=True) if place is not None}


def _miles_train(files: list[Path], samples: list[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """The trainer's samples by place in the rollout file, stitched from all ranks."""
    by_index = {sample.get("index"): place for place, sample in enumerate(samples)}
    shards: dict[int, list[tuple[int, int, Mapping[str, Any]]]] = {}
    for file in files:
        payload = read_torch(file)
        data = payload.get("rollout_data") if isinstance(payload, dict) else None
        if not isinstance(data, dict):
            raise ConfigError(f"{file} holds no rollout_data")
        if data.get("log_probs") is None:
            continue  # a pipeline stage without the output head
        if payload.get("qkv_format", "thd") != "thd":
            raise ConfigError(f"{file} is in the layout {payload['qkv_format']!r}, this reads thd")
        indices = data.get("sample_indices")
        if indices is None:
            raise ConfigError(
                f"{file} has no sample_indices: its samples cannot be joined with the rollout's"
            )
        size, rank = int(payload.get("cp_size", 1)), int(payload.get("cp_rank", 0))
        for position, index in enumerate(indices):
            if index not in by_index:
                raise ConfigError(f"{file} has sample {index}, the rollout file has not")
            fields = {
                name: values[position] for name, values in data.items() if _per_sample(values, len(indices))
            }
            shards.setdefault(by_index[index], []).append((rank, size, fields))
    joined: dict[int, Mapping[str, Any]] = {}
    for place, found in shards.items():
        total, response = len(samples[place]["tokens"]), int(samples[place]["response_length"])
        joined[place] = {
            name: stitch_shards(
                {rank: as_array(fields[name], name, f"sample {place}") for rank, _, fields in found if name in fields},
                found[0][1], total, response, f"{name} of sample {place}",
            )
            for name in ("log_probs", "advantages") if any(name in fields for _, _, fields in found)
        }  # fmt: skip
        joined[place] = {"tokens": found[0][2].get("tokens"), **joined[place]}
    return joined


def _per_sample(values: Any, count: int) -> bool:
    return isinstance(values, list | tuple) and len(values) == count


def _joined(
    samples: list[Mapping[str, Any]], train: Mapping[int, Mapping[str, Any]], file: Path, notes: Notes
) -> Iterator[ImportedSequence]:
    if train and len(train) != len(samples):
        # Dropped samples are part of the framework's own numbers nowhere, so they are left out here as well.
        notes.dropped["sample of the rollout that the trainer did not see"] += len(samples) - len(train)
    for place, sample in enumerate(samples):
        if train and place not in train:
            continue
        yield _sequence(sample, train.get(place), f"{file.name} sample {place}", notes)


def _sequence(
    sample: Mapping[str, Any], trained: Mapping[str, Any] | None, where: str, notes: Notes
) -> ImportedSequence:
    require(sample, ("tokens", "response_length"), where)
    ids = token_ids(as_array(sample["tokens"], "tokens", where), where)
    response = int(sample["response_length"])
    if not 0 <= response < ids.size:
        raise ConfigError(f"{where}: response_length {response} does not fit {ids.size} tokens")
    if response:
        require(sample, ("rollout_log_probs",), where)

    def fill(values: Any, name: str) -> FloatArray:
        full = np.zeros(ids.size)
        full[ids.size - response :] = per_token(as_array(values, name, where), response, name, where)
        return full

    mask = sample.get("loss_mask")
    counted = fill(np.ones(response) if mask is None else mask, "loss_mask") != 0
    if sample.get("remove_sample"):
        counted[:] = False
    train_logprobs = None
    if trained is not None:
        held = trained.get("tokens")
        if held is not None and not np.array_equal(as_array(held, "tokens", where)[: ids.size], ids):
            raise InconclusiveError(
                f"{where}: the trainer's tokens are not the rollout's", hint="are both files of one step?"
            )
        require(trained, ("log_probs",), where)
        train_logprobs = fill(trained["log_probs"], "log_probs")
    advantages = None if trained is None else trained.get("advantages")
    extras = {k: v for k, v in sample.items() if k not in _RENAMED and k not in (_ROUTES, _INDEXER)}
    notes.renamed.update({k: to for k, to in _RENAMED.items() if k in sample or k in (trained or {})})
    notes.unknown.update(extras)
    routes = None
    if sample.get(_ROUTES) is not None:
        routes = fed_routes(as_array(sample[_ROUTES], _ROUTES, where), ids.size, _ROUTES, where)
        notes.renamed[_ROUTES] = "routing/rollout/decode"
    if sample.get(_INDEXER) is not None:
        notes.dropped[f"column {_INDEXER}: choices of a sparse-attention indexer, which no leg compares"] += 1
    reward, versions = sample.get("reward"), sample.get("weight_versions")
    return ImportedSequence(
        where=where,
        tokens=ids,
        counted=counted,
        rollout_logprobs=fill(sample["rollout_log_probs"], "rollout_log_probs") if response else np.zeros(ids.size),
        train_logprobs=train_logprobs,
        group=None if sample.get("group_index") is None else name_of(sample["group_index"], "group_index", where),
        advantage=_same(fill(advantages, "advantages")[counted]) if advantages is not None else None,
        reward=float(reward) if isinstance(reward, int | float) else None,
        weight_version="..".join(dict.fromkeys(name_of(v, "weight_versions", where) for v in versions or ())) or None,
        extras=extras,
        routes=routes,
    )  # fmt: skip


def _same(values: FloatArray) -> float | None:
    return float(values[0]) if values.size and np.all(values == values[0]) else None
