"""Which sequences the token explorer shows, and what of each of their tokens."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import InconclusiveError, RunDirectoryError
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.trace import Trace

REDACTIONS = ("none", "hash", "full")
LONGEST_TEXT = 40
# Three of each kind and a window of each: some 200 kB of the page whatever the length of the run.
SEQUENCES_OF_A_KIND = 3
LONGEST_WINDOW = 96

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def choose_sequences(
    log_ratio: FloatArray, offsets: IntArray, count: int = SEQUENCES_OF_A_KIND, seed: int = 0
) -> tuple[tuple[int, str], ...]:
    """Picks sequences to look at: largest sum of |l|, then largest single |l|, then random ones.

    Args:
        log_ratio: float64 flat [tokens], nats, finite.
        offsets: int64 [sequences + 1].
        count: How many of each kind.
        seed: Of the random ones.

    Returns:
        Sequence index and why it was picked, no sequence twice; empty sequences are left out.
    """
    filled = np.flatnonzero(np.diff(offsets) > 0)
    if not filled.size:
        return ()
    size = np.abs(log_ratio)
    starts = offsets[:-1][filled]
    chosen: dict[int, str] = {}
    for values, why in (
        (np.add.reduceat(size, starts), "largest sum of |log-ratio|"),
        (np.maximum.reduceat(size, starts), "largest single |log-ratio|"),
        (np.random.default_rng(seed).random(filled.size), "random"),
    ):
        order = filled[np.lexsort((filled, -values))]
        for index in [int(i) for i in order if int(i) not in chosen][:count]:
            chosen[index] = why
    return tuple(chosen.items())


def window_around(worst: int, length: int, longest: int = LONGEST_WINDOW) -> tuple[int, int]:
    """The part [begin, end) of a sequence that is shown: `longest` tokens around the worst one, inside it."""
    begin = max(0, min(worst - longest // 2, length - longest))
    return begin, min(length, begin + longest)


def visible(text: str) -> str:
    """A token's text on one line: control, format and unassigned characters spelled out, and cut when long."""
    shown = "".join(
        character if unicodedata.category(character)[0] != "C" and character not in "\u2028\u2029"
        else f"\\u{{{ord(character):X}}}" if character != "\n" else "\\n"
        for character in text[:LONGEST_TEXT]
    )  # fmt: skip
    return shown if len(text) <= LONGEST_TEXT else f"{shown}... ({len(text)} characters)"


def explorer_section(run: RunDirectory, redact: str = "none") -> dict[str, Any]:
    """Reads what the explorer shows from the parts of a run.

    Args:
        run: A measured run.
        redact: `none` shows texts and ids; `hash` a label for each distinct token, numbered as they appear, which
            cannot be looked up in the vocabulary as a hash of an id could; `full` neither.

    Returns:
        `{"available": True, ...}` with sequences and their tokens, or `{"available": False, "reason": ...}`.
    """
    if redact not in REDACTIONS:
        raise ValueError(f"redact is one of {', '.join(REDACTIONS)}, not {redact!r}")
    try:
        manifest = run.read_manifest()
        trace = Trace(run, int(manifest["num_parts"]))
        train = trace.logprobs("train/forward")
        entropy = trace.entropy("train/forward")
    except (RunDirectoryError, InconclusiveError) as error:
        return {"available": False, "reason": str(error)}
    rollout = trace.rollout
    log_ratio = train - rollout.logprobs
    if not np.isfinite(log_ratio).all():
        return {"available": False, "reason": "some values are no log-probabilities"}
    chosen = choose_sequences(log_ratio, rollout.offsets)
    flips, flips_reason = _flips(trace, manifest, [index for index, _ in chosen])
    names = _Names(manifest, redact)
    sequences = []
    for index, why in chosen:
        first, last = int(rollout.offsets[index]), int(rollout.offsets[index + 1])
        begin, end = window_around(int(np.argmax(np.abs(log_ratio[first:last]))), last - first)
        tokens = [
            {
                "position": position,
                **names.of(int(rollout.response_tokens[first + position])),
                "rollout_p": float(np.exp(rollout.logprobs[first + position])),
                "train_p": float(np.exp(train[first + position])),
                "log_ratio": float(log_ratio[first + position]),
                "entropy": None if entropy is None else _finite(entropy[first + position]),
                "flipped_layers": None if flips is None else flips[index][position],
            }
            for position in range(begin, end)
        ]
        sequences.append(
            {
                "sequence": int(rollout.sequence_id[index]),
                "why": why,
                "length": last - first,
                "begin": begin,
                "log_weight": float(log_ratio[first:last].sum()),
                "max_abs_log_ratio": float(np.abs(log_ratio[first:last]).max()),
                "tokens": tokens,
            }
        )
    return {
        "available": True, "redact": redact, "text": names.has_text,
        "flips_reason": flips_reason, "sequences": sequences,
    }  # fmt: skip


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


class _Names:
    """What a token is called on the page."""

    def __init__(self, manifest: Mapping[str, Any], redact: str) -> None:
        self._redact = redact
        self._labels: dict[int, str] = {}
        folder = manifest["model"].get("path")
        self._tokenizer = None if folder is None or redact != "none" else _tokenizer(Path(folder))
        self.has_text = self._tokenizer is not None

    def of(self, token: int) -> dict[str, Any]:
        if self._redact == "full":
            return {"text": None, "id": None}
        if self._redact == "hash":
            return {"text": self._labels.setdefault(token, f"t{len(self._labels) + 1}"), "id": None}
        if self._tokenizer is None:
            return {"text": None, "id": token}
        return {"text": visible(self._tokenizer.decode([token], skip_special_tokens=False)), "id": token}


def _tokenizer(folder: Path) -> Any:
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception:  # the library raises bare Exception for a file it cannot read; ids are shown then
        return None


def _flips(
    trace: Trace, manifest: Mapping[str, Any], wanted: list[int]
) -> tuple[dict[int, list[list[int]]] | None, str]:
    """For each wanted sequence and counted token the MoE layers whose set of experts differs; or why not."""
    if not manifest.get("routing"):
        return None, "routes were not captured"
    layers = manifest["model"]["moe_layers"]
    prompts, recorded, counted = np.diff(trace.recorded.prompt_offsets), trace.recorded, trace.counted
    found: dict[int, list[list[int]]] = {}
    begin = 0
    try:
        for sampled, trained in zip(
            trace.route_parts("rollout/decode"), trace.route_parts("train/forward"), strict=True
        ):
            end = begin + len(sampled.sequence_id)
            for index in [i for i in wanted if begin <= i < end]:
                first, last = recorded.offsets[index : index + 2]
                kept = np.arange(last - first) if counted is None else np.flatnonzero(counted[first:last])
                # The token at response position t is predicted where the one before it is fed.
                rows = sampled.offsets[index - begin] + prompts[index] - 1 + kept
                differ = (
                    np.sort(sampled.experts[rows], axis=-1) != np.sort(trained.experts[rows], axis=-1)
                ).any(axis=-1)
                found[index] = [[int(layers[i]) for i in np.flatnonzero(row)] for row in differ]
            begin = end
    except (RunDirectoryError, InconclusiveError) as error:
        return None, str(error)
    return found, ""
