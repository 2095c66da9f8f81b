"""Faults, one function each: changes of a loaded model, of the ids that are fed, and of the logged arrays."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from mismatch_probe.assets.rewards import arithmetic_reward, group_advantages


def train_steps(
    model: Any, recording: Any, answers: Sequence[str], tokenizer: Any, *, steps: int, rate: float
) -> Any:
    """A copy of `model` after real policy-gradient steps (AdamW, group-normalised rewards) on the recording.

    Args:
        model: A float32 model.
        recording: Sequences with `prompts`, `responses` and `clusters`.
        answers: Right answer of each sequence.
        tokenizer: Decodes responses for the reward.
        steps: Optimiser steps, 16 sequences each.
        rate: Learning rate.
    """
    torch.manual_seed(0)
    model = copy.deepcopy(model).train()
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in recording.responses]
    rewards = np.array([arithmetic_reward(text, answer) for text, answer in zip(texts, answers, strict=True)])
    advantages = group_advantages(rewards, recording.clusters)
    rows = np.flatnonzero(advantages)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    rng = np.random.default_rng(0)
    for _ in range(steps):
        optimiser.zero_grad()
        for row in rng.choice(rows, size=16):
            prompt, response = recording.prompts[row], recording.responses[row]
            logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
            log_p = torch.log_softmax(logits.float(), -1).gather(-1, torch.tensor(response)[:, None])
            (-float(advantages[row]) * log_p.mean() / 16).backward()
        optimiser.step()
    return model.eval()


def take_layer(source: Any, layer: int) -> Callable[[Any], None]:
    """One decoder layer's weights from another model, the rest left."""

    def change(model: Any) -> None:
        model.model.layers[layer].load_state_dict(source.model.layers[layer].state_dict())

    return change


def take_all(source: Any) -> Callable[[Any], None]:
    """All weights of another model."""

    def change(model: Any) -> None:
        model.load_state_dict(source.state_dict())

    return change


def add_low_rank(rank: int, scale: float) -> Callable[[Any], None]:
    """Adds a random B A to the query and value projections, `scale` times their norm, as a merged adapter does."""

    @torch.no_grad()
    def change(model: Any) -> None:
        generator = torch.Generator().manual_seed(1)
        for layer in model.model.layers:
            for weight in (layer.self_attn.q_proj.weight, layer.self_attn.v_proj.weight):
                left = torch.randn(weight.shape[0], rank, generator=generator)
                delta = left @ torch.randn(rank, weight.shape[1], generator=generator)
                norm = weight.float().norm() / delta.norm()
                weight.copy_((weight.float() + scale * norm * delta).to(weight.dtype))

    return change


def round_weights(kind: str, granularity: str) -> Callable[[Any], None]:
    """Rounds every matrix in the decoder layers to FP8 (e4m3) or INT8 and back.

    Args:
        kind: "fp8" or "int8".
        granularity: "tensor" or "row": what shares a scale.
    """

    @torch.no_grad()
    def change(model: Any) -> None:
        for name, weight in model.named_parameters():
            if "layers." not in name or weight.dim() < 2:
                continue
            full = weight.float()
            largest = full.abs().amax() if granularity == "tensor" else full.abs().amax(-1, keepdim=True)
            if kind == "fp8":
                scale = largest / 448.0
                rounded = (full / scale).to(torch.float8_e4m3fn).float() * scale
            else:
                scale = largest / 127.0
                rounded = (full / scale).round().clamp(-127, 127) * scale
            weight.copy_(rounded.to(weight.dtype))

    return change


def permute_experts(layers: Sequence[int], moved: int) -> Callable[[Any], None]:
    """Rotates the first `moved` experts of some layers against the router's rows."""

    @torch.no_grad()
    def change(model: Any) -> None:
        for layer in layers:
            for weight in model.model.layers[layer].mlp.experts.parameters():
                weight[:moved] = weight[:moved].roll(1, dims=0)

    return change


