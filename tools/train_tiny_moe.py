"""Train the embedded default model `tiny-qwen3-moe` and write its whole folder.

    python tools/train_tiny_moe.py --out mismatch_probe/assets/tiny_qwen3_moe

A transformers Qwen3MoeForCausalLM of about 1.8 M parameters learns to solve small sums step by step
(`mismatch_probe.assets.arithmetic`). It is trained in float32, cast to bfloat16, and judged in bfloat16 by
sampling at temperature 1 on prompts that training never sees. Deterministic for a seed and a thread count.

Two phases. The first is plain training. Its routers end up peaked: the last of the chosen experts has
next to no gate weight, so an expert that flips changes next to nothing, and the drift of the model is the
rounding of its head. Large models are not like that. So the routers are then scaled down (the same experts
are chosen, the gates become flat) and frozen, the second phase trains the rest until it has recovered, and
the routers are scaled once more, which costs some reward. A flip then matters, as it does in the models
that this one stands for.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mismatch_probe.assets.arithmetic import (
    CHARACTERS,
    Question,
    draw_question,
    held_out_questions,
    write_solution,
)
from mismatch_probe.assets.rewards import arithmetic_reward, group_advantages

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
VOCAB_SIZE = 64
PROMPTS = 128
PROMPT_SEED = 20_000
IGNORED = -100
MIN_TERMS = 2


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of training.

    Attributes:
        steps: Optimiser steps.
        peak_lr: Highest learning rate.
        batch_tokens: Tokens of a batch, padding included.
        max_terms: Most terms of a sum.
    """

    steps: int
    peak_lr: float
    batch_tokens: int
    max_terms: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What sampling from the bfloat16 model showed.

    Attributes:
        prompts: Number of held-out prompts.
        samples: Samples per prompt.
        mean_reward: Share of right answers.
        mixed_groups: Share of prompts whose samples have advantages of both signs.
        mean_entropy: Mean entropy of the next-token distribution over sampled tokens, nats.
        probability_quantiles: 1, 5, 25, 50, 75 and 95 % quantiles of the sampled tokens' probability.
        mean_length: Mean response length in tokens, end token included.
        max_length: Longest response.
        unfinished: Share of responses cut at the length limit.
        expert_load: Smallest and largest share of routed slots of any expert in any layer (1/16 is even).
    """

    prompts: int
    samples: int
    mean_reward: float
    mixed_groups: float
    mean_entropy: float
    probability_quantiles: dict[str, float]
    mean_length: float
    max_length: int
    unfinished: float
    expert_load: tuple[float, float]


def build_tokenizer() -> Any:
    """Build the character tokenizer: a BPE without merges, one id a character."""
    from tokenizers import Tokenizer, decoders, models, processors
    from transformers import PreTrainedTokenizerFast

    tokens = [PAD, BOS, EOS, UNK, *CHARACTERS]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[], unk_token=UNK))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokens.index(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def build_model(tokenizer: Any) -> Any:
    """Build the untrained float32 model."""
    from transformers import GenerationConfig, Qwen3MoeConfig, Qwen3MoeForCausalLM

    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = Qwen3MoeConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=256,
        moe_intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=16,
        num_experts_per_tok=4,
        norm_topk_prob=True,
        router_aux_loss_coef=0.01,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=False,
        **ids,
    )
    model = Qwen3MoeForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, **ids)
    return model


def draw_batches(
    tokenizer: Any, rng: random.Random, tokens: int, terms: tuple[int, int]
) -> Iterator[tuple[Any, Any, Any]]:
    """Yield endless batches (ids, attention mask, labels) of rows of similar length; only replies are labels."""
    import torch

    while True:
        rows: list[tuple[list[int], int]] = []
        for _ in range(2048):
            question = draw_question(rng, held_out=False, min_terms=terms[0], max_terms=terms[1])
            prompt = [tokenizer.bos_token_id, *tokenizer.encode(question.text, add_special_tokens=False)]
            reply = tokenizer.encode(write_solution(question, rng), add_special_tokens=False)
            rows.append(([*prompt, *reply, tokenizer.eos_token_id], len(prompt)))
        rows.sort(key=lambda row: len(row[0]))
        batches: list[list[tuple[list[int], int]]] = [[]]
        for row in rows:
            if (len(batches[-1]) + 1) * len(row[0]) > tokens:
                batches.append([])
            batches[-1].append(row)
        rng.shuffle(batches)
        for batch in batches:
            width = max(len(ids) for ids, _ in batch)
            ids = torch.full((len(batch), width), tokenizer.pad_token_id)
            labels = torch.full((len(batch), width), IGNORED)
            for i, (row_ids, start) in enumerate(batch):
                ids[i, : len(row_ids)] = torch.tensor(row_ids)
                labels[i, start : len(row_ids)] = torch.tensor(row_ids[start:])
            yield ids, (ids != tokenizer.pad_token_id).long(), labels


def train(
    model: Any,
    tokenizer: Any,
    *,
    steps: int,
    seed: int,
    batch_tokens: int,
    terms: tuple[int, int],
    peak_lr: float,
) -> float:
    """Train in place with AdamW, warm-up and cosine decay; parameters that need no gradient stay as they are.

    Returns:
        Mean cross-entropy per reply token over the last 50 steps, nats.
    """
    import torch

    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim > 1]
    others = [p for p in trained if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
        lr=peak_lr,
        betas=(0.9, 0.98),
    )
    batches = draw_batches(tokenizer, random.Random(seed), batch_tokens, terms)  # noqa: S311
    warmup, losses, started = max(1, steps // 25), [], time.monotonic()
    model.train()
    for step in range(steps):
        progress = (step - warmup) / max(1, steps - warmup)
        factor = (
            (step + 1) / warmup if step < warmup else 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))
        )
        for group in optimizer.param_groups:
            group["lr"] = peak_lr * factor
        ids, mask, labels = next(batches)
        output = model(
            input_ids=ids, attention_mask=mask, labels=labels, output_router_logits=True, use_cache=False
        )
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        # The model's loss already holds coef * aux; the log shows the language loss alone.
        balance = output.aux_loss.item()
        losses.append(output.loss.item() - model.config.router_aux_loss_coef * balance)
        if step % 50 == 49 or step == steps - 1:
            print(
                f"step {step + 1:5d}/{steps}  loss {np.mean(losses[-50:]):.4f}  balance {balance:.3f}"
                f"  {time.monotonic() - started:6.1f} s",
                flush=True,
            )
    return float(np.mean(losses[-50:]))


def flatten_gates(model: Any, factor: float) -> None:
    """Scale every router by `factor` and freeze it: the same experts are chosen, with flatter gate weights."""
    for name, parameter in model.named_parameters():
        if name.endswith("mlp.gate.weight"):
            parameter.data.mul_(factor)
            parameter.requires_grad_(False)


def evaluate(model: Any, tokenizer: Any, questions: list[Question], *, samples: int, seed: int) -> Evaluation:
    """Sample replies at temperature 1 and measure the policy; see `Evaluation`."""
    import torch

    model.eval()
    torch.manual_seed(seed)
    prompts = [question.text for question in questions for _ in range(samples)]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
    start = inputs["input_ids"].shape[1]
    with torch.inference_mode():
        ids = model.generate(
            **inputs, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=256
        )
        replies = ids[:, start:]
        ended = (replies == tokenizer.eos_token_id).cumsum(dim=1)
        kept = (ended == 0) | ((ended == 1) & (replies == tokenizer.eos_token_id))
        mask = torch.cat([inputs["attention_mask"], kept.long()], dim=1)
        positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            output_router_logits=True,
            use_cache=False,
        )
        log_p = output.logits[:, start - 1 : -1].float().log_softmax(dim=-1)
        chosen = log_p.gather(-1, replies[..., None])[..., 0][kept].exp().numpy()
        entropy = -(log_p.exp() * log_p).sum(dim=-1)[kept].numpy()
        real = mask.reshape(-1).bool()
        loads = [
            torch.bincount(
                logits[real].topk(model.config.num_experts_per_tok).indices.reshape(-1), minlength=16
            ).float()
            for logits in output.router_logits
        ]
    shares = torch.stack([load / load.sum() for load in loads])
    texts = tokenizer.batch_decode(
        torch.where(kept, replies, tokenizer.pad_token_id), skip_special_tokens=True
    )
    rewards = np.array(
        [arithmetic_reward(text, str(questions[i // samples].answer)) for i, text in enumerate(texts)]
    )
    advantages = group_advantages(rewards, np.arange(len(prompts)) // samples).reshape(-1, samples)
    lengths = kept.sum(dim=1).numpy()
    for text, prompt in list(zip(texts, prompts, strict=True))[:: max(1, len(texts) // 6)]:
        print(f"  {prompt} {text}")
    return Evaluation(
        prompts=len(questions),
        samples=samples,
        mean_reward=float(rewards.mean()),
        mixed_groups=float(((advantages > 0).any(axis=1) & (advantages < 0).any(axis=1)).mean()),
        mean_entropy=float(entropy.mean()),
        probability_quantiles={
            f"{level:g}": float(np.quantile(chosen, level)) for level in (0.01, 0.05, 0.25, 0.5, 0.75, 0.95)
        },
        mean_length=float(lengths.mean()),
        max_length=int(lengths.max()),
        unfinished=float(1.0 - ended[:, -1].bool().float().mean()),
        expert_load=(float(shares.min()), float(shares.max())),
    )


def write_folder(
    out: Path, model: Any, tokenizer: Any, questions: list[Question], record: dict[str, Any]
) -> None:
    """Write weights, tokenizer, prompts and the training record."""
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    # The general class name: transformers 4 knows it too, and version 5 maps it to its own.
    settings = json.loads((out / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    for file in out.glob("*.safetensors"):
        file.chmod(0o644)
    lines = [
        json.dumps({"prompt_id": f"sum-{i:03d}", "prompt": question.text, "answer": str(question.answer)})
        for i, question in enumerate(questions)
    ]
    (out / "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (out / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Train, judge and write the model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=1400, help="steps of the first phase")
    parser.add_argument("--flat-steps", type=int, default=700, help="steps with flat, frozen gates")
    parser.add_argument(
        "--gate-scale", type=float, default=0.25, help="what the routers are scaled by, twice"
    )
    parser.add_argument("--flat-lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--prompt-terms", type=int, default=3, help="most terms of a shipped prompt")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument(
        "--quick", action="store_true", help="30 steps: shows that it runs, the model is useless"
    )
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

    import torch
    import transformers

    torch.manual_seed(options.seed)
    phases = [
        Phase(20 if options.quick else options.steps, options.lr, options.batch_tokens, 5),
        Phase(10 if options.quick else options.flat_steps, options.flat_lr, options.batch_tokens // 2, 4),
    ]
    terms = (MIN_TERMS, options.prompt_terms)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters, {phases}, {torch.get_num_threads()} threads")
    started = time.monotonic()
    loss = float("nan")
    for index, phase in enumerate(phases):
        loss = train(
            model,
            tokenizer,
            steps=phase.steps,
            seed=options.seed + index,
            batch_tokens=phase.batch_tokens,
            terms=(MIN_TERMS, phase.max_terms),
            peak_lr=phase.peak_lr,
        )
        flatten_gates(model, options.gate_scale)
    seconds = time.monotonic() - started
    questions = held_out_questions(PROMPTS, PROMPT_SEED, min_terms=terms[0], max_terms=terms[1])
    model = model.to(torch.bfloat16)
    evaluation = evaluate(
        model, tokenizer, questions[: 32 if options.quick else PROMPTS], samples=4, seed=options.seed
    )
    record = {
        "phases": [asdict(phase) for phase in phases],
        "gate_scale": options.gate_scale,
        "seed": options.seed,
        "terms": terms,
        "parameters": parameters,
        "loss": loss,
        "seconds": round(seconds, 1),
        "evaluation": asdict(evaluation),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    write_folder(options.out, model, tokenizer, questions, record)
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
