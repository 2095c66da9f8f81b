"""Verifiable reward of the embedded arithmetic task, and the group-relative advantage made of it."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from mismatch_probe.errors import ConfigError

# The three ways in which a solution may close; a reply that closes in none of them has no answer.
_FINAL_ANSWER = re.compile(r"(?:####|\banswer(?: is|:)) (-?\d{1,9})\.?\s*\Z")


def final_answer(response_text: str) -> int | None:
    """Read the number that a reply closes with.

    Args:
        response_text: The reply without special tokens.

    Returns:
        The number after ``answer:``, ``answer is`` or ``####`` at the very end, or None when the reply does
        not end that way (cut off, or malformed).
    """
    found = _FINAL_ANSWER.search(response_text)
    return None if found is None else int(found.group(1))


def arithmetic_reward(response_text: str, answer: str) -> float:
    """Score a reply of the arithmetic task.

    Args:
        response_text: The sampled reply without special tokens.
        answer: The right number in decimal digits.

    Returns:
        1.0 when the reply closes with the right number, else 0.0.

    Raises:
        ConfigError: `answer` is not a whole number, so no reply could ever be right.
    """
    try:
        expected = int(answer)
    except ValueError as error:
        raise ConfigError(
            f"arithmetic reward: the answer {answer!r} is not a whole number",
            hint="each prompt needs an 'answer' such as \"73\"",
        ) from error
    return float(final_answer(response_text) == expected)


def group_advantages(rewards: NDArray[np.float64], prompt_index: NDArray[np.int64]) -> NDArray[np.float64]:
    """Standardise rewards within the samples of each prompt.

    Formula (GRPO, DeepSeekMath, arXiv 2402.03300, section 4.1.2): A_i = (r_i - mean(r)) / std(r) over the
    group of samples of one prompt. The standard deviation is the population one (divisor G).

    Args:
        rewards: Reward of each sample, shape [n].
        prompt_index: Which prompt each sample belongs to, shape [n]; any integers, in any order.

    Returns:
        Advantages, shape [n], float64. A group whose rewards are all alike teaches nothing: 0 throughout.

    Raises:
        ConfigError: The shapes differ or a reward is not finite.
    """
    values = np.asarray(rewards, dtype=np.float64)
    groups = np.asarray(prompt_index)
    if values.ndim != 1 or values.shape != groups.shape:
        raise ConfigError(
            f"group advantages: rewards {values.shape} and prompt_index {groups.shape} must be equal vectors",
            hint="give one prompt index per reward",
        )
    if not np.isfinite(values).all():
        raise ConfigError("group advantages: a reward is not finite", hint="drop unscored samples first")
    if values.size == 0:
        return values.copy()
    _, group_of, counts = np.unique(groups, return_inverse=True, return_counts=True)
    centred = values - (np.bincount(group_of, weights=values) / counts)[group_of]
    std = np.sqrt(np.bincount(group_of, weights=centred**2) / counts)
    # Equal rewards leave a rounding residue (0.1 * 3 / 3 != 0.1); dividing by it would invent a signal.
    scale = np.zeros(std.size)
    np.maximum.at(scale, group_of, np.abs(values))
    informative = std > 1e-12 * np.maximum(scale, 1e-300)
    divisor = np.where(informative, std, 1.0)[group_of]
    return np.where(informative[group_of], centred / divisor, 0.0)
