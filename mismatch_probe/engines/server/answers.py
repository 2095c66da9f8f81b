"""Reading what a completions server answers; nothing is believed that the answer does not show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mismatch_probe.engines.protocol import FixedSequence, PromptRequest, SampledSequence
from mismatch_probe.errors import CaptureError

_PREFIX = "token_id:"
# What servers write where the log-probability is minus infinity, which no sampled token has.
_SENTINEL = -9000.0
_ROUNDING = 1e-3


def read_sample(answer: Any, request: PromptRequest) -> SampledSequence:
    """One sampled response.

    Args:
        answer: Of `/v1/completions`.
        request: What was asked for.

    Raises:
        CaptureError: Ids are missing or not those asked for, or a log-probability is missing or impossible.
    """
    choice = _choice(answer, request.sequence_id)
    _check_prompt(answer, choice, request.prompt_token_ids, request.sequence_id)
    ids = _ids(choice, request.sequence_id)
    values = _token_logprobs(choice, request.sequence_id)
    if not ids:
        raise CaptureError(f"sequence {request.sequence_id}: the server returned an empty response")
    return SampledSequence(
        sequence_id=request.sequence_id,
        response_token_ids=ids,
        logprobs=checked_logprobs(values, len(ids), request.sequence_id, possible=True),
        finish_reason=str(choice.get("finish_reason")),
        routing=None,
    )


def read_echo(answer: Any, sequence: FixedSequence) -> npt.NDArray[np.float32]:
    """Scores of the response out of an echoed prompt, float32 [response tokens], nats.

    Raises:
        CaptureError: The echoed ids are not those sent, or a score is missing.
    """
    sent = [*sequence.prompt_token_ids, *sequence.response_token_ids]
    choice = _choice(answer, sequence.sequence_id)
    tokens = (choice.get("logprobs") or {}).get("tokens") or []
    echoed = _named_ids(tokens[: len(sent)])
    if echoed is None:
        echoed = choice.get("prompt_token_ids")
    if echoed != sent:
        raise CaptureError(
            f"sequence {sequence.sequence_id}: the server scored other ids than those it was sent"
        )
    values = _token_logprobs(choice, sequence.sequence_id)[len(sequence.prompt_token_ids) : len(sent)]
    return checked_logprobs(values, len(sequence.response_token_ids), sequence.sequence_id)


def read_prompt_logprobs(answer: Any, sequence: FixedSequence) -> npt.NDArray[np.float32]:
    """Scores of the response out of vLLM's `prompt_logprobs`, float32 [response tokens], nats.

    Raises:
        CaptureError: The ids are not those sent, or a score is missing.
    """
    sent = [*sequence.prompt_token_ids, *sequence.response_token_ids]
    choice = _choice(answer, sequence.sequence_id)
    _check_prompt(answer, choice, sent, sequence.sequence_id)
    scores = choice.get("prompt_logprobs")
    if not isinstance(scores, list) or len(scores) != len(sent):
        raise CaptureError(
            f"sequence {sequence.sequence_id}: the server returned no prefill score for some tokens"
        )
    begin = len(sequence.prompt_token_ids)
    values = [
        ((scores[begin + at] or {}).get(str(token)) or {}).get("logprob")
        for at, token in enumerate(sequence.response_token_ids)
    ]
    return checked_logprobs(values, len(sequence.response_token_ids), sequence.sequence_id)


def first_alternatives(answer: Any) -> dict[str, float]:
    """The alternatives of the first sampled token, by whatever the server calls them, in nats."""
    found = (_choice(answer, -1).get("logprobs") or {}).get("top_logprobs") or [{}]
    return {str(name): float(value) for name, value in (found[0] or {}).items() if value is not None}


def first_logprob(answer: Any) -> float | None:
    """The log-probability of the first sampled token, or None."""
    values = (_choice(answer, -1).get("logprobs") or {}).get("token_logprobs") or [None]
    return None if values[0] is None else float(values[0])


def checked_logprobs(
    values: Sequence[Any], count: int, sequence_id: int, *, possible: bool = False
) -> npt.NDArray[np.float32]:
    """Log-probabilities as float32 [count].

    Args:
        values: As they came.
        count: Tokens there are.
        sequence_id: For the message.
        possible: Whether -inf and its stand-ins are an error: a sampled token had a probability.

    Raises:
        CaptureError: One is missing, not a number, above 0, or impossible.
    """
    if len(values) != count:
        raise CaptureError(f"sequence {sequence_id}: {len(values)} log-probabilities for {count} tokens")
    for at, value in enumerate(values):
        if not isinstance(value, int | float) or math.isnan(value):
            raise CaptureError(f"sequence {sequence_id}, token {at}: the log-probability is {value!r}")
        if value > _ROUNDING:
            raise CaptureError(f"sequence {sequence_id}, token {at}: the log-probability is {value}, above 0")
        if possible and value < _SENTINEL:
            raise CaptureError(
                f"sequence {sequence_id}, token {at}: a sampled token has the log-probability {value}"
            )
    array = np.asarray(values, dtype=np.float32)
    array[array < _SENTINEL] = -np.inf
    return array


def _choice(answer: Any, sequence_id: int) -> Mapping[str, Any]:
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not choices or not isinstance(choices[0], dict):
        raise CaptureError(f"sequence {sequence_id}: the server's answer holds no choice")
    first: Mapping[str, Any] = choices[0]
    return first


def _check_prompt(answer: Any, choice: Mapping[str, Any], sent: Sequence[int], sequence_id: int) -> None:
    returned = choice.get("prompt_token_ids")
    if returned is not None:
        if list(returned) != list(sent):
            raise CaptureError(
                f"sequence {sequence_id}: the server read other prompt ids than those it was sent"
            )
        return
    counted = (answer.get("usage") or {}).get("prompt_tokens")
    if counted != len(sent):
        raise CaptureError(
            f"sequence {sequence_id}: {len(sent)} prompt ids were sent, the server counts {counted}",
            hint="the server has to take token ids as they are, without adding any",
        )


def _ids(choice: Mapping[str, Any], sequence_id: int) -> list[int]:
    named = _named_ids((choice.get("logprobs") or {}).get("tokens") or [])
    given = choice.get("token_ids")
    if given is not None and named is not None and list(given) != named:
        raise CaptureError(f"sequence {sequence_id}: the server's two lists of token ids differ")
    ids = list(given) if given is not None else named
    if ids is None:
        raise CaptureError(
            f"sequence {sequence_id}: the server returns text, and no token ids",
            hint="it has to know return_token_ids or return_tokens_as_token_ids",
        )
    return [int(token) for token in ids]


def _named_ids(tokens: Sequence[Any]) -> list[int] | None:
    if not tokens or not all(isinstance(token, str) and token.startswith(_PREFIX) for token in tokens):
        return None
    return [int(token.removeprefix(_PREFIX)) for token in tokens]


def _token_logprobs(choice: Mapping[str, Any], sequence_id: int) -> list[Any]:
    values = (choice.get("logprobs") or {}).get("token_logprobs")
    if not isinstance(values, list):
        raise CaptureError(
            f"sequence {sequence_id}: the server returned no log-probabilities",
            hint="it has to know logprobs",
        )
    return values
