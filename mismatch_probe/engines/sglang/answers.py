"""What SGLang answers to a request, checked: ids, log-probabilities, experts. The same in process and over HTTP."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mismatch_probe.engines.protocol import FixedSequence, PromptRequest, SampledSequence
from mismatch_probe.engines.vllm_routes import complete_routes
from mismatch_probe.errors import CaptureError


def read_sample(
    answer: Mapping[str, Any], request: PromptRequest, *, num_moe_layers: int, top_k: int
) -> SampledSequence:
    """A sampled response.

    Args:
        answer: `output_ids` and `meta_info` as SGLang returns them.
        request: What was asked for.
        num_moe_layers: MoE layers whose experts were asked for; 0 asks for none.
        top_k: Experts per token.

    Raises:
        CaptureError: Something is missing or does not fit.
    """
    where = f"sequence {request.sequence_id}"
    info = _info(answer, where)
    ids = [int(token) for token in answer.get("output_ids") or ()]
    logprobs = _logprobs(info.get("output_token_logprobs"), ids, where)
    if int(info.get("prompt_tokens", -1)) != len(request.prompt_token_ids):
        raise CaptureError(
            f"{where}: SGLang counts {info.get('prompt_tokens')} prompt tokens, not {len(request.prompt_token_ids)}"
        )
    reason = info.get("finish_reason") or {}
    if reason.get("type") not in ("stop", "length"):
        raise CaptureError(f"{where}: SGLang ended it with {reason.get('type')}: {reason.get('message', '')}")
    routing = None
    if num_moe_layers:
        fed = len(request.prompt_token_ids) + len(ids) - 1
        routes = _routes(info.get("routed_experts"), num_moe_layers, top_k, where)
        routing = complete_routes(routes, (fed, num_moe_layers, top_k), sequence_id=request.sequence_id)
    return SampledSequence(
        sequence_id=request.sequence_id,
        response_token_ids=ids,
        logprobs=logprobs,
        finish_reason=str(reason["type"]),
        routing=routing,
    )


def read_prefill(
    answer: Mapping[str, Any], sequence: FixedSequence, *, vocab_size: int
) -> npt.NDArray[np.float32]:
    """Log-probabilities of a finished response, float32 [response tokens].

    Args:
        answer: As SGLang returns it, scored from the last prompt token on.
        sequence: What was asked for.
        vocab_size: SGLang 0.5.23 reports a scored id of vocab_size - 1 as 0 (the score is that of the right id).

    Raises:
        CaptureError: Something is missing or does not fit.
    """
    where = f"sequence {sequence.sequence_id}"
    scored = (_info(answer, where).get("input_token_logprobs") or [])[-len(sequence.response_token_ids) :]
    asked = list(sequence.response_token_ids)
    reported = [
        wanted if wanted == vocab_size - 1 and got[1] == 0 else got[1]
        for got, wanted in zip(scored, asked, strict=False)
    ]
    return _logprobs([(got[0], token) for got, token in zip(scored, reported, strict=True)], asked, where)


def _info(answer: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    info = answer.get("meta_info") if isinstance(answer, Mapping) else None
    if not isinstance(info, Mapping):
        raise CaptureError(f"{where}: SGLang's answer has no meta_info: {str(answer)[:200]}")
    return info


def _logprobs(pairs: Any, ids: Sequence[int], where: str) -> npt.NDArray[np.float32]:
    pairs = pairs or []
    if not ids or len(pairs) != len(ids):
        raise CaptureError(f"{where}: SGLang returned {len(pairs)} log-probabilities of {len(ids)} tokens")
    for position, (pair, token) in enumerate(zip(pairs, ids, strict=True)):
        if int(pair[1]) != token:
            raise CaptureError(
                f"{where}: SGLang scored id {pair[1]} at response position {position}, not {token}"
            )
    values = np.array([np.nan if pair[0] is None else pair[0] for pair in pairs], dtype=np.float32)
    if not np.isfinite(values).all():
        raise CaptureError(
            f"{where}: {np.count_nonzero(~np.isfinite(values))} log-probabilities are not finite"
        )
    return values


def _routes(encoded: Any, num_moe_layers: int, top_k: int, where: str) -> npt.NDArray[np.int32] | None:
    """int32 [fed tokens, layers, top_k] from base64 of the raw ids, layer by layer within a token."""
    if encoded is None:
        return None
    flat = np.frombuffer(base64.b64decode(encoded), dtype=np.int32)
    if flat.size % (num_moe_layers * top_k):
        raise CaptureError(
            f"{where}: SGLang returned {flat.size} expert ids, which is no multiple of {num_moe_layers} layers x {top_k}",
            hint="audit without routing (--set routing=false)",
        )
    return flat.reshape(-1, num_moe_layers, top_k)
