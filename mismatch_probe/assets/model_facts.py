"""What a checkpoint folder says about itself, read without torch, transformers or the weights themselves."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mismatch_probe.errors import ConfigError

FULL_HASH_LIMIT = 1 << 30
_SAMPLES, _SAMPLE_BYTES, _CHUNK = 64, 4096, 1 << 20
_HEADER_LIMIT = 100_000_000
_EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_TOP_K_KEYS = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "experts_per_token",
    "moe_topk",
    "moe_top_k",
    "moe_k",
)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Facts of one checkpoint folder.

    Attributes:
        path: The folder.
        architecture: First entry of `architectures`, for example ``Qwen3MoeForCausalLM``.
        model_type: Hugging Face model type, for example ``qwen3_moe``; empty when not given.
        num_layers: Decoder layers.
        moe_layers: Indices of the layers that route tokens to experts, ascending; empty when dense.
        num_experts: Routed experts per MoE layer, or None when dense.
        top_k: Experts a token is sent to, or None when dense.
        hidden_size: Width of the residual stream.
        vocab_size: Rows of the output head.
        max_position_embeddings: Longest sequence the model declares, or None when it declares none.
        dtype: Declared type of the weights, for example ``bfloat16``; None when not declared.
        num_parameters: Elements stored in the safetensors files (tied weights once); None without such files.
        weights_sha256: Hash that identifies the weights, or None when the folder has no weight files.
        weights_hash_kind: ``full``: names and contents. ``sampled``: names, sizes, headers and evenly spaced
            blocks, for folders over 1 GiB of weights: it tells checkpoints apart but not every flipped bit.
            ``none``: no weight files.
        eos_token_ids: Tokens that end a response, `generation_config.json` first, then `config.json`.
    """

    path: Path
    architecture: str
    model_type: str
    num_layers: int
    moe_layers: tuple[int, ...]
    num_experts: int | None
    top_k: int | None
    hidden_size: int
    vocab_size: int
    max_position_embeddings: int | None
    dtype: str | None
    num_parameters: int | None
    weights_sha256: str | None
    weights_hash_kind: Literal["full", "sampled", "none"]
    eos_token_ids: tuple[int, ...]

    @property
    def is_moe(self) -> bool:
        """Whether any layer routes tokens to experts."""
        return bool(self.moe_layers)

    @property
    def num_moe_layers(self) -> int:
        """Number of layers that route tokens to experts."""
        return len(self.moe_layers)


def read_model_facts(path: Path) -> ModelFacts:
    """Read the facts of a checkpoint folder.

    Args:
        path: A folder in the Hugging Face layout.

    Returns:
        What its configuration and the headers of its weight files say.

    Raises:
        ConfigError: There is no `config.json`, a file is not readable JSON, a needed key is missing or of the
            wrong type, or a safetensors file is damaged or missing from the folder.
    """
    folder = Path(path)
    config = _read_json(folder / "config.json", needed=True)
    text = _text_level(config)
    generation = _read_json(folder / "generation_config.json", needed=False)
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise ConfigError(
            f"{folder / 'config.json'} names no architecture",
            hint="'architectures' must be a list such as [\"Qwen3MoeForCausalLM\"]",
        )
    num_layers = _whole_number(text, "num_hidden_layers", folder)
    num_experts = _first_number(text, _EXPERT_KEYS)
    top_k = _first_number(text, _TOP_K_KEYS)
    moe_layers = moe_layer_indices(text) if num_experts is not None and num_experts > 1 else ()
    if moe_layers and top_k is None:
        raise ConfigError(
            f"{folder / 'config.json'} declares {num_experts} experts but not how many a token is sent to",
            hint="'num_experts_per_tok' is missing",
        )
    files = _weight_files(folder)
    digest, kind = _hash_files(files)
    dtype = text.get("dtype") or text.get("torch_dtype")
    return ModelFacts(
        path=folder,
        architecture=str(architectures[0]),
        model_type=str(text.get("model_type", "")),
        num_layers=num_layers,
        moe_layers=moe_layers,
        num_experts=num_experts if moe_layers else None,
        top_k=top_k if moe_layers else None,
        hidden_size=_whole_number(text, "hidden_size", folder),
        vocab_size=_whole_number(text, "vocab_size", folder),
        max_position_embeddings=_first_number(text, ("max_position_embeddings",)),
        dtype=None if dtype is None else str(dtype).removeprefix("torch."),
        num_parameters=_count_parameters(files),
        weights_sha256=digest,
        weights_hash_kind=kind,
        eos_token_ids=_eos_ids((generation, text)),
    )


def has_all_weights(folder: Path) -> bool:
    """Whether a folder has weight files, and all that its index lists.

    Args:
        folder: A folder in the Hugging Face layout.
    """
    try:
        return bool(_weight_files(folder))
    except ConfigError:
        return False


