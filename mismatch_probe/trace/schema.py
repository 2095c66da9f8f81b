"""What is in the files of a run directory."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION = 1
ROLLOUT_FOLDER = "rollout"
SCORES_FOLDER = "scores"
ROUTING_FOLDER = "routing"
MATRIX = "matrix"
"""`kind` of the manifest of a matrix, whose cells are runs of their own."""


def rollout_schema() -> pa.Schema:
    """One row a sequence; the sampled tokens and what the rollout engine said of them.

    `rollout_logprobs` are nats, float32, one per response token, under exactly the distribution sampled from.
    `loss_mask` is null where every response token counts.
    """
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("sequence_id", pa.int64(), nullable=False),
            pa.field("prompt_id", pa.string(), nullable=False),
            pa.field("sample_index", pa.int32(), nullable=False),
            pa.field("prompt_token_ids", pa.list_(pa.int32()), nullable=False),
            pa.field("response_token_ids", pa.list_(pa.int32()), nullable=False),
            pa.field("rollout_logprobs", pa.list_(pa.float32()), nullable=False),
            pa.field("finish_reason", pa.string(), nullable=False),
            pa.field("advantage", pa.float64()),
            pa.field("reward", pa.float64()),
            pa.field("weight_version", pa.string()),
            pa.field("old_logprobs", pa.list_(pa.float32())),
            pa.field("loss_mask", pa.list_(pa.bool_())),
        ],
        metadata={"mismatch_probe.schema_version": str(SCHEMA_VERSION)},
    )


def score_schema() -> pa.Schema:
    """One row a sequence; what one leg says of the same response tokens (nats, float32).

    `entropy` is that of the leg's whole next-token distribution, where the leg can give it.
    """
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("sequence_id", pa.int64(), nullable=False),
            pa.field("logprobs", pa.list_(pa.float32()), nullable=False),
            pa.field("entropy", pa.list_(pa.float32())),
        ],
        metadata={"mismatch_probe.schema_version": str(SCHEMA_VERSION)},
    )


def refit_schema() -> pa.Schema:
    """One row a sequence of the sample that `rollout/refit` reads (nats, float32, one value a response token).

    `fresh` was read right before the engine loaded its own checkpoint again, `logprobs` right after.
    """
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("sequence_id", pa.int64(), nullable=False),
            pa.field("fresh", pa.list_(pa.float32()), nullable=False),
            pa.field("logprobs", pa.list_(pa.float32()), nullable=False),
        ],
        metadata={"mismatch_probe.schema_version": str(SCHEMA_VERSION)},
    )


def replay_schema() -> pa.Schema:
    """One row a case and sequence of the replay study; log-probabilities of the same response tokens (nats, float32)."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("case", pa.string(), nullable=False),
            pa.field("sequence_id", pa.int64(), nullable=False),
            pa.field("logprobs", pa.list_(pa.float32()), nullable=False),
        ],
        metadata={"mismatch_probe.schema_version": str(SCHEMA_VERSION)},
    )
