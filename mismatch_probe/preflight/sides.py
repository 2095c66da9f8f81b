"""What differs between the two sides of a pair, aspect by aspect, known from files and options alone."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mismatch_probe.config.model import ProbeConfig
from mismatch_probe.preflight.pair import ConfigDifference, config_differences, engine_differences

ASPECTS = ("dtype", "rope", "norms", "vocabulary", "generation config", "chat template", "architecture")

_ABSENT = "absent"
_NUMERIC_OPTIONS = ("dtype", "quantization", "kv_cache_dtype")
_NUMERIC_FIELDS = ("dtype", "torch_dtype", "quantization_config")
_VOCABULARY_KEYS = ("vocab", "token_id", "tokenizer", "tie_word")
_GENERATION_IGNORED = ("transformers_version", "_from_model_config")


@dataclass(frozen=True, slots=True)
class Aspect:
    """One aspect of both sides.

    Attributes:
        name: One of `ASPECTS`.
        differences: What differs; empty where nothing does.
        note: What is the same, or what else is worth knowing.
    """

    name: str
    differences: tuple[ConfigDifference, ...]
    note: str


def compare_sides(config: ProbeConfig, rollout: Path, train: Path) -> tuple[Aspect, ...]:
    """Compares both sides in every aspect that moves log-probabilities.

    Args:
        config: What will be audited.
        rollout: Folder of the rollout side's checkpoint.
        train: Folder of the training side's checkpoint.

    Returns:
        One entry for each of `ASPECTS`, in that order.
    """
    found: dict[str, list[ConfigDifference]] = {name: [] for name in ASPECTS}
    own = engine_differences(config.rollout.engine, config.rollout.options, rollout)
    for item in [*own, *config_differences(rollout, train)]:
        found[_aspect(item.key)].append(item)
    found["dtype"] += _dtype_differences(config, rollout, train)
    found["generation config"] += _generation_differences(rollout, train)
    template = [_template(folder) for folder in (rollout, train)]
    if template[0] != template[1]:
        found["chat template"].append(ConfigDifference("chat template", *template))
    notes = {
        "dtype": f"weights in {config.rollout.dtype}",
        "generation config": _generation_note(config, rollout),
        "chat template": template[0],
    }
    return tuple(Aspect(name, tuple(found[name]), notes.get(name, "")) for name in ASPECTS)


def _aspect(key: str) -> str:
    name = key.lower()
    if "rope" in name or "rotary" in name:
        return "rope"
    if "norm" in name.replace("norm_topk", "") or name.endswith("_eps"):
        return "norms"
    if any(part in name for part in _VOCABULARY_KEYS) or name.endswith((".json", ".model")):
        return "vocabulary"
    return "architecture"


def _dtype_differences(config: ProbeConfig, rollout: Path, train: Path) -> list[ConfigDifference]:
    sides: list[dict[str, str]] = []
    for side, folder in ((config.rollout, rollout), (config.train, train)):
        stored = _read(folder / "config.json")
        values = {"weights in use": str(side.options.get("dtype", side.dtype))}
        values |= {
            f"options.{key}": str(side.options[key]) for key in _NUMERIC_OPTIONS[1:] if key in side.options
        }
        values |= {
            f"checkpoint {key.removeprefix('torch_')}": json.dumps(stored[key], sort_keys=True)
            for key in _NUMERIC_FIELDS
            if stored.get(key) is not None
        }
        sides.append(values)
    return _differences("", *sides)


def _generation_differences(rollout: Path, train: Path) -> list[ConfigDifference]:
    sides = [
        {key: json.dumps(value) for key, value in _generation(folder).items()} for folder in (rollout, train)
    ]
    return _differences("generation_config.", *sides)


def _generation_note(config: ProbeConfig, rollout: Path) -> str:
    """Where a checkpoint wishes for other sampling than the audit's, which engines then have to be kept from."""
    wished = _generation(rollout)
    # By key: what the audit asks for, and the values that ask for nothing.
    asked: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "temperature": (config.sampling.temperature, (1,)),
        "top_p": (config.sampling.top_p, (1,)),
        "top_k": (config.sampling.top_k, (0, -1)),
        "repetition_penalty": (1.0, (1,)),
    }
    others = [
        f"{key}={wished[key]} (the audit: {value:g})"
        for key, (value, neutral) in asked.items()
        if wished.get(key) is not None and wished[key] not in (value, *neutral)
    ]
    return f"the checkpoint wishes for {', '.join(others)}" if others else ""


def _generation(folder: Path) -> dict[str, Any]:
    return {k: v for k, v in _read(folder / "generation_config.json").items() if k not in _GENERATION_IGNORED}


def _template(folder: Path) -> str:
    """A chat template's hash, from the file of its own or the tokenizer's configuration."""
    own = folder / "chat_template.jinja"
    text = own.read_text("utf-8") if own.is_file() else None
    if text is None:
        held = _read(folder / "tokenizer_config.json").get("chat_template")
        text = held if held is None or isinstance(held, str) else json.dumps(held, sort_keys=True)
    return "none" if text is None else f"sha256 {hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _differences(prefix: str, rollout: dict[str, str], train: dict[str, str]) -> list[ConfigDifference]:
    return [
        ConfigDifference(prefix + key, rollout.get(key, _ABSENT), train.get(key, _ABSENT))
        for key in sorted(rollout.keys() | train.keys())
        if rollout.get(key) != train.get(key)
    ]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return held
