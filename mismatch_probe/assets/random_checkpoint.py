"""Random-weight checkpoints of a real model's geometry, written tensor by tensor in the hub's layout.

Such a checkpoint has the shapes, kernels, memory traffic and routing width of the real model, at a depth that
a small machine holds; its replies mean nothing. Written as the hub publishes them (one tensor per expert), so
both engines load it through the code paths they use for the published checkpoint.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import random
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mismatch_probe.errors import ConfigError

FORMAT_VERSION = 1
RECORD_NAME = "random_checkpoint.json"
_BYTES_PER_ELEMENT = 2  # bfloat16
_SPARE_BYTES = 256 << 20

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One tensor to write.

    Attributes:
        name: Its name in the checkpoint.
        shape: Its shape.
        ones: True for the scale of a norm, which starts at one; False for a normal draw.
    """

    name: str
    shape: tuple[int, ...]
    ones: bool = False


def plan_shards(config: dict[str, Any]) -> list[list[TensorPlan]]:
    """List every tensor of a Qwen3-MoE checkpoint, one shard for the embedding, each layer and the head.

    Args:
        config: A Qwen3-MoE `config.json` in which every layer is sparse.

    Returns:
        Shards in order; names and shapes as the hub publishes them.
    """
    hidden, inter, head = config["hidden_size"], config["moe_intermediate_size"], config["head_dim"]
    query, key = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shards = [[TensorPlan("model.embed_tokens.weight", (config["vocab_size"], hidden))]]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        tensors = [
            TensorPlan(f"{prefix}.input_layernorm.weight", (hidden,), ones=True),
            TensorPlan(f"{prefix}.post_attention_layernorm.weight", (hidden,), ones=True),
            TensorPlan(f"{prefix}.self_attn.q_norm.weight", (head,), ones=True),
            TensorPlan(f"{prefix}.self_attn.k_norm.weight", (head,), ones=True),
            TensorPlan(f"{prefix}.self_attn.q_proj.weight", (query, hidden)),
            TensorPlan(f"{prefix}.self_attn.k_proj.weight", (key, hidden)),
            TensorPlan(f"{prefix}.self_attn.v_proj.weight", (key, hidden)),
            TensorPlan(f"{prefix}.self_attn.o_proj.weight", (hidden, query)),
            TensorPlan(f"{prefix}.mlp.gate.weight", (config["num_experts"], hidden)),
        ]
        for expert in range(config["num_experts"]):
            tensors += [
                TensorPlan(f"{prefix}.mlp.experts.{expert}.gate_proj.weight", (inter, hidden)),
                TensorPlan(f"{prefix}.mlp.experts.{expert}.up_proj.weight", (inter, hidden)),
                TensorPlan(f"{prefix}.mlp.experts.{expert}.down_proj.weight", (hidden, inter)),
            ]
        shards.append(tensors)
    tail = [TensorPlan("model.norm.weight", (hidden,), ones=True)]
    if not config["tie_word_embeddings"]:
        tail.append(TensorPlan("lm_head.weight", (config["vocab_size"], hidden)))
    return [*shards, tail]


def checkpoint_bytes(config: dict[str, Any]) -> int:
    """Size of a checkpoint's weights in bytes, bfloat16."""
    return sum(_shard_bytes(shard) for shard in plan_shards(config))


