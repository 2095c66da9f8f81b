"""The fsdp and tensor-parallel scorers: one process that launches ranks, hands them requests and collects their answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mismatch_probe.config.options import read_options
from mismatch_probe.errors import CaptureError, ConfigError
from mismatch_probe.scorers.protocol import (
    ProgressCallback,
    ScoredSequence,
    ScorerCapabilities,
    ScoreRequest,
    ScorerFacts,
    ScorerSpec,
)
from mismatch_probe.scorers.rank_worker import RankSetup, RankTask
from mismatch_probe.scorers.ranks import RankGroup
from mismatch_probe.scorers.registry import register_scorer
from mismatch_probe.scorers.sharded_models import FSDPOptions, TensorParallelOptions
from mismatch_probe.scorers.transformers_scorer import transformers_capabilities


class ShardedScorer:
    """Ranks behind the `Scorer` protocol.

    Args:
        kind: Registry name.
        spec: What every rank loads.
        world_size: How many ranks.

    Raises:
        MismatchProbeError: What a rank raised, or that one died.
    """

    def __init__(self, kind: str, spec: ScorerSpec, world_size: int) -> None:
        self._ranks = RankGroup(world_size, RankSetup(kind, spec))
        try:
            facts = {rank: message.payload for rank, message in self._ranks.answers("ready")}
        except BaseException:
            self._ranks.close()
            raise
        self._facts = ScorerFacts(**facts[0])

    @property
    def launcher_id(self) -> int:
        """Process id of the ranks' parent."""
        return self._ranks.process_id

    def facts(self) -> ScorerFacts:
        """What rank 0 loaded."""
        return self._facts

    def score(
        self,
        requests: Sequence[ScoreRequest],
        *,
        temperature: float,
        batching: str,
        capture_routing: bool,
        progress: ProgressCallback,
    ) -> list[ScoredSequence]:
        """See `Scorer.score`."""
        self._ranks.send(RankTask(list(requests), temperature, batching, capture_routing))
        found: dict[int, list[ScoredSequence]] = {}
        for _, message in self._ranks.answers("done"):
            if message.kind == "batch":
                index, results = message.payload
                found[index] = results
                progress(len(results), sum(len(result.logprobs) for result in results))
        scored = [sequence for index in sorted(found) for sequence in found[index]]
        if [s.sequence_id for s in scored] != [r.sequence_id for r in requests]:
            raise CaptureError(f"the ranks scored {len(scored)} of {len(requests)} sequences")
        return scored

    def close(self) -> None:
        """Ends the ranks."""
        self._ranks.close()


def sharded_capabilities() -> ScorerCapabilities:
    """What transformers can give when its model is on several processes: hidden states stay in the ranks."""
    able = transformers_capabilities()
    reason = {**able.reason, "hidden_states": "the layers run in processes of their own"}
    return replace(able, hidden_states=False, reason=reason)


def check_tensor_parallel(model_path: Path, options: Mapping[str, Any]) -> None:
    """Whether every head and every feed-forward of a checkpoint can be split between the ranks; loads nothing.

    Raises:
        ConfigError: One of them cannot, or an option is wrong.
    """
    asked = read_options(TensorParallelOptions, options, "train.options")
    if asked.float32_head:
        raise ConfigError(
            "the LM head is split between the ranks and cannot be widened",
            hint="leave out train.options.float32_head",
        )
    world_size = asked.world_size
    config = json.loads((model_path / "config.json").read_text("utf-8"))
    config = config.get("text_config", config)
    names = ("num_attention_heads", "num_key_value_heads", "intermediate_size", "moe_intermediate_size")
    for name in names:
        number = config.get(name)
        if isinstance(number, int) and number % world_size:
            raise ConfigError(
                f"{name}={number} cannot be split between train.options.world_size={world_size} processes",
                hint="choose a world_size that divides it",
            )


def check_fsdp(model_path: Path, options: Mapping[str, Any]) -> None:
    """Whether the options can be; any checkpoint can be sharded.

    Raises:
        ConfigError: An option is wrong.
    """
    read_options(FSDPOptions, options, "train.options")


def _register(
    kind: str,
    summary: str,
    check: Callable[[Path, Mapping[str, Any]], None],
    options: type[FSDPOptions | TensorParallelOptions],
) -> None:
    def make(spec: ScorerSpec) -> ShardedScorer:
        check(spec.model_path, spec.options)
        return ShardedScorer(kind, spec, read_options(options, spec.options, "train.options").world_size)

    register_scorer(kind, summary=summary, capabilities=sharded_capabilities, check=check)(make)


_register("fsdp", "transformers under FSDP2, ranks launched by torchrun", check_fsdp, FSDPOptions)
_register(
    "tensor-parallel",
    "transformers split by its own tensor-parallel plan",
    check_tensor_parallel,
    TensorParallelOptions,
)
