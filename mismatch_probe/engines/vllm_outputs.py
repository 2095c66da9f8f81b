"""Reading what vLLM returns."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from mismatch_probe.engines.protocol import FixedSequence
from mismatch_probe.errors import CaptureError


def sampled_logprobs(completion: Any, sequence_id: int) -> npt.NDArray[np.float32]:
    """Log-probability of each sampled token of a `CompletionOutput`, float32 [response tokens], nats.

    Raises:
        CaptureError: Some are missing.
    """
    if completion.logprobs is None or len(completion.logprobs) != len(completion.token_ids):
        raise CaptureError(
            f"sequence {sequence_id}: vLLM returned no log-probability for some sampled tokens"
        )
    values = [
        at[token].logprob if token in at else math.nan
        for token, at in zip(completion.token_ids, completion.logprobs, strict=True)
    ]
    return np.asarray(values, dtype=np.float32)


def prompt_logprobs(output: Any, sequence: FixedSequence) -> npt.NDArray[np.float32]:
    """Prefill score of each response token of a `RequestOutput`, float32 [response tokens], nats.

    Raises:
        CaptureError: Some are missing.
    """
    scores = output.prompt_logprobs
    begin = len(sequence.prompt_token_ids)
    end = begin + len(sequence.response_token_ids)
    if scores is None or len(scores) != end:
        raise CaptureError(f"sequence {sequence.sequence_id}: vLLM returned no prefill score for some tokens")
    values = [scores[begin + i][token].logprob for i, token in enumerate(sequence.response_token_ids)]
    return np.asarray(values, dtype=np.float32)