def write_random_checkpoint(
    config: dict[str, Any], folder: Path, *, seed: int = 0, progress: Progress | None = None
) -> Path:
    """Write a random-weight checkpoint, or reuse the one that is there.

    Each tensor is drawn from a normal distribution of the configuration's `initializer_range` (norm scales
    are one) by a generator seeded with (seed, tensor name): layers do not depend on the depth. One shard is
    in memory at a time. The folder appears whole or not at all, and one process writes while others wait.

    Args:
        config: `config.json` of the checkpoint, see `plan_shards`.
        folder: Where the checkpoint shall be.
        seed: Seed of the weights.
        progress: Called with (what, bytes done, bytes in all) after each shard.

    Returns:
        `folder`.

    Raises:
        ConfigError: The disk has too little room, or the folder cannot be written.
    """
    shards = plan_shards(config)
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    identity = {
        "format_version": FORMAT_VERSION,
        "seed": seed,
        "config_sha256": hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _only_writer(folder):
            if _is_complete(folder, identity):
                return folder
            partial = folder.with_name(f".{folder.name}.partial")
            # Under the lock, a left-over of either name is of a killed or damaged run.
            for stale in (partial, folder):
                if stale.exists():
                    shutil.rmtree(stale)
            _check_room(folder.parent, checkpoint_bytes(config))
            partial.mkdir()
            try:
                _write_shards(shards, names, config, partial, seed, progress)
                sizes = {name: (partial / name).stat().st_size for name in names}
                record = {**identity, "files": sizes}
                (partial / RECORD_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise ConfigError(
            f"cannot write the random-weight checkpoint to {folder}: {error}",
            hint="set MISMATCH_PROBE_CACHE to a folder that can be written",
        ) from error
    return folder


def random_prompts(
    vocab_size: int, num: int, length: int, seed: int, *, avoid: Collection[int] = ()
) -> list[list[int]]:
    """Draw prompts of random token ids for a model without a tokenizer.

    Tokenizers keep special tokens, and unused rows, at the two ends of the vocabulary: max(4, vocab_size/256)
    ids at either end are never drawn.

    Args:
        vocab_size: Size of the vocabulary.
        num: Number of prompts.
        length: Tokens per prompt.
        seed: Seed of the draw.
        avoid: Further ids not to draw.

    Returns:
        `num` lists of `length` token ids.

    Raises:
        ConfigError: A count is not positive, or no id is left to draw.
    """
    if num < 1 or length < 1:
        raise ConfigError(
            f"random prompts: num={num} and length={length} must be positive",
            hint="ask for at least one token",
        )
    margin, barred = max(4, vocab_size // 256), frozenset(avoid)
    ids = [i for i in range(margin, vocab_size - margin) if i not in barred]
    if not ids:
        raise ConfigError(
            f"random prompts: no ordinary token id in a vocabulary of {vocab_size}",
            hint="give a prompts file",
        )
    rng = random.Random(seed)  # noqa: S311 - a reproducible draw, not a secret
    return [rng.choices(ids, k=length) for _ in range(num)]


def _shard_bytes(shard: list[TensorPlan]) -> int:
    return sum(math.prod(tensor.shape) for tensor in shard) * _BYTES_PER_ELEMENT


@contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_complete(folder: Path, identity: dict[str, Any]) -> bool:
    try:
        record = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
        files = record.pop("files")
        return bool(record == identity) and all(
            (folder / name).stat().st_size == size for name, size in files.items()
        )
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def _check_room(parent: Path, needed: int) -> None:
    free = shutil.disk_usage(parent).free
    if free < needed + _SPARE_BYTES:
        raise ConfigError(
            f"random weights of {needed / 1e9:.1f} GB do not fit into {parent} ({free / 1e9:.1f} GB free)",
            hint="ask for fewer layers, or set MISMATCH_PROBE_CACHE to a folder with more room",
        )


def _write_shards(
    shards: list[list[TensorPlan]],
    names: list[str],
    config: dict[str, Any],
    folder: Path,
    seed: int,
    progress: Progress | None,
) -> None:
    from safetensors.torch import save_file

    total, done = sum(_shard_bytes(shard) for shard in shards), 0
    std = float(config["initializer_range"])
    for shard, name in zip(shards, names, strict=True):
        save_file({t.name: _draw(t, std, seed) for t in shard}, folder / name, metadata={"format": "pt"})
        with (folder / name).open("rb") as written:
            os.fsync(
                written.fileno()
            )  # the record below vouches for sizes, so contents must be on disk first
        done += _shard_bytes(shard)
        if progress is not None:
            progress("random weights", done, total)
    weight_map = {tensor.name: name for shard, name in zip(shards, names, strict=True) for tensor in shard}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id") if config.get(key) is not None}
    for name, content in (
        ("config.json", config),
        ("generation_config.json", generation),
        ("model.safetensors.index.json", index),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _draw(tensor: TensorPlan, std: float, seed: int) -> Any:
    import torch

    if tensor.ones:
        return torch.ones(tensor.shape, dtype=torch.bfloat16)
    digest = hashlib.sha256(f"{seed}:{tensor.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.empty(tensor.shape, dtype=torch.bfloat16).normal_(0.0, std, generator=generator)
