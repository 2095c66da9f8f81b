"""Whether two checkpoints can be compared at all: same vocabulary, same shape, same constants."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mismatch_probe.engines.registry import engines
from mismatch_probe.errors import ConfigError

# Keys that say how a checkpoint was stored or trained, not what it computes.
_NOT_COMPUTED = {
    "_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "output_router_logits", "router_aux_loss_coef",
    "transformers_version", "use_cache", "initializer_range", "quantization_config", "max_position_embeddings",
}  # fmt: skip
_VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True, slots=True)
class ConfigDifference:
    """One key on which the two sides differ.

    Attributes:
        key: Dotted key of config.json, or the name of a vocabulary file.
        rollout: The rollout side's value.
        train: The training side's value.
    """

    key: str
    rollout: str
    train: str


def config_differences(rollout: Path, train: Path) -> list[ConfigDifference]:
    """What differs between two checkpoints that should compute the same function.

    Args:
        rollout: Folder of the rollout side's checkpoint.
        train: Folder of the training side's checkpoint.
    """
    left, right = _flat_config(rollout), _flat_config(train)
    differences = [
        ConfigDifference(key, _show(left, key), _show(right, key))
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    ]
    for name in _VOCABULARY_FILES:
        files = (rollout / name, train / name)
        if all(file.is_file() for file in files):
            hashes = [hashlib.sha256(file.read_bytes()).hexdigest()[:12] for file in files]
            if hashes[0] != hashes[1]:
                differences.append(ConfigDifference(name, f"sha256 {hashes[0]}", f"sha256 {hashes[1]}"))
    return differences


def engine_differences(engine: str, options: Mapping[str, Any], checkpoint: Path) -> list[ConfigDifference]:
    """Where an engine's own weight file (a GGUF file, say) is not the model of a checkpoint folder.

    Args:
        engine: Name of a registered rollout engine.
        options: `rollout.options`.
        checkpoint: The folder.
    """
    ask = engines.get(engine).item.differences
    return [] if ask is None else [ConfigDifference(*item) for item in ask(checkpoint, options)]


def check_pair(rollout: Path, train: Path, own: Sequence[ConfigDifference] = ()) -> None:
    """Raises if the two sides are not one model.

    Args:
        rollout: Folder of the rollout side's checkpoint.
        train: Folder of the training side's checkpoint.
        own: Where the engine's own weight file differs (`engine_differences`).

    Raises:
        ConfigError: Vocabulary or configuration differ; the message names the first difference.
    """
    differences = [*own, *(config_differences(rollout, train) if rollout != train else ())]
    if differences:
        first = differences[0]
        more = f" and {len(differences) - 1} more" if len(differences) > 1 else ""
        raise ConfigError(
            f"the two sides are not one model: {first.key} is {first.rollout} in the rollout checkpoint "
            f"and {first.train} in the training checkpoint{more}",
            hint="audit two checkpoints of one architecture and vocabulary",
        )


def _flat_config(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    flat: dict[str, Any] = {}
    _flatten(config, "", flat)
    return flat


def _flatten(value: dict[str, Any], prefix: str, into: dict[str, Any]) -> None:
    for key, item in value.items():
        if key in _NOT_COMPUTED:
            continue
        if isinstance(item, dict):
            _flatten(item, f"{prefix}{key}.", into)
        else:
            into[f"{prefix}{key}"] = item


def _show(config: dict[str, Any], key: str) -> str:
    return repr(config[key]) if key in config else "absent"
