"""Train the embedded model for a few steps with any correction of `mismatch_probe.weights`.

A small GRPO loop on one process: sample groups of responses, turn rewards into group advantages, read the
same tokens again with the trainer, then take several optimiser steps on them. Three policies meet in the
loss, as in any RL trainer:

    rollout  mu      the policy that sampled: a bfloat16 copy of the weights, made at the last sync
    old      pi_old  the trainer's own reading of the same weights, before the first optimiser step
    train    pi      the trainer now; it moves away from pi_old with every optimiser step

pi / mu = (pi / pi_old) (pi_old / mu) is staleness times mismatch. What to lift into a trainer of your own is
`policy_loss`, a dozen lines; the rest is what any trainer already has.

    python examples/train_with_correction.py --method vespo
    python examples/train_with_correction.py --rollout runs/embedded --minibatches 64 --out runs/checkpoints
"""

from __future__ import annotations

import argparse
import copy
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_
from transformers import AutoModelForCausalLM, AutoTokenizer

from mismatch_probe.assets.catalog import resolve_model
from mismatch_probe.assets.rewards import arithmetic_reward, group_advantages
from mismatch_probe.stats import effective_sample_size, kl_estimates
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.trace import Trace
from mismatch_probe.weights import Batch, WeightMethod, available_methods, get_method

MAX_NEW_TOKENS = 160
MAX_GRAD_NORM = 1.0


@dataclass
class Rollout:
    """Sampled responses, prompts padded on the left and responses on the right.

    Attributes:
        ids: int64 [sequences, prompt width + response width].
        attention: 1 on real tokens, as `ids`.
        mask: bool [sequences, response width], true on response tokens, the end token included.
        rollout_logprobs: log mu of the response tokens, float32 as `mask`.
        rewards: float64 [sequences].
        advantages: float32 [sequences], from groups of one prompt.
    """

    ids: torch.Tensor
    attention: torch.Tensor
    mask: torch.Tensor
    rollout_logprobs: torch.Tensor
    rewards: np.ndarray
    advantages: torch.Tensor

    def take(self, rows: torch.Tensor) -> Rollout:
        """Some of the responses."""
        return Rollout(
            ids=self.ids[rows],
            attention=self.attention[rows],
            mask=self.mask[rows],
            rollout_logprobs=self.rollout_logprobs[rows],
            rewards=self.rewards[rows.numpy()],
            advantages=self.advantages[rows],
        )


def response_logprobs(model: Any, rollout: Rollout) -> torch.Tensor:
    """Reads log p of the response tokens, float32 [sequences, response width]; padding holds anything."""
    width = rollout.mask.shape[1]
    # Real tokens count from 0 in every row, whatever the padding on the left.
    positions = (rollout.attention.cumsum(dim=1) - 1).clamp_min(0)
    logits = model(
        input_ids=rollout.ids,
        attention_mask=rollout.attention,
        position_ids=positions,
        use_cache=False,
        logits_to_keep=width + 1,
    ).logits[:, :-1]
    return logits.float().log_softmax(dim=-1).gather(-1, rollout.ids[:, -width:, None])[..., 0]


def policy_loss(
    model: Any, method: WeightMethod, minibatch: Rollout, old_logprobs: torch.Tensor
) -> tuple[torch.Tensor, Batch]:
    """The loss of one mini-batch. This is all that a trainer needs.

    Args:
        model: The policy that is trained.
        method: Any correction; it takes from the batch the ratio that it reads.
        minibatch: Responses with log mu and advantages.
        old_logprobs: log pi_old of them, [sequences, response width].
    """
    batch = Batch.from_padded(
        train_logprobs=response_logprobs(model, minibatch),
        rollout_logprobs=minibatch.rollout_logprobs,
        advantages=minibatch.advantages,
        mask=minibatch.mask,
        old_logprobs=old_logprobs,
    )
    return method.loss(batch), batch


