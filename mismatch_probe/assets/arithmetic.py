"""The embedded model's task: sums of a few terms, solved step by step in one of several wordings.

A question has many right solutions (order of the terms, splitting into tens and ones, wording), so that a
model trained on them keeps real entropy, as a policy does, while digits are nearly certain.
Questions are split by a hash of their text: the trainer sees one side, the shipped prompts are of
the other.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

CHARACTERS = "0123456789+-=#()., :abcdefghijklmnopqrstuvwxyz"
LARGEST = 99
_HELD_OUT_BUCKETS, _BUCKETS = 1, 16
_OPENERS = ("", "", "ok, ", "let us see: ", "step by step: ")
# One line is one voice; a reply keeps to its voice and varies within it.
_JOINTS = (
    (" = ",),
    (" = ", " so ", " that is "),
    (", then ", ", now ", ", next "),
    (" gives ", " makes ", " is "),
)


@dataclass(frozen=True, slots=True)
class Question:
    """A sum to work out.

    Attributes:
        terms: Signed terms; the first is positive and every running total lies in 0..99.
    """

    terms: tuple[int, ...]

    @property
    def text(self) -> str:
        """The prompt, for example ``37+48-12=``."""
        return f"{self.terms[0]}" + "".join(f"{term:+d}" for term in self.terms[1:]) + "="

    @property
    def answer(self) -> int:
        """The right total."""
        return sum(self.terms)

    @property
    def held_out(self) -> bool:
        """Whether the question belongs to the prompts, so that no model may be trained on it."""
        digest = hashlib.sha256(self.text.encode()).digest()
        return int.from_bytes(digest[:4], "big") % _BUCKETS < _HELD_OUT_BUCKETS


def draw_question(rng: random.Random, *, held_out: bool, min_terms: int = 2, max_terms: int = 5) -> Question:
    """Draw a question from one side of the split.

    Args:
        rng: Source of randomness.
        held_out: True for prompts, False for training.
        min_terms: Fewest terms, at least 2.
        max_terms: Most terms.

    Returns:
        A question whose `held_out` is as asked for.
    """
    while True:
        terms = [rng.randint(1, LARGEST)]
        for _ in range(rng.randint(min_terms, max_terms) - 1):
            total = sum(terms)
            terms.append(rng.choice([term for term in range(-total, LARGEST - total + 1) if term]))
        question = Question(tuple(terms))
        if question.held_out == held_out:
            return question


def held_out_questions(num: int, seed: int, *, min_terms: int = 2, max_terms: int = 5) -> list[Question]:
    """Draw distinct questions that no shipped model was trained on.

    Args:
        num: How many.
        seed: Seed of the draw.
        min_terms: Fewest terms.
        max_terms: Most terms.

    Returns:
        `num` distinct questions, the same for the same arguments.
    """
    rng = random.Random(seed)  # noqa: S311 - a reproducible draw, not a secret
    found: dict[Question, None] = {}
    while len(found) < num:
        found[draw_question(rng, held_out=True, min_terms=min_terms, max_terms=max_terms)] = None
    return list(found)


def write_solution(question: Question, rng: random.Random) -> str:
    """Write one of the many right solutions of a question.

    Each step takes one term, or only its tens, into the running total and writes what is left of the sum.

    Args:
        question: What to solve.
        rng: Source of the choices: order, splitting into tens and ones, wording.

    Returns:
        The steps and the closing answer, in `CHARACTERS` only.
    """
    total, remaining = question.terms[0], list(question.terms[1:])
    splitting, joints = rng.random() < 0.6, rng.choice(_JOINTS)
    text = rng.choice(_OPENERS)
    while remaining:
        taken = _pick_term(total, remaining, rng)
        part = _tens(remaining[taken]) if splitting and rng.random() < 0.8 else remaining[taken]
        total += part
        remaining[taken] -= part
        if remaining[taken] == 0:
            del remaining[taken]
        text += f"{total}" + "".join(f"{term:+d}" for term in remaining)
        text += rng.choice(joints) if remaining else ""
    closing = rng.choice((f". answer: {total}", f", so the answer is {total}.", f" #### {total}"))
    return text + closing


def _pick_term(total: int, remaining: Sequence[int], rng: random.Random) -> int:
    """Position of the term to take next: mostly the first, now and then the second; totals stay in range."""
    may_swap = len(remaining) > 1 and 0 <= total + remaining[1] <= LARGEST
    return int(may_swap and rng.random() < 0.2)


def _tens(term: int) -> int:
    """The tens of a term of two digits that has ones as well; all of any other term."""
    size = abs(term)
    tens = size - size % 10
    return (1 if term > 0 else -1) * (tens if 0 < tens < size else size)
