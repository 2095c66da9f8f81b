"""The embedded model's task: sums of two to five terms, solved step by step in one of several wordings.

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
LARGEST = 199
_HELD_OUT_BUCKETS, _BUCKETS = 1, 16
_OPENERS = ("", "", "ok, ", "let us see: ", "step by step: ")


@dataclass(frozen=True, slots=True)
class Question:
    """A sum to work out.

    Attributes:
        terms: Signed terms; the first is positive and every running total lies in 0..199.
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


def draw_question(rng: random.Random, *, held_out: bool, min_terms: int = 2, max_terms: int = 4) -> Question:
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
        terms = [rng.randint(1, 99)]
        for _ in range(rng.randint(min_terms, max_terms) - 1):
            total, size = sum(terms), rng.randint(1, 99)
            fitting = [term for term in (size, -size) if 0 <= total + term <= LARGEST]
            terms.append(rng.choice(fitting))
        question = Question(tuple(terms))
        if question.held_out == held_out:
            return question


def held_out_questions(num: int, seed: int, *, min_terms: int = 2, max_terms: int = 4) -> list[Question]:
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

    Args:
        question: What to solve.
        rng: Source of the choices: order, splitting, wording.

    Returns:
        The steps and the closing answer, in `CHARACTERS` only.
    """
    order = _pick_order(question.terms, rng)
    steps = _split_terms(order, rng)
    body = rng.choice((_write_equations, _write_words, _write_arrows))(order[0], steps, rng)
    closing = rng.choice(
        (f"answer: {question.answer}", f"so the answer is {question.answer}.", f"#### {question.answer}")
    )
    return f"{rng.choice(_OPENERS)}{body} {closing}"


def _pick_order(terms: Sequence[int], rng: random.Random) -> list[int]:
    """Order the terms mostly as given, now and then the next but one first, totals always in 0..LARGEST."""
    remaining = list(terms)
    order: list[int] = []
    while remaining:
        pair = remaining[:2]
        totals = [sum(order) + pair[-1], sum(order) + sum(pair)]
        swap = len(pair) == 2 and rng.random() < 0.2 and all(0 <= total <= LARGEST for total in totals)
        order += reversed(pair) if swap else pair[:1]
        del remaining[: 2 if swap else 1]
    return order


def _split_terms(order: Sequence[int], rng: random.Random) -> list[int]:
    """Take some two-digit terms apart into tens and ones, which only ever shortens the way to the total."""
    splitting = rng.random() < 0.6
    steps: list[int] = []
    for term in order[1:]:
        sign, size = (1, term) if term > 0 else (-1, -term)
        if splitting and size > 10 and size % 10 and rng.random() < 0.8:
            steps += [sign * (size - size % 10), sign * (size % 10)]
        else:
            steps.append(term)
    return steps


def _write_equations(start: int, steps: Sequence[int], rng: random.Random) -> str:
    total, written = start, []
    for step in steps:
        written.append(f"{total}{step:+d}={total + step}")
        total += step
    return rng.choice((", ", ". ")).join(written) + "."


def _write_words(start: int, steps: Sequence[int], rng: random.Random) -> str:
    total = start
    parts = [f"{rng.choice(('start with', 'begin at', 'we have'))} {start}."]
    for step in steps:
        verb = rng.choice(("add", "plus")) if step > 0 else rng.choice(("take", "minus"))
        lead = rng.choice(("", "then ", "now "))
        total += step
        parts.append(f"{lead}{verb} {abs(step)} {rng.choice(('to get', 'makes', 'gives'))} {total}.")
    return " ".join(parts)


def _write_arrows(start: int, steps: Sequence[int], rng: random.Random) -> str:
    total, parts = start, [f"from {start}"]
    joint = rng.choice((": ", " is "))
    for step in steps:
        total += step
        parts.append(f"({step:+d}){joint}{total}")
    return " ".join(parts) + rng.choice(("", ","))