def sample_rollout(model: Any, tokenizer: Any, prompts: list[dict[str, str]], samples: int) -> Rollout:
    """Samples a group of responses for each prompt, keeping log mu as the sampler saw it."""
    texts = [prompt["prompt"] for prompt in prompts for _ in range(samples)]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    sampled = model.generate(
        **inputs,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=MAX_NEW_TOKENS,
        return_dict_in_generate=True,
        output_logits=True,
    )
    responses = sampled.sequences[:, inputs["input_ids"].shape[1] :]
    log_mu = torch.stack(sampled.logits, dim=1).float().log_softmax(dim=-1)
    ends = (responses == tokenizer.eos_token_id).cumsum(dim=1)
    mask = (ends == 0) | ((ends == 1) & (responses == tokenizer.eos_token_id))
    replies = tokenizer.batch_decode(responses.where(mask, tokenizer.pad_token_id), skip_special_tokens=True)
    rewards = np.array(
        [arithmetic_reward(reply, prompts[i // samples]["answer"]) for i, reply in enumerate(replies)]
    )
    groups = np.arange(len(texts)) // samples
    return Rollout(
        ids=sampled.sequences,
        attention=torch.cat([inputs["attention_mask"], mask.long()], dim=1),
        mask=mask,
        rollout_logprobs=log_mu.gather(-1, responses[..., None])[..., 0],
        rewards=rewards,
        advantages=torch.from_numpy(group_advantages(rewards, groups)).float(),
    )


def read_rollout(path: Path, pad: int) -> Rollout:
    """Takes tokens, log mu and rewards from a run directory that `mismatch-probe` recorded."""
    run = RunDirectory.open_existing(path)
    recorded = Trace(run, int(run.read_manifest()["num_parts"])).rollout
    if recorded.reward is None:
        raise SystemExit(f"{path}: the run has no rewards, so there is nothing to learn from")
    prompts = np.split(recorded.prompt_tokens, recorded.prompt_offsets[1:-1])
    responses = np.split(recorded.response_tokens, recorded.offsets[1:-1])
    logprobs = np.split(recorded.logprobs, recorded.offsets[1:-1])
    left, width = max(map(len, prompts)), max(map(len, responses))
    ids = torch.full((len(prompts), left + width), pad)
    log_mu = torch.zeros(len(prompts), width)
    attention = torch.zeros_like(ids)
    for i, (prompt, response, values) in enumerate(zip(prompts, responses, logprobs, strict=True)):
        row = slice(left - len(prompt), left + len(response))
        ids[i, row] = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))
        attention[i, row] = 1
        log_mu[i, : len(values)] = torch.from_numpy(values)
    return Rollout(
        ids=ids,
        attention=attention,
        mask=attention[:, left:].bool(),
        rollout_logprobs=log_mu,
        rewards=recorded.reward,
        advantages=torch.from_numpy(group_advantages(recorded.reward, recorded.prompt_index)).float(),
    )


def report_line(step: int, rewards: np.ndarray, method: WeightMethod, batch: Batch, norm: float) -> str:
    """What a run of RL should be watched by, one line an optimiser step."""
    log_ratio = (batch.train_logprobs.detach() - batch.rollout_logprobs).masked_fill(~batch.mask, 0.0)
    ess = effective_sample_size(log_ratio.sum(dim=1).numpy()).fraction
    phi = method.coefficients(batch)[batch.mask].mean().item()
    k3 = kl_estimates(log_ratio[batch.mask].numpy()).k3
    return (
        f"step {step:4d}  reward {rewards.mean():.3f}  ESS {ess:.3f}  mean phi {phi:.3f}"
        f"  K3 {k3:.2e}  grad norm {norm:.3f}"
    )


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--method", default="vespo", choices=available_methods(), metavar="NAME", help="correction"
    )
    parser.add_argument(
        "--steps", type=int, help="rollouts (default 4); each feeds --minibatches optimiser steps"
    )
    parser.add_argument("--minibatches", type=int, default=2, help="N = rollout batch / mini-batch")
    parser.add_argument("--prompts", type=int, default=8, help="prompts of one rollout")
    parser.add_argument("--samples", type=int, default=4, help="responses of one prompt")
    parser.add_argument("--lr", type=float, default=1e-4, help="learning rate of AdamW")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--rollout", type=Path, metavar="RUN", help="take the one rollout from a recorded run"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where checkpoints go, as DIR/step-<k>")
    parser.add_argument("--save-every", type=int, metavar="K", help="save after every K-th optimiser step")
    parser.add_argument(
        "--save-at", type=int, nargs="+", default=(), metavar="STEP", help="save after these steps"
    )
    options = parser.parse_args(arguments)
    saving = options.save_every is not None or bool(options.save_at)
    if saving != (options.out is not None):
        parser.error("saving takes both --out DIR and --save-every K (or --save-at STEP ...)")
    for name in ("steps", "minibatches", "prompts", "samples", "save_every"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    if options.rollout is not None and options.steps not in (None, 1):
        parser.error("a recorded run is one rollout: leave out --steps")
    if options.steps is None:
        options.steps = 4 if options.rollout is None else 1
    return options


def main(arguments: list[str] | None = None) -> None:
    """Trains, prints a line a step, saves checkpoints."""
    options = parse_arguments(arguments)
    torch.manual_seed(options.seed)
    shuffler = random.Random(options.seed)  # noqa: S311 - which prompts come next is no secret
    source = resolve_model("tiny-qwen3-moe")
    tokenizer = AutoTokenizer.from_pretrained(source.path, padding_side="left")
    prompts = [json.loads(line) for line in (source.path / "prompts.jsonl").read_text("utf-8").splitlines()]
    # Weights are kept and trained in float32; what samples gets them in bfloat16.
    model = AutoModelForCausalLM.from_pretrained(source.path, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=0.0)
    method = get_method(options.method)
    step = 0
    for _ in range(options.steps):
        if options.rollout is not None:
            rollout = read_rollout(options.rollout, tokenizer.pad_token_id)
        else:
            sampler = copy.deepcopy(model).to(torch.bfloat16)  # the sync
            chosen = shuffler.sample(prompts, options.prompts)
            rollout = sample_rollout(sampler, tokenizer, chosen, options.samples)
        with torch.no_grad():
            old_logprobs = response_logprobs(model, rollout)
        if len(rollout.ids) < options.minibatches:
            raise SystemExit(f"{len(rollout.ids)} responses cannot be cut into {options.minibatches} parts")
        for rows in torch.randperm(len(rollout.ids)).tensor_split(options.minibatches):
            loss, batch = policy_loss(model, method, rollout.take(rows), old_logprobs[rows])
            optimizer.zero_grad()
            loss.backward()
            norm = clip_grad_norm_(model.parameters(), MAX_GRAD_NORM).item()
            optimizer.step()
            step += 1
            print(report_line(step, rollout.rewards[rows.numpy()], method, batch, norm), flush=True)
            if step in options.save_at or (options.save_every and step % options.save_every == 0):
                model.save_pretrained(options.out / f"step-{step}")
                tokenizer.save_pretrained(options.out / f"step-{step}")


if __name__ == "__main__":
    main()
