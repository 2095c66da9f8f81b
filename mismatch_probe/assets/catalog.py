"""From what a user calls a model to a folder on disk: known names, folders, and hub ids."""

from __future__ import annotations

import difflib
import json
import os
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from mismatch_probe.assets.model_facts import ModelFacts, has_all_weights, read_model_facts
from mismatch_probe.assets.random_checkpoint import (
    Progress,
    checkpoint_bytes,
    random_prompts,
    write_random_checkpoint,
)
from mismatch_probe.errors import ConfigError

__all__ = [
    "DEFAULT_MODEL",
    "ModelFacts",
    "ModelSource",
    "available_models",
    "default_cache_dir",
    "random_prompts",
    "read_model_facts",
    "resolve_model",
]

DEFAULT_MODEL = "tiny-qwen3-moe"
RANDOM_SEED = 0
_TINY_NOTE = "embedded: 4 layers, 16 experts, top-4; trained to solve small sums step by step"
# Name of a geometry -> (its file, hub id of the published checkpoint, what is said of it in listings).
_GEOMETRIES = {
    "qwen3-30b-a3b": (
        "qwen3-30b-a3b.json",
        "Qwen/Qwen3-30B-A3B",
        "geometry of Qwen3-30B-A3B (128 experts, top-8) with random weights; needs a number of layers",
    )
}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model"]


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model that is on disk.

    Attributes:
        name: What the user called it.
        path: Its folder, in the Hugging Face layout.
        prompts: Prompt set that belongs to it (JSON Lines), or None.
        reward: Name of the reward that scores its replies (``arithmetic``), or None.
        is_random: Whether the weights are random, so that replies mean nothing and there is no tokenizer.
        note: One line about it.
    """

    name: str
    path: Path
    prompts: Path | None
    reward: str | None
    is_random: bool
    note: str


def available_models() -> dict[str, str]:
    """Known model names with a line about each."""
    return {DEFAULT_MODEL: _TINY_NOTE, **{name: entry[2] for name, entry in _GEOMETRIES.items()}}


def default_cache_dir() -> Path:
    """Where made checkpoints are kept: MISMATCH_PROBE_CACHE, else XDG_CACHE_HOME, else ~/.cache."""
    if own := os.environ.get("MISMATCH_PROBE_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mismatch-probe"


def resolve_model(
    name_or_path: str,
    *,
    layers: int | None = None,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> ModelSource:
    """Find or make the model that a user names.

    In this order: a known name (see `available_models`), a folder with a `config.json`, a hub id in the local
    Hugging Face cache, a hub id to download (only when HF_HUB_OFFLINE is not set).

    Args:
        name_or_path: Known name, folder or hub id.
        layers: Depth of a random-weight checkpoint; only for the name of a geometry.
        cache_dir: Where such a checkpoint is kept; `default_cache_dir()` when None.
        progress: Called with (what, bytes done, bytes in all) while one is written.

    Returns:
        The model on disk.

    Raises:
        ConfigError: Nothing by that name can be found or made; the hint says what to do.
    """
    if name_or_path in _GEOMETRIES:
        return _resolve_geometry(name_or_path, layers, cache_dir or default_cache_dir(), progress)
    if layers is not None:
        raise ConfigError(
            f"a number of layers applies to random-weight geometries only, not to {name_or_path!r}",
            hint=f"leave it out, or use one of: {', '.join(_GEOMETRIES)}",
        )
    if name_or_path == DEFAULT_MODEL:
        folder = _asset("tiny_qwen3_moe")
        return ModelSource(DEFAULT_MODEL, folder, folder / "prompts.jsonl", "arithmetic", False, _TINY_NOTE)
    folder = Path(name_or_path).expanduser()
    if (folder / "config.json").is_file():
        return ModelSource(name_or_path, folder.resolve(), None, None, False, "local folder")
    if folder.exists():
        raise ConfigError(
            f"{name_or_path} exists but is no model folder: it has no config.json",
            hint="give the folder that holds config.json and the weights",
        )
    return _resolve_hub(name_or_path)


def _asset(name: str) -> Path:
    """Path of a packaged file; the package is always installed unpacked, since engines need real files."""
    return Path(str(files("mismatch_probe.assets") / name))


def _resolve_geometry(
    name: str, layers: int | None, cache_dir: Path, progress: Progress | None
) -> ModelSource:
    file, hub_id, _ = _GEOMETRIES[name]
    config: dict[str, Any] = json.loads(_asset(f"geometries/{file}").read_text(encoding="utf-8"))
    depth = int(config["num_hidden_layers"])
    if layers is None:
        size = checkpoint_bytes(config) / 1e9
        raise ConfigError(
            f"all {depth} layers of {name} would be {size:.0f} GB of random weights",
            hint=f"pass --layers 2, or give the path or the hub id of the real checkpoint, {hub_id}",
        )
    if not 1 <= layers <= depth:
        raise ConfigError(
            f"{name} has {depth} layers; {layers} is not possible", hint=f"choose from 1 to {depth}"
        )
    config |= {"num_hidden_layers": layers}
    folder = cache_dir / "random" / f"{name}-{layers}layers-seed{RANDOM_SEED}"
    path = write_random_checkpoint(config, folder, seed=RANDOM_SEED, progress=progress)
    note = f"random weights in the geometry of {hub_id}, {layers} of {depth} layers"
    return ModelSource(name, path, None, None, True, note)


def _resolve_hub(name: str) -> ModelSource:
    nearest = difflib.get_close_matches(name.lower(), available_models(), n=1, cutoff=0.5)
    known = f"did you mean {nearest[0]!r}?" if nearest else f"known names: {', '.join(available_models())}"
    if not _HUB_ID.fullmatch(name):
        raise ConfigError(f"{name!r} is neither a known model name nor a folder", hint=known)

    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    cached: Path | None = None
    try:
        cached = Path(snapshot_download(name, local_files_only=True, allow_patterns=_HUB_FILES))
    except (LocalEntryNotFoundError, HFValidationError):
        cached = None
    if cached is not None and (cached / "config.json").is_file() and has_all_weights(cached):
        return ModelSource(name, cached, None, None, False, "Hugging Face cache")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        state = "not in the Hugging Face cache" if cached is None else "only partly in the Hugging Face cache"
        raise ConfigError(
            f"{name!r} is neither a known model name nor a folder, and is {state}",
            hint=f"{known}; it is downloaded only when HF_HUB_OFFLINE is unset",
        )
    # The hub's HTTP error derives from its HTTP client's, which versions of the library differ in.
    failures: tuple[type[Exception], ...] = (OSError, HFValidationError, *HfHubHTTPError.__mro__[1:2])
    try:
        fetched = Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except failures as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"{name!r} is neither a known model name nor a folder, and cannot be downloaded: {reason}",
            hint=f"{known}; check the id, the network and your access to it",
        ) from error
    return ModelSource(name, fetched, None, None, False, "Hugging Face hub")
