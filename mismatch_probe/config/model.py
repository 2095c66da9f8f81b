"""The configuration: everything that `--config` and `--set` accept."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Leg = Literal[
    "rollout/decode",
    "rollout/prefill",
    "rollout/forced",
    "rollout/refit",
    "train/forward",
    "train/replay",
    "train/reference",
    "train/repeat",
]
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,40}$"
Dtype = Literal["bfloat16", "float16", "float32"]

# A reload may break the engine for good, so nothing is read from it after rollout/refit.
ROLLOUT_LEGS: tuple[Leg, ...] = ("rollout/decode", "rollout/prefill", "rollout/forced", "rollout/refit")
DEFAULT_LEGS: tuple[Leg, ...] = (
    "rollout/decode",
    "rollout/prefill",
    "rollout/refit",
    "train/forward",
    "train/replay",
    "train/reference",
    "train/repeat",
)
ROUTED_LEGS: tuple[Leg, ...] = ("train/replay",)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RolloutConfig(_Section):
    """The rollout side.

    Attributes:
        engine: Name of a registered engine.
        model: Checkpoint of this side; None means `model`.
        dtype: Weight dtype.
        options: Handed to the engine as they are (for vLLM: keyword arguments of `vllm.LLM`).
    """

    engine: str = "vllm"
    model: str | None = None
    dtype: Dtype = "bfloat16"
    options: dict[str, Any] = Field(default_factory=dict)


class TrainConfig(_Section):
    """The training side.

    Attributes:
        scorer: Name of a registered scorer.
        model: Checkpoint of this side; None means `model`.
        dtype: Weight dtype of `train/forward`, `train/replay` and `train/repeat`.
        options: Handed to the scorer as they are (for transformers: batch_size, repeat_batch_size, attention, device).
    """

    scorer: str = "transformers"
    model: str | None = None
    dtype: Dtype = "bfloat16"
    options: dict[str, Any] = Field(default_factory=dict)


class MatrixRollout(RolloutConfig):
    """One of several rollout engines.

    Attributes:
        name: How it is called in tables and folders; None takes the engine's name.
    """

    name: str | None = Field(default=None, pattern=_NAME)


class MatrixTrain(TrainConfig):
    """One of several training-side forwards.

    Attributes:
        name: How it is called in tables and folders; None takes the scorer's name.
    """

    name: str | None = Field(default=None, pattern=_NAME)


class MatrixConfig(_Section):
    """Several engines at once: each rollout engine samples in turn, and every engine reads its tokens.

    Attributes:
        rollout: Rollout engines; none means the one of `rollout`.
        train: Training-side forwards; none means the one of `train`.
    """

    rollout: tuple[MatrixRollout, ...] = ()
    train: tuple[MatrixTrain, ...] = ()


class SamplingConfig(_Section):
    """How responses are sampled, and so which distribution every leg has to describe.

    Attributes:
        temperature: Above 0; log-probabilities of all legs are those of logits / temperature.
        top_p: 1 samples from the whole distribution. Below 1 the rollout's support is truncated and the trainer's is not.
        top_k: -1 samples from the whole distribution.
        max_tokens: Longest response.
        samples: Responses per prompt (the group size G of group-normalised advantages).
        seed: Base seed; response i uses seed + i.
        keep_sets: Whether to record which ids truncated sampling kept, and to read the training side over those alone.
            None does so where sampling is truncated and both sides can.
    """

    temperature: float = Field(default=1.0, gt=0, le=10)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=-1, ge=-1)
    max_tokens: int = Field(default=256, ge=1)
    samples: int = Field(default=4, ge=1)
    seed: int = Field(default=0, ge=0)
    keep_sets: bool | None = None

    @property
    def is_truncated(self) -> bool:
        """Whether some ids cannot be drawn."""
        return self.top_p < 1 or self.top_k > 0

    @field_validator("top_k")
    @classmethod
    def _no_zero(cls, value: int) -> int:
        return -1 if value == 0 else value


class PromptConfig(_Section):
    """Where prompts come from.

    Attributes:
        source: Path of a .jsonl, .parquet or .txt file; None takes the prompts that come with the model.
        num_prompts: How many to use; None takes all.
        chat_template: Whether to apply the tokenizer's chat template to plain-text prompts.
        random_length: Length of random prompts, where a model comes with none.
        reward: Name of a reward for prompts with answers; None takes the one that comes with the model.
    """

    source: str | None = None
    num_prompts: int | None = Field(default=None, ge=1)
    chat_template: bool = False
    random_length: int = Field(default=24, ge=1)
    reward: str | None = None


class RayConfig(_Section):
    """Record and score spread over Ray actors, each with an engine of its own.

    Attributes:
        workers: Rollout engines at once; 0 leaves Ray out.
        score_workers: Training-side models at once; None takes `workers`.
        address: Of a running cluster ("auto", "host:6379"); None starts Ray on this machine alone.
        cpus_per_worker: CPUs that an actor reserves; where OMP_NUM_THREADS is not set, also its threads.
        gpus_per_worker: GPUs that an actor reserves; None takes what the engine's own parallelism needs.
        max_restarts: Lost workers that are replaced in a stage before it ends with an error.
    """

    workers: int = Field(default=0, ge=0)
    score_workers: int | None = Field(default=None, ge=1)
    address: str | None = None
    cpus_per_worker: int = Field(default=1, ge=1)
    gpus_per_worker: float | None = Field(default=None, ge=0)
    max_restarts: int = Field(default=3, ge=0)

    @model_validator(mode="after")
    def _needs_workers(self) -> RayConfig:
        if self.model_fields_set and "workers" not in self.model_fields_set:
            raise ValueError(
                "ray.workers is not set: it says how many actors there are, and without it Ray is not used"
            )
        return self


class ProbeConfig(_Section):
    """A whole audit.

    Attributes:
        model: Checkpoint of both sides: a known name, a folder, or a name in the local model cache.
        layers: For a geometry such as qwen3-30b-a3b: how many layers of random weights to make.
        rollout: The rollout side.
        train: The training side.
        matrix: Several engines on either side, for a matrix of pairs.
        sampling: How responses are sampled.
        prompts: Where prompts come from.
        legs: Which readings of log p to take.
        routing: Whether to capture routed experts; None means: if the model has any.
        bars: Changes to the bars of the verdict, by key.
        out: The run directory.
        part_sequences: Sequences per part on disk; whole prompts, so it is rounded up to the group size.
        ray: Record and score over Ray actors.
        trust_remote_code: Whether code that comes with a checkpoint may run.
    """

    model: str = "tiny-qwen3-moe"
    layers: int | None = Field(default=None, ge=1)
    rollout: RolloutConfig = RolloutConfig()
    train: TrainConfig = TrainConfig()
    matrix: MatrixConfig = MatrixConfig()
    sampling: SamplingConfig = SamplingConfig()
    prompts: PromptConfig = PromptConfig()
    legs: tuple[Leg, ...] = DEFAULT_LEGS
    routing: bool | None = None
    bars: dict[str, Any] = Field(default_factory=dict)
    out: Path = Path("runs/audit")
    part_sequences: int = Field(default=64, ge=1)
    ray: RayConfig = RayConfig()
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _needed_legs(self) -> ProbeConfig:
        if "rollout/decode" not in self.legs:
            raise ValueError("legs must contain rollout/decode: it is what samples the tokens")
        for side, entries in (("rollout", self.matrix.rollout), ("train", self.matrix.train)):
            if entries and getattr(self, side).options:
                raise ValueError(
                    f"{side}.options and matrix.{side} exclude each other: give every entry of matrix.{side} its own options"
                )
        if len(set(self.legs)) != len(self.legs):
            raise ValueError("legs names a leg twice")
        if "train/replay" in self.legs and self.routing is False and "legs" in self.model_fields_set:
            raise ValueError("the leg train/replay needs routing; drop it or set routing=true")
        return self

    @property
    def is_matrix(self) -> bool:
        """Whether engines are listed for a matrix of pairs."""
        return bool(self.matrix.rollout or self.matrix.train)

    @property
    def rollout_model(self) -> str:
        """Checkpoint of the rollout side."""
        return self.rollout.model or self.model

    @property
    def train_model(self) -> str:
        """Checkpoint of the training side."""
        return self.train.model or self.model
