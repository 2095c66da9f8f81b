"""What a GGUF file says of itself, and where that differs from the checkpoint it should be a copy of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mismatch_probe.assets.model_facts import read_model_facts, read_text_config
from mismatch_probe.errors import ConfigError

_NUMBERS = {
    "block_count": ("num_hidden_layers",),
    "embedding_length": ("hidden_size",),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "rope.freq_base": ("rope_theta", "rope_parameters.rope_theta"),
    "expert_count": ("num_experts", "num_local_experts", "n_routed_experts"),
    "expert_used_count": ("num_experts_per_tok",),
}
"""By key below the architecture's name: the keys of config.json that say the same, the first that is there."""

# GGUF keeps these as float32.
_RELATIVE_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class GgufFacts:
    """What is known of a GGUF file without loading its weights.

    Attributes:
        architecture: llama.cpp's name, such as "qwen3moe".
        vocab_size: Rows of the token embedding.
        numbers: Metadata below the architecture's name that are plain numbers.
        tensor_types: Bytes of the file by tensor type, such as {"F32": 1024, "Q4_1": 40960}.
    """

    architecture: str
    vocab_size: int
    numbers: dict[str, float]
    tensor_types: dict[str, int]

    @property
    def main_type(self) -> str:
        """The type that most of the bytes have."""
        return max(self.tensor_types, key=lambda name: self.tensor_types[name])


def read_gguf(path: Path) -> GgufFacts:
    """Reads the header of a GGUF file.

    Raises:
        ConfigError: There is no such file, or it is no GGUF file.
    """
    from gguf import GGUFReader

    if not path.is_file():
        raise ConfigError(
            f"there is no file {path}", hint="rollout.options.gguf takes the path of a .gguf file"
        )
    try:
        reader = GGUFReader(path)
    except (ValueError, IndexError, KeyError, UnicodeDecodeError, OverflowError, MemoryError) as error:
        raise ConfigError(f"{path} is not a GGUF file that can be read: {error}") from error
    name = reader.get_field("general.architecture")
    embedding = next((t for t in reader.tensors if t.name == "token_embd.weight"), None)
    if name is None or embedding is None:
        raise ConfigError(
            f"{path} names no architecture or has no token embedding",
            hint="give a language model's file; the first of several shards holds the metadata",
        )
    architecture = str(name.contents())
    numbers: dict[str, float] = {}
    for key, field in reader.fields.items():
        if key.startswith(f"{architecture}.") and len(field.data) == 1:
            value = field.contents()
            if isinstance(value, int | float) and not isinstance(value, bool):
                numbers[key.removeprefix(f"{architecture}.")] = float(value)
    types: dict[str, int] = {}
    for tensor in reader.tensors:
        types[tensor.tensor_type.name] = types.get(tensor.tensor_type.name, 0) + int(tensor.n_bytes)
    return GgufFacts(architecture, int(embedding.shape[1]), numbers, types)


def gguf_differences(gguf: Path, checkpoint: Path) -> list[tuple[str, str, str]]:
    """Where a GGUF file is not the model of a checkpoint folder.

    Args:
        gguf: The file.
        checkpoint: Folder with the config.json that it should agree with.

    Returns:
        (key, the file's value, the checkpoint's value) of every difference; keys that only one of them has are skipped.
    """
    facts = read_gguf(gguf)
    config = read_text_config(checkpoint)
    vocabulary = read_model_facts(checkpoint).vocab_size
    differences = []
    if facts.vocab_size != vocabulary:
        differences.append(("gguf vocab_size", str(facts.vocab_size), str(vocabulary)))
    for key, names in _NUMBERS.items():
        stored = facts.numbers.get(key)
        declared = next((value for name in names if (value := _number(config, name)) is not None), None)
        if stored is None or declared is None:
            continue
        if not math.isclose(stored, declared, rel_tol=_RELATIVE_TOLERANCE):
            differences.append((f"gguf {key}", f"{stored:g}", f"{declared:g}"))
    return differences


def _number(config: Mapping[str, Any], dotted: str) -> float | None:
    value: Any = config
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
