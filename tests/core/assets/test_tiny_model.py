"""The embedded model as shipped: size, loading, tokenizer, held-out prompts, worth of its samples."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mismatch_probe.assets.arithmetic import (
    CHARACTERS,
    Question,
    draw_question,
    held_out_questions,
    write_solution,
)
from mismatch_probe.assets.catalog import DEFAULT_MODEL, read_model_facts, resolve_model
from tools.train_tiny_moe import PROMPT_SEED, build_tokenizer, draw_batches, evaluate

FOLDER = resolve_model(DEFAULT_MODEL).path
SIZE_LIMIT = 4_000_000


def shipped_questions() -> list[Question]:
    questions = []
    for line in (FOLDER / "prompts.jsonl").read_text().splitlines():
        row = json.loads(line)
        terms = row["prompt"].removesuffix("=").replace("+", " +").replace("-", " -").split()
        question = Question(tuple(int(term) for term in terms))
        assert row["prompt"] == question.text
        assert row["answer"] == str(question.answer)
        questions.append(question)
    return questions


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model() -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    loaded, report = AutoModelForCausalLM.from_pretrained(
        FOLDER, dtype=torch.bfloat16, output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return loaded


def test_folder_is_small_enough_to_ship() -> None:
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) <= SIZE_LIMIT


def test_facts_are_those_of_a_moe_in_bfloat16() -> None:
    facts = read_model_facts(FOLDER)
    assert facts.architecture == "Qwen3MoeForCausalLM"
    assert facts.dtype == "bfloat16"
    assert facts.moe_layers == (0, 1, 2, 3)
    assert (facts.num_experts, facts.top_k) == (16, 4)
    assert facts.max_position_embeddings == 512
    assert facts.num_parameters == json.loads((FOLDER / "training.json").read_text())["parameters"]


def test_tokenizer_round_trip(tokenizer: Any) -> None:
    rng = random.Random(3)
    texts = [write_solution(draw_question(rng, held_out=False), rng) for _ in range(20)]
    for text in [*texts, CHARACTERS, "so  two  spaces ."]:
        ids = tokenizer.encode(text)
        assert ids[0] == tokenizer.bos_token_id
        assert len(ids) == len(text) + 1
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    facts = read_model_facts(FOLDER)
    assert facts.eos_token_ids == (tokenizer.eos_token_id,)
    assert len(tokenizer) <= facts.vocab_size


def test_tokenizer_is_the_one_the_trainer_builds(tokenizer: Any) -> None:
    assert build_tokenizer().get_vocab() == tokenizer.get_vocab()


def test_prompts_are_the_documented_draw_and_held_out() -> None:
    record = json.loads((FOLDER / "training.json").read_text())
    low, high = record["terms"]
    questions = shipped_questions()
    assert len(set(questions)) == len(questions) >= 64
    assert questions == held_out_questions(len(questions), PROMPT_SEED, min_terms=low, max_terms=high)
    assert all(question.held_out for question in questions)


def test_training_batches_never_hold_a_held_out_question(tokenizer: Any) -> None:
    batches, shipped, seen = draw_batches(tokenizer, random.Random(0), 2048, (3, 6)), shipped_questions(), 0
    barred = {question.text for question in shipped}
    for _ in range(12):
        ids, mask, labels = next(batches)
        for row, row_mask, row_labels in zip(ids, mask, labels, strict=True):
            text = tokenizer.decode(row[row_mask.bool() & (row_labels == -100)], skip_special_tokens=True)
            terms = text.removesuffix("=").replace("+", " +").replace("-", " -").split()
            assert not Question(tuple(int(term) for term in terms)).held_out
            assert text not in barred
            seen += 1
    assert seen > 100


def test_router_logits_of_every_layer_are_spread_over_the_experts(model: Any, tokenizer: Any) -> None:
    import torch

    inputs = tokenizer([q.text for q in shipped_questions()[:32]], return_tensors="pt", padding=True)
    with torch.inference_mode():
        output = model(**inputs, output_router_logits=True)
    assert len(output.router_logits) == 4
    real = inputs["attention_mask"].reshape(-1).bool()
    for logits in output.router_logits:
        chosen = logits[real].float().topk(4).indices
        # More than half of the experts are in use, and no choice of four serves every token.
        assert chosen.unique().numel() > 8
        assert chosen.sort(dim=-1).values.unique(dim=0).shape[0] > 10


def test_sampled_reward_is_what_training_recorded(model: Any, tokenizer: Any) -> None:
    recorded = json.loads((FOLDER / "training.json").read_text())["evaluation"]
    assert 0.2 <= recorded["mean_reward"] <= 0.9
    assert recorded["mixed_groups"] >= 0.3
    questions = shipped_questions()[:48]
    measured = evaluate(model, tokenizer, questions, samples=4, seed=11)
    # Rewards within a prompt go together, so the prompts are the sample size: five standard errors.
    allowance = 5 * np.sqrt(0.25 / len(questions))
    assert abs(measured.mean_reward - recorded["mean_reward"]) < allowance
    assert 0.2 < measured.mean_reward < 0.9
    assert measured.mixed_groups > 0.2
    assert abs(measured.mean_entropy - recorded["mean_entropy"]) < 0.05
    assert measured.unfinished < 0.05


def test_training_record_names_its_seed_and_versions() -> None:
    record = json.loads((Path(FOLDER) / "training.json").read_text())
    assert sum(phase["steps"] for phase in record["phases"]) > 1000
    assert {"torch", "transformers"} <= record["versions"].keys()
    assert isinstance(record["seed"], int)
