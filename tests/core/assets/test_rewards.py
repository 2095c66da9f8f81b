"""Reward of the arithmetic task and group-relative advantages."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mismatch_probe.assets.arithmetic import CHARACTERS, draw_question, write_solution
from mismatch_probe.assets.rewards import arithmetic_reward, final_answer, group_advantages
from mismatch_probe.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("37+48=85. answer: 85", 85),
        ("so the answer is 85.", 85),
        ("ok #### 85", 85),
        ("answer: 85 \n", 85),
        ("37+48=85.", None),
        ("answer: 85 and more", None),
        ("answer: 8 5", None),
        ("#### ", None),
        ("", None),
        ("answer: 1 answer: 2", 2),
    ],
)
def test_final_answer_is_read_at_the_very_end_only(text: str, number: int | None) -> None:
    assert final_answer(text) == number


def test_reward_rejects_an_answer_that_no_reply_could_match() -> None:
    assert arithmetic_reward("#### 85", "85") == 1.0
    assert arithmetic_reward("#### 58", "85") == 0.0
    with pytest.raises(ConfigError, match="not a whole number"):
        arithmetic_reward("#### 85", "eighty five")


@given(st.integers(0, 2**32))
def test_every_written_solution_is_right_and_within_the_alphabet(seed: int) -> None:
    rng = random.Random(seed)
    question = draw_question(rng, held_out=bool(seed % 2), max_terms=8)
    solution = write_solution(question, rng)
    assert arithmetic_reward(solution, str(question.answer)) == 1.0
    assert arithmetic_reward(solution, str(question.answer + 1)) == 0.0
    assert set(question.text + solution) <= set(CHARACTERS)


def test_solutions_of_one_question_differ() -> None:
    question = draw_question(random.Random(1), held_out=False, min_terms=4)
    assert len({write_solution(question, random.Random(seed)) for seed in range(50)}) > 25


def test_advantages_by_hand() -> None:
    rewards, prompts = np.array([1.0, 0.0, 1.0, 0.0, 1.0, 1.0]), np.array([7, 7, 3, 7, 3, 7])
    # Prompt 7: 1, 0, 0, 1: mean 1/2, standard deviation 1/2. Prompt 3: all alike.
    np.testing.assert_allclose(group_advantages(rewards, prompts), [1.0, -1.0, 0.0, -1.0, 0.0, 1.0])


def test_equal_rewards_give_exactly_zero_in_spite_of_rounding() -> None:
    assert not group_advantages(np.full(3, 0.1), np.zeros(3, dtype=np.int64)).any()


@given(
    arrays(np.float64, 24, elements=st.integers(0, 5).map(lambda k: k / 5)),
    arrays(np.int64, 24, elements=st.integers(-3, 3)),
    st.randoms(),
)
def test_advantages_are_standardised_per_prompt_whatever_the_order(
    rewards: np.ndarray, prompts: np.ndarray, rng: random.Random
) -> None:
    advantages = group_advantages(rewards, prompts)
    for prompt in np.unique(prompts):
        group = advantages[prompts == prompt]
        spread = np.ptp(rewards[prompts == prompt]) > 0
        assert abs(group.sum()) < 1e-9
        assert np.std(group) == pytest.approx(1.0 if spread else 0.0, abs=1e-9)
    order = np.array(rng.sample(range(24), 24))
    np.testing.assert_allclose(
        group_advantages(rewards[order], prompts[order]), advantages[order], atol=1e-12
    )


def test_advantages_refuse_what_cannot_be_standardised() -> None:
    with pytest.raises(ConfigError, match="equal vectors"):
        group_advantages(np.zeros(3), np.zeros(2, dtype=np.int64))
    with pytest.raises(ConfigError, match="not finite"):
        group_advantages(np.array([0.0, np.nan]), np.zeros(2, dtype=np.int64))
    assert group_advantages(np.zeros(0), np.zeros(0, dtype=np.int64)).shape == (0,)
