"""What a worker process is told to do. Jobs are JSON, so a job can be looked at and run again by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from mismatch_probe.config.model import SamplingConfig


class _Job(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class JobPrompt(_Job):
    """One prompt of a rollout job."""

    prompt_id: str
    token_ids: tuple[int, ...]
    answer: str | None


class Task(_Job):
    """One leg over some parts.

    Attributes:
        leg: Which reading.
        parts: Indices of the parts to do; those on disk are left out by who made the job.
        sequences: At most so many sequences of each part; None reads all.
    """

    leg: str
    parts: tuple[int, ...]
    sequences: int | None = None


class RolloutJob(_Job):
    """Work for one rollout engine.

    Attributes:
        run: The run directory.
        engine: Registry name.
        spec: Fields of `EngineSpec`.
        sampling: How to sample.
        prompts: All prompts of the run.
        prompts_per_part: Whole prompts in one part.
        reward: Name of the reward, or None.
        tokenizer_path: Folder of the tokenizer that decodes for the reward.
        tasks: Legs in order; rollout/decode first where it is asked for.
    """

    kind: Literal["rollout"] = "rollout"
    run: Path
    engine: str
    spec: dict[str, Any]
    sampling: SamplingConfig
    prompts: tuple[JobPrompt, ...]
    prompts_per_part: int
    reward: str | None
    tokenizer_path: Path | None
    tasks: tuple[Task, ...]


class ReplayPlan(_Job):
    """The study of routing replay: a few sequences, many forwards.

    Attributes:
        sequences: Ids of the sequences.
        by_layer: Whether single layers are replayed, and all but single ones.
    """

    sequences: tuple[int, ...]
    by_layer: bool


class ScoreJob(_Job):
    """Work for one loaded training-side model.

    Attributes:
        run: The run directory.
        scorer: Registry name.
        spec: Fields of `ScorerSpec`.
        temperature: Of the sampling.
        routing: Whether routes were recorded.
        tasks: Legs in order.
        replay: What the study of routing replay covers, or None where it is not made.
        keep_sets: Whether each token is read over the ids that sampling kept for it.
    """

    kind: Literal["score"] = "score"
    run: Path
    scorer: str
    spec: dict[str, Any]
    temperature: float
    routing: bool
    tasks: tuple[Task, ...]
    replay: ReplayPlan | None = None
    keep_sets: bool = False


class RefitJob(_Job):
    """Weights loaded into a running engine: the same sequences read before and after.

    Attributes:
        run: A run directory of one part with the sequences to read.
        engine: Registry name.
        spec: Fields of `EngineSpec`.
        sampling: Which distribution the log-probabilities describe.
        read_fresh: Whether the sequences are read before anything is loaded.
        save: Where the fresh engine's weights, as it holds them, are written; None writes nothing.
        load: Checkpoint to load into the running engine; None ends with the fresh engine.
        compare: Saved weights that those after the load are held against.
    """

    kind: Literal["refit"] = "refit"
    run: Path
    engine: str
    spec: dict[str, Any]
    sampling: SamplingConfig
    read_fresh: bool
    save: Path | None = None
    load: Path | None = None
    compare: Path | None = None


class FedSequence(_Job):
    """A sequence whose hidden states are read.

    Attributes:
        sequence_id: Of the run.
        prompt_token_ids: The prompt.
        response_token_ids: The response, or its beginning.
    """

    sequence_id: int
    prompt_token_ids: tuple[int, ...]
    response_token_ids: tuple[int, ...]


class LayerStatesJob(_Job):
    """Hidden states of one side, written for each sequence.

    Attributes:
        side: "rollout" writes its states into `states`; "train" reads them there and writes what it makes of them.
        name: Registry name of the engine or scorer.
        spec: Fields of `EngineSpec` or `ScorerSpec`.
        sampling: Which distribution the log-probabilities describe.
        sequences: What to feed.
        states: Folder of the rollout engine's states.
        out: Folder of the training side's, None for the rollout engine.
    """

    kind: Literal["layer_states"] = "layer_states"
    side: Literal["rollout", "train"]
    name: str
    spec: dict[str, Any]
    sampling: SamplingConfig
    sequences: tuple[FedSequence, ...]
    states: Path
    out: Path | None = None


Job = RolloutJob | ScoreJob | RefitJob | LayerStatesJob
