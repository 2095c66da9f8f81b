"""verl's own functions on the tensors of a batch; imported where they are called, since that takes ten seconds."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from parity.batches import WIDTH, Tokens, slope

# What verl has no default for; nothing of it is exported.
MEGATRON = ("model_engine=megatron",)
NEEDED = ["actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1", "actor_rollout_ref.rollout.name=vllm"]


def actor_config(**changes: Any) -> Any:
    """verl's configuration of an actor, with its defaults but for `changes`."""
    from verl.workers.config import FSDPActorConfig

    return FSDPActorConfig(strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, **changes)


def loss_gradient(
    loss_mode: str,
    tokens: Tokens,
    aggregation: str = "token-mean",
    *,
    bypass: bool = False,
    weights: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    policy_loss: dict[str, Any] | None = None,
    **config: Any,
) -> torch.Tensor:
    """The gradient in log pi of a registered policy loss.

    Args:
        loss_mode: Its name in verl's registry.
        tokens: The batch.
        aggregation: verl's loss_agg_mode.
        bypass: Whether mu stands for pi_old, as in bypass mode.
        weights: rollout_is_weights.
        mask: The response mask, if rejection has changed it.
        policy_loss: Fields of its PolicyLossConfig.
        **config: Fields of its ActorConfig.
    """
    from verl.trainer.ppo.core_algos import get_policy_loss_fn
    from verl.workers.config import PolicyLossConfig

    loss, _ = get_policy_loss_fn(loss_mode)(
        old_log_prob=tokens.rollout if bypass else tokens.old,
        log_prob=tokens.train,
        advantages=tokens.per_token,
        response_mask=tokens.counts if mask is None else mask,
        loss_agg_mode=aggregation,
        config=actor_config(policy_loss=PolicyLossConfig(**(policy_loss or {})), **config),
        rollout_is_weights=weights,
    )
    return slope(loss, tokens)


def correction(tokens: Tokens, **keys: Any) -> tuple[torch.Tensor | None, torch.Tensor, dict[str, float]]:
    """verl's weights and mask of pi_old / mu, and what it logs; `keys` as in algorithm.rollout_correction."""
    from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_and_rejection_mask

    weights, mask, metrics = compute_rollout_correction_and_rejection_mask(
        old_log_prob=tokens.old, rollout_log_prob=tokens.rollout, response_mask=tokens.counts, **keys
    )
    return None if weights is None else weights.batch["rollout_is_weights"], mask, metrics


def preset_keys(preset: str) -> dict[str, Any]:
    """What a preset of verl's RolloutCorrectionConfig passes on to the correction."""
    from verl.trainer.config import RolloutCorrectionConfig

    config = getattr(RolloutCorrectionConfig, preset)()
    names = ("rollout_is", "rollout_is_threshold", "rollout_rs", "rollout_rs_threshold")
    return {name: getattr(config, name) for name in names}


def normalisers(mask: torch.Tensor) -> dict[str, float]:
    """What verl divides by: the tokens and the sequences that a mask leaves, and the padded width."""
    return {
        "num_tokens": float(mask.sum()),
        "num_sequences": float((mask.sum(dim=-1) > 0).sum()),
        "horizon": float(WIDTH),
    }


@functools.cache
def verl_defaults(*overrides: str) -> Any:
    """verl's trainer configuration, composed by Hydra from the files that it ships."""
    import verl.trainer.config
    from hydra import compose, initialize_config_dir

    folder = str(Path(verl.trainer.config.__file__).parent)
    with initialize_config_dir(folder, version_base=None):
        return compose("ppo_trainer", overrides=[*NEEDED, *overrides])


def in_verl(text: str, *overrides: str) -> Any:
    """verl's trainer configuration with an exported fragment merged in; unknown keys are errors."""
    from omegaconf import OmegaConf

    defaults = verl_defaults(*overrides)
    assert OmegaConf.is_struct(defaults)
    return OmegaConf.merge(defaults, OmegaConf.create(text))
