"""The knobs of an ablation: each changes one thing on one side, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mismatch_probe.errors import ConfigError

Side = Literal["rollout", "train", "refit"]
REFIT = "refit"


@dataclass(frozen=True, slots=True)
class Knob:
    """One change.

    Attributes:
        name: What `--knob` calls it.
        side: Which side it changes; "refit" loads weights into the running rollout engine.
        changes: In words, for tables.
        dtype: Weight dtype to load in, or None for the run's own.
        options: Set over `rollout.options.*` or `train.options.*` of the run.
        environment: Variables of the worker process.
        engine: Registry name of the engine or scorer that knows these options.
        checkpoint: "int8" reads a copy of the checkpoint with its linear layers in INT8; None reads the checkpoint.
    """

    name: str
    side: Side
    changes: str
    engine: str
    dtype: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    checkpoint: Literal["int8"] | None = None


def _vllm(name: str, changes: str, **options: Any) -> Knob:
    return Knob(f"rollout-{name}", "rollout", changes, "vllm", options=options)


def _dtypes(side: Side, engine: str) -> tuple[Knob, ...]:
    return tuple(
        Knob(f"{side}-{dtype}", side, f"weights and arithmetic in {dtype}", engine, dtype=dtype)
        for dtype in ("bfloat16", "float16", "float32")
    )


KNOBS: tuple[Knob, ...] = (
    Knob(REFIT, "refit", "weights loaded into the running engine", "vllm"),
    *_dtypes("rollout", "vllm"),
    _vllm("batch-1", "one sequence at a time", max_num_seqs=1),
    _vllm("batch-4", "at most 4 sequences at a time", max_num_seqs=4),
    _vllm(
        "chunked-prefill", "prefill in chunks of 64 tokens", enable_chunked_prefill=True,
        max_num_batched_tokens=64, max_num_seqs=64,
    ),
    _vllm("no-chunked-prefill", "prefill in one piece", enable_chunked_prefill=False),
    _vllm("prefix-caching", "prefix caching on", enable_prefix_caching=True),
    _vllm("no-prefix-caching", "prefix caching off", enable_prefix_caching=False),
    _vllm("kv-fp8-e4m3", "KV cache in FP8 (e4m3)", kv_cache_dtype="fp8"),
    _vllm("kv-fp8-e5m2", "KV cache in FP8 (e5m2)", kv_cache_dtype="fp8_e5m2"),
    _vllm("weights-fp8", "weights quantised to FP8 on load", quantization="fp8"),
    Knob(
        "rollout-weights-int8", "rollout", "linear layers in INT8 (W8A8); experts and head as they were", "vllm",
        checkpoint="int8",
    ),
    _vllm("experts-int8", "experts quantised to INT8 on load", quantization="experts_int8"),
    _vllm("compiled", "compiled in place of eager", enforce_eager=False),
    _vllm("eager", "eager in place of compiled", enforce_eager=True),
    _vllm("transformers-model", "the model code of transformers inside vLLM", model_impl="transformers"),
    Knob(
        "rollout-tp-2", "rollout", "tensor parallel over 2 workers", "vllm",
        options={"tensor_parallel_size": 2},
        environment={"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CPU_OMP_THREADS_BIND": "0|1"},
    ),
    Knob(
        "rollout-batch-invariant", "rollout", "batch-invariant kernels", "vllm",
        environment={"VLLM_BATCH_INVARIANT": "1"},
    ),
    *_dtypes("train", "transformers"),
    Knob("train-eager", "train", "attention written out (eager)", "transformers", options={"attention": "eager"}),
    Knob("train-sdpa", "train", "attention by torch's SDPA", "transformers", options={"attention": "sdpa"}),
    Knob("train-float32-head", "train", "LM head in float32", "transformers", options={"float32_head": True}),
    Knob(
        "train-float32-router", "train", "routers in float32", "transformers", options={"float32_router": True}
    ),
    Knob("train-packing", "train", "sequences packed into one row", "transformers", options={"packing": True}),
    Knob("train-batch-1", "train", "one sequence a forward", "transformers", options={"batch_size": 1}),
    Knob("train-batch-32", "train", "32 sequences a forward", "transformers", options={"batch_size": 32}),
)  # fmt: skip


def choose_knobs(names: Iterable[str] | None) -> tuple[Knob, ...]:
    """Knobs by name, in the order of the registry; None takes all.

    Raises:
        ConfigError: A name that no knob has; the nearest is named.
    """
    import difflib

    if names is None:
        return KNOBS
    wanted = set(names)
    known = [knob.name for knob in KNOBS]
    for name in sorted(wanted.difference(known)):
        near = difflib.get_close_matches(name, known, 1, cutoff=0.4)
        raise ConfigError(
            f"no knob is called {name!r}", hint=f"did you mean {near[0]}?" if near else "see: ablate --list"
        )
    return tuple(knob for knob in KNOBS if knob.name in wanted)


def why_not(knob: Knob, config: Mapping[str, Any]) -> str | None:
    """Why a knob cannot be turned on a run, before anything is started; None where it can be tried.

    Args:
        knob: The knob.
        config: `config` of the run's manifest.
    """
    side, kind = ("train", "scorer") if knob.side == "train" else ("rollout", "engine")
    section = config[side]
    if section[kind] != knob.engine:
        return f"it is an option of {knob.engine}; this run's {side} side is {section[kind]}"
    if knob.dtype is not None and knob.dtype == section["dtype"]:
        return f"the run's own setting: {side} is in {knob.dtype}"
    return None


def own_setting(knob: Knob, settings: Mapping[str, Any]) -> str | None:
    """Says so where every option of a knob is in force in the run already; None where it changes something.

    Args:
        knob: The knob.
        settings: In force on the knob's side, as the engine or scorer reported them (`settings_of`).
    """
    if not knob.options or any(
        key not in settings or settings[key] != value for key, value in knob.options.items()
    ):
        return None
    return "the run's own setting: " + ", ".join(f"{key} = {value}" for key, value in knob.options.items())


def settings_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in force: the options, and what the engine made of those that were left to it.

    Args:
        facts: `EngineFacts` or `ScorerFacts` as a mapping.
    """
    return {**facts["options"], **facts["details"].get("settings", {})}