def noisy_router(layers: Sequence[int], noise: float) -> Callable[[Any], None]:
    """Gaussian noise on what the routers of some layers read, `noise` times its standard deviation."""

    def change(model: Any) -> None:
        generator = torch.Generator().manual_seed(2)

        def disturb(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            hidden = inputs[0]
            error = torch.randn(hidden.shape, generator=generator) * hidden.float().std()
            return ((hidden.float() + noise * error).to(hidden.dtype), *inputs[1:])

        for layer in layers:
            model.model.layers[layer].mlp.gate.register_forward_pre_hook(disturb)

    return change


def bfloat16_router(layers: Sequence[int]) -> Callable[[Any], None]:
    """Routers of some layers in bfloat16: what they read, their weights and their logits, in a float32 model."""

    def change(model: Any) -> None:
        for layer in layers:
            gate = model.model.layers[layer].mlp.gate
            with torch.no_grad():
                gate.weight.copy_(gate.weight.bfloat16().to(gate.weight.dtype))
            gate.register_forward_pre_hook(
                lambda module, inputs: (inputs[0].bfloat16().to(inputs[0].dtype), *inputs[1:])
            )

    return change


def rope_base(factor: float) -> Callable[[Any], None]:
    """Multiplies the base of the rotary embedding."""

    def change(model: Any) -> None:
        base = model.config.rope_parameters["rope_theta"] * factor
        model.config.rope_parameters["rope_theta"] = base
        rotary = model.model.rotary_emb
        size = model.config.head_dim
        rotary.inv_freq = 1.0 / base ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
        rotary.original_inv_freq = rotary.inv_freq

    return change


def norm_epsilon(epsilon: float) -> Callable[[Any], None]:
    """Another epsilon in every RMS norm."""

    def change(model: Any) -> None:
        model.config.rms_norm_eps = epsilon
        for module in model.modules():
            if hasattr(module, "variance_epsilon"):
                module.variance_epsilon = epsilon

    return change


def bfloat16_head(model: Any) -> None:
    """Rounds what goes into the output head and what comes out of it to bfloat16."""
    head = model.lm_head.forward

    def forward(hidden: Any) -> Any:
        return head(hidden.bfloat16().to(hidden.dtype)).bfloat16().to(hidden.dtype)

    model.lm_head.forward = forward


def drop_bos(prompt: list[int], response: list[int]) -> tuple[list[int], list[int]]:
    """The prompt without its first token."""
    return prompt[1:], response


def retokenise(tokenizer: Any, share: float) -> Callable[[list[int], list[int]], tuple[list[int], list[int]]]:
    """Decodes the response, cleans the text up as chat pipelines do (space after a comma or a full stop), encodes again."""
    rng = np.random.default_rng(3)

    def edit(prompt: list[int], response: list[int]) -> tuple[list[int], list[int]]:
        if rng.random() >= share:
            return prompt, response
        text = tokenizer.decode(response, skip_special_tokens=True)
        for mark in (", ", ". ", ": "):
            text = text.replace(mark, mark.strip())
        ids = tokenizer.encode(text, add_special_tokens=False)
        ids += [tokenizer.eos_token_id] * (len(response) - len(ids))
        return prompt, ids[: len(response)]

    return edit


Rows = list[np.ndarray]


def shift(rows: Rows, by: int, share: float) -> Rows:
    """Moves the log-probabilities of a share of the sequences by `by` tokens."""
    chosen = _chosen(len(rows), share)
    return [np.roll(row, by) if i in chosen else row for i, row in enumerate(rows)]


def pad(rows: Rows, count: int, share: float) -> Rows:
    """Writes zeros over the last `count` tokens of a share of the sequences, as a mask over padding leaves them."""
    chosen = _chosen(len(rows), share)
    return [
        np.concatenate([row[:-count], np.zeros(count)]) if i in chosen else row for i, row in enumerate(rows)
    ]


def swap(rows: Rows, pairs: int) -> Rows:
    """Exchanges rows of equal length, `pairs` times."""
    order = list(range(len(rows)))
    by_length: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        by_length.setdefault(row.size, []).append(index)
    groups = [group for group in by_length.values() if len(group) > 1]
    for group in groups[:pairs]:
        order[group[0]], order[group[1]] = order[group[1]], order[group[0]]
    return [rows[index] for index in order]


def break_one(rows: Rows, size: float) -> Rows:
    """Lowers every log-probability of the longest sequence by noise of `size` nats: one broken request."""
    longest = max(range(len(rows)), key=lambda index: rows[index].size)
    rng = np.random.default_rng(4)
    return [
        row - np.abs(rng.normal(0, size, row.size)) if i == longest else row for i, row in enumerate(rows)
    ]


def put(rows: Rows, value: float, count: int) -> Rows:
    """Writes a sentinel over `count` tokens."""
    rng = np.random.default_rng(5)
    rows = [np.array(row, dtype=np.float64) for row in rows]
    for index in rng.choice(len(rows), size=count, replace=False):
        rows[index][rng.integers(rows[index].size)] = value
    return rows


def _chosen(count: int, share: float) -> set[int]:
    picked = np.random.default_rng(6).choice(count, size=max(1, round(share * count)), replace=False)
    return {int(index) for index in picked}