def moe_layer_indices(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Which decoder layers of a configuration that has experts route tokens to them.

    Rules, as in the models' transformers code: an explicit `mlp_layer_types` or `moe_layers` list;
    `first_k_dense_replace` and `moe_layer_freq` (DeepSeek, GLM); `decoder_sparse_step` and `mlp_only_layers`
    (Qwen); `interleave_moe_layer_step` (Llama 4); `expert_layer_period` and `expert_layer_offset` (Jamba);
    otherwise every layer (Mixtral, OLMoE).

    Args:
        config: The text model's configuration.

    Returns:
        Layer indices, ascending.
    """
    layers = range(int(config["num_hidden_layers"]))
    kinds, listed = config.get("mlp_layer_types"), config.get("moe_layers")
    if isinstance(kinds, list):
        return tuple(i for i in layers if i < len(kinds) and kinds[i] == "sparse")
    if isinstance(listed, list):
        return tuple(sorted(int(i) for i in listed))
    if config.get("first_k_dense_replace") is not None or config.get("moe_layer_freq") is not None:
        frequency = config.get("moe_layer_freq") or 1
        every = 1 if isinstance(frequency, list) else int(frequency)
        chosen = [bool(f) for f in frequency] if isinstance(frequency, list) else [True] * len(layers)
        first = int(config.get("first_k_dense_replace") or 0)
        return tuple(i for i in layers if i >= first and i % every == 0 and chosen[i])
    if config.get("decoder_sparse_step") is not None:
        step, dense = int(config["decoder_sparse_step"]), set(config.get("mlp_only_layers") or ())
        return tuple(i for i in layers if i not in dense and step > 0 and (i + 1) % step == 0)
    if config.get("interleave_moe_layer_step") is not None:
        step = int(config["interleave_moe_layer_step"])
        return tuple(range(step - 1, len(layers), step)) if step > 0 else ()
    if config.get("expert_layer_period") is not None:
        period, offset = int(config["expert_layer_period"]), int(config.get("expert_layer_offset") or 0)
        return tuple(i for i in layers if (i - offset) % period == 0)
    return tuple(layers)


def read_text_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint folder, with a multimodal model's language part at the top level.

    Raises:
        ConfigError: There is none, or it is not readable JSON.
    """
    return _text_level(_read_json(folder / "config.json", needed=True))


def _text_level(config: dict[str, Any]) -> dict[str, Any]:
    # Multimodal checkpoints keep the language model's numbers one level down.
    return {**config, **config["text_config"]} if isinstance(config.get("text_config"), dict) else config


def _read_json(path: Path, *, needed: bool) -> dict[str, Any]:
    if not path.is_file():
        if not needed:
            return {}
        raise ConfigError(
            f"{path.parent} has no {path.name}",
            hint="give a model folder in the Hugging Face layout, or a known name",
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", hint="fetch the checkpoint again") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is not a JSON object", hint="fetch the checkpoint again")
    return content


def _first_number(config: Mapping[str, Any], keys: Sequence[str]) -> int | None:
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _whole_number(config: Mapping[str, Any], key: str, folder: Path) -> int:
    value = _first_number(config, (key,))
    if value is None or value < 1:
        raise ConfigError(
            f"{folder / 'config.json'}: {key!r} is {config.get(key)!r}, not a positive whole number",
            hint="the folder does not hold a decoder-only language model, or its configuration is damaged",
        )
    return value


def _eos_ids(configs: Iterable[Mapping[str, Any]]) -> tuple[int, ...]:
    ids: dict[int, None] = {}
    for config in configs:
        value = config.get("eos_token_id")
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, int):
                ids[item] = None
    return tuple(ids)


def _weight_files(folder: Path) -> list[Path]:
    """Weight files of a folder by name; the index decides where there is one."""
    for stem, pattern in (("model.safetensors", "*.safetensors"), ("pytorch_model.bin", "*.bin")):
        index = _read_json(folder / f"{stem}.index.json", needed=False).get("weight_map")
        if isinstance(index, dict):
            files = [folder / name for name in sorted(set(index.values()))]
            missing = [file.name for file in files if not file.is_file()]
            if missing:
                raise ConfigError(
                    f"{folder} lacks {len(missing)} of {len(files)} weight files, first {missing[0]}",
                    hint="the download or copy of the checkpoint is not complete",
                )
            return files
        if files := sorted(folder.glob(pattern)):
            return files
    return []


def _header(path: Path) -> bytes:
    """Return the JSON header of a safetensors file (8 bytes little-endian length, then JSON)."""
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else _HEADER_LIMIT + 1
        header = file.read(length) if length <= _HEADER_LIMIT else b""
    if length > _HEADER_LIMIT or len(header) != length:
        raise ConfigError(f"{path} is not a whole safetensors file", hint="fetch the checkpoint again")
    return header


def _count_parameters(files: Sequence[Path]) -> int | None:
    if not files or any(file.suffix != ".safetensors" for file in files):
        return None
    total = 0
    for file in files:
        header = _header(file)
        try:
            tensors = json.loads(header)
            total += sum(math.prod(t["shape"]) for name, t in tensors.items() if name != "__metadata__")
            end = max(
                (t["data_offsets"][1] for name, t in tensors.items() if name != "__metadata__"), default=0
            )
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{file} has a broken safetensors header", hint="fetch the checkpoint again"
            ) from error
        if file.stat().st_size != 8 + len(header) + end:
            raise ConfigError(f"{file} is cut off or has extra bytes", hint="fetch the checkpoint again")
    return total


def _hash_files(files: Sequence[Path]) -> tuple[str | None, Literal["full", "sampled", "none"]]:
    if not files:
        return None, "none"
    digest = hashlib.sha256()
    full = sum(file.stat().st_size for file in files) <= FULL_HASH_LIMIT
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as stream:
            if full:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
                continue
            if file.suffix == ".safetensors":
                digest.update(_header(file))
            for i in range(_SAMPLES):
                stream.seek((size - min(size, _SAMPLE_BYTES)) * i // (_SAMPLES - 1))
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest(), "full" if full else "sampled"
