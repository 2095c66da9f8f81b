"""Keep-sets: the ids that truncated sampling (top-p, top-k) could have drawn at each response token.

A trainer that renormalises over the whole vocabulary describes another distribution than the sampled one; over the kept ids
it describes the same (DeepSeek-V3.2, arXiv 2512.02556, "keep sampling mask"; slime's `rollout_top_p_token_ids`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import RunDirectoryError
from mismatch_probe.trace.parts import Note, save_tensors, write_atomically


@dataclass(frozen=True, slots=True)
class KeepSet:
    """The kept ids of one response.

    Attributes:
        ids: int32 [kept ids of all tokens], in no order within a token.
        offsets: int64 [response tokens + 1]; where each token's ids begin and end.
    """

    ids: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]

    @property
    def num_tokens(self) -> int:
        """Response tokens that it covers."""
        return len(self.offsets) - 1

    def problem(self, response: Sequence[int]) -> str | None:
        """Why this cannot be the keep-set of a response, or None.

        Args:
            response: Ids that were drawn; each has to be among those kept for it.
        """
        tokens = np.asarray(response, dtype=np.int64)
        if self.num_tokens != len(tokens):
            return f"it covers {self.num_tokens} of {len(tokens)} tokens"
        drawn = self.ids == np.repeat(tokens, np.diff(self.offsets))
        # reduceat over empty pieces would read the next token's.
        found = np.zeros(len(tokens), dtype=bool)
        found[np.repeat(np.arange(len(tokens)), np.diff(self.offsets))[drawn]] = True
        if not found.all():
            return (
                f"the id drawn at response position {int(np.argmin(found))} is not among the ids kept for it"
            )
        return None


def write_keep_sets(
    path: Path, keep_sets: Sequence[KeepSet], sequence_ids: Sequence[int], note: Note | None = None
) -> None:
    """Writes the keep-sets of one part atomically.

    Args:
        path: The safetensors file.
        keep_sets: One per sequence.
        sequence_ids: One per sequence.
        note: As of `write_atomically`.
    """
    tensors = {
        "ids": np.concatenate([np.asarray(kept.ids, dtype=np.int32) for kept in keep_sets]),
        "counts": np.concatenate([np.diff(kept.offsets) for kept in keep_sets]).astype(np.int32),
        "tokens": np.array([kept.num_tokens for kept in keep_sets], dtype=np.int64),
        "sequence_id": np.asarray(sequence_ids, dtype=np.int64),
    }
    write_atomically(path, lambda temporary: save_tensors(temporary, tensors), note)


def read_keep_sets(
    path: Path, sequence_ids: Sequence[int], responses: Sequence[Sequence[int]]
) -> list[KeepSet]:
    """Reads the keep-sets of one part.

    Args:
        path: The safetensors file.
        sequence_ids: The part's, in order.
        responses: Their ids, against which the sets are checked.

    Raises:
        RunDirectoryError: The part is damaged, or belongs to other responses.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    hint = "record it again"
    try:
        tensors = load_file(path)
        ids, counts, tokens = tensors["ids"], tensors["counts"].astype(np.int64), tensors["tokens"]
        held = tensors["sequence_id"].tolist()
    except (SafetensorError, OSError, KeyError) as error:
        raise RunDirectoryError(f"{path} is damaged: {error}", hint=hint) from error
    if held != list(sequence_ids) or len(tokens) != len(held):
        raise RunDirectoryError(f"{path} belongs to other sequences", hint=hint)
    if (counts < 1).any() or (tokens < 0).any() or counts.sum() != len(ids) or tokens.sum() != len(counts):
        raise RunDirectoryError(f"{path} is damaged: its lengths do not add up", hint=hint)
    ends, last = np.cumsum(counts), np.cumsum(tokens)
    found = []
    for end, length, response, sequence_id in zip(last, tokens, responses, held, strict=True):
        bounds = np.concatenate([[0], ends])[end - length : end + 1]
        kept = KeepSet(ids[bounds[0] : bounds[-1]], bounds - bounds[0])
        problem = kept.problem(response)
        if problem is not None:
            raise RunDirectoryError(f"{path}: sequence {sequence_id}: {problem}", hint=hint)
        found.append(kept)
    return found
