"""TRL's own trainer on the tensors of a batch or on the embedded model; imported where it is called."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from parity.batches import Tokens, slope

import mismatch_probe.assets

CHECKPOINT = Path(mismatch_probe.assets.__file__).parent / "tiny_qwen3_moe"
MAX_COMPLETION_LENGTH = 40


@functools.cache
def _loaded() -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(CHECKPOINT)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Where trainers would save; gone with the interpreter."""
    return tempfile.TemporaryDirectory()


def make_trainer(*, num_generations: int = 8, rollout: Any = None, rewards: Any = None, **config: Any) -> Any:
    """A GRPOTrainer built by its own constructor, on the embedded model, ready for a loss.

    TRL would start vLLM for `use_vllm`; its `rollout_func` brings the sampled tokens and their log-probabilities in
    instead, and the correction that goes with vLLM is switched on once the trainer stands.

    Args:
        num_generations: Responses of the one prompt.
        rollout: TRL's rollout_func; None where only a loss is wanted.
        rewards: One number a response.
        **config: Fields of its GRPOConfig.
    """
    from trl import GRPOConfig

    rewards = [float(i) for i in range(num_generations)] if rewards is None else rewards
    arguments = GRPOConfig(
        output_dir=_folder().name,
        use_cpu=True,
        bf16=False,
        report_to=[],
        disable_tqdm=True,
        num_generations=num_generations,
        per_device_train_batch_size=num_generations,
        max_completion_length=MAX_COMPLETION_LENGTH,
        router_aux_loss_coef=0.0,
        **config,
    )
    return trainer_of(arguments, rollout=rollout, rewards=rewards)


def trainer_of(arguments: Any, *, rollout: Any, rewards: list[float]) -> Any:
    """A GRPOTrainer of a GRPOConfig, as `make_trainer` does it.

    Args:
        arguments: The config; its own `use_vllm` comes back once the trainer stands.
        rollout: TRL's rollout_func, or None.
        rewards: One number a response of the one prompt.
    """
    from datasets import Dataset
    from trl import GRPOTrainer

    model, tokenizer = _loaded()

    def reward(completions: list[str], **_: Any) -> list[float]:
        assert len(completions) == len(rewards)
        return list(rewards)

    arguments.use_vllm = False
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["1 + 1 ="] * len(rewards)}),
        processing_class=tokenizer,
        rollout_func=rollout,
    )
    trainer.use_vllm = True
    trainer._last_loaded_step = trainer.state.global_step
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    trainer.model.train()
    return trainer


def read_log_probabilities(trainer: Any, *tensors: torch.Tensor) -> None:
    """Puts leaf tensors in the place of the model's log-probabilities, in the order in which TRL asks for them."""
    pending = list(tensors)

    def given(
        self: Any, model: Any, input_ids: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Any, Any, None]:
        logprobs = pending.pop(0)
        return logprobs, torch.zeros_like(logprobs), None

    trainer._get_per_token_logps_and_entropies = MethodType(given, trainer)


def loss_gradient(tokens: Tokens, *, num_items: float | None = None, **config: Any) -> torch.Tensor:
    """The gradient in log pi of TRL's loss on given log-probabilities, without a correction of the mismatch.

    Args:
        tokens: The batch; pi_old is `old`, and `rollout` what vLLM would have reported.
        num_items: Tokens of the global batch; None takes those of this one.
        **config: Fields of its GRPOConfig.
    """
    trainer = make_trainer(vllm_importance_sampling_correction=False, **config)
    read_log_probabilities(trainer, tokens.train)
    mask = tokens.mask.long()
    sequences = len(mask)
    inputs = {
        "prompt_ids": torch.zeros(sequences, 1, dtype=torch.long),
        "prompt_mask": torch.ones(sequences, 1, dtype=torch.long),
        "completion_ids": torch.zeros_like(mask),
        "completion_mask": mask,
        "advantages": tokens.advantages,
        "old_per_token_logps": tokens.old,
        "sampling_per_token_logps": tokens.rollout,
        "num_items_in_batch": mask.sum() if num_items is None else torch.tensor(num_items),
    }
    return slope(trainer._compute_loss(trainer.model, inputs), tokens)


def trl_config(text: str, folder: Path, *options: str) -> Any:
    """As a user would: a file given to TRL's own parser, beside what belongs to a machine."""
    from trl import GRPOConfig, TrlParser

    path = folder / "exported.yaml"
    path.write_text(text, encoding="utf-8")
    machine = (
        f"--output_dir {folder} --use_cpu true --bf16 false --report_to none --per_device_train_batch_size 8"
    )
    server = "--vllm_mode server --vllm_server_port 1 --vllm_server_timeout 0.01"
    command = ["--config", str(path), *machine.split(), *server.split(), *options]
    (config,) = TrlParser((GRPOConfig,)).parse_args_and_config(command)
    return config
