"""An exported config, loaded by the framework that it is for, drives that framework's own code on a measured run's tokens.

    PYTHONPATH=tests python -m parity.round_trip runs/embedded

prints, for each framework, by how much what it did with a run differs at most from what was predicted. Without a path the run
of the tests is taken.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import yaml
from parity.batches import Tokens, slope
from parity.measured import Run, Summary, planted_run, recorded

from mismatch_probe.errors import ConfigError
from mismatch_probe.export import ExportedConfig, export_config
from mismatch_probe.export.annotated import Entry, Value, render
from mismatch_probe.export.effect import expected_effect
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.weights import WeightMethod, available_methods

PROMPT = [3, 4, 5, 6]


@dataclass(frozen=True)
class Done:
    """What a framework did.

    Attributes:
        phi: The coefficient on A * grad log pi, from the gradient of its loss, [sequences, width].
        weights: Its weights of pi_old / mu by themselves, where it hands them out.
        mask: The tokens that its rejection leaves, where it hands them out.
        logged: Its own metrics.
    """

    phi: torch.Tensor
    weights: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    logged: dict[str, float] | None = None


def exported(to: str, run: Run) -> Iterator[tuple[str, ExportedConfig]]:
    """Method and config of all that an exporter can write for a run."""
    for method in available_methods():
        try:
            yield method, export_config(run.result, to, method=method, force=True)
        except ConfigError as error:
            assert "cannot express" in str(error), error


def config_of(keys: Mapping[str, Value]) -> tuple[str, tuple[Entry, ...]]:
    """A config with these keys and no comments of a run: its text, and its entries."""
    entries = tuple(Entry(key, value, "as the test has it") for key, value in keys.items())
    return render([], entries), entries


def coefficients(gradient: torch.Tensor, tokens: Tokens, normaliser: float | torch.Tensor) -> torch.Tensor:
    """phi from a gradient in log pi of a loss that was divided by a normaliser."""
    return -gradient * normaliser / tokens.per_token * tokens.mask


def of_responses(mask: torch.Tensor, responses: float | None = None) -> torch.Tensor:
    """What a mean over responses of means over tokens divides by, [sequences, 1].

    Args:
        mask: The tokens that count.
        responses: How many responses count; None takes those with a token.
    """
    lengths = mask.sum(dim=-1, keepdim=True).to(torch.float64)
    return lengths * (float((lengths > 0).sum()) if responses is None else responses)


def through_verl(text: str, tokens: Tokens) -> Done:
    """verl: its trainer's configuration, its correction of a DataProto, and its policy loss."""
    from parity import verl_side
    from verl import DataProto
    from verl.trainer.config import RolloutCorrectionConfig
    from verl.trainer.ppo.core_algos import get_policy_loss_fn
    from verl.trainer.ppo.rollout_corr_helper import (
        apply_bypass_mode,
        compute_rollout_correction_and_add_to_batch,
    )
    from verl.utils.config import omega_conf_to_dataclass

    megatron = verl_side.MEGATRON if "megatron" in text else ()
    merged = verl_side.in_verl(text, *megatron)
    config = omega_conf_to_dataclass(merged.algorithm.rollout_correction, RolloutCorrectionConfig)
    actor = omega_conf_to_dataclass(merged.actor_rollout_ref.actor)
    batch = DataProto.from_dict(
        {
            "old_log_probs": tokens.old,
            "rollout_log_probs": tokens.rollout,
            "response_mask": tokens.counts,
        }
    )
    logged: dict[str, float] = {}
    if config.bypass_mode:
        # As its trainer does, before the actor is built.
        apply_bypass_mode(
            batch, merged.algorithm.rollout_correction, merged.actor_rollout_ref.actor.policy_loss
        )
        actor = omega_conf_to_dataclass(merged.actor_rollout_ref.actor)
    else:
        batch, logged = compute_rollout_correction_and_add_to_batch(batch, config)
    mask = batch.batch["response_mask"]
    weights = batch.batch.get("rollout_is_weights", None)
    loss, said = get_policy_loss_fn(actor.policy_loss.loss_mode)(
        old_log_prob=batch.batch["old_log_probs"],
        log_prob=tokens.train,
        advantages=tokens.per_token,
        response_mask=mask,
        loss_agg_mode=actor.loss_agg_mode,
        config=actor,
        rollout_is_weights=weights,
    )
    # These two aggregate by response whatever loss_agg_mode says.
    by_response = actor.policy_loss.loss_mode in ("sapo", "geo_mean") or actor.loss_agg_mode.startswith("seq")
    normaliser = of_responses(mask) if by_response else float(mask.sum())
    if config.bypass_mode:
        # Its loss rejects by itself and divides by what is left.
        normaliser = round(
            float(mask.sum()) * (1.0 - said.get("rollout_corr/rollout_rs_masked_fraction", 0.0))
        )
    return Done(coefficients(slope(loss, tokens), tokens, normaliser), weights, mask, logged)


def through_trl(text: str, tokens: Tokens) -> Done:
    """TRL: its parser, its trainer's own sampling with the run's log-probabilities put in, and its loss."""
    from parity import trl_side

    sequences, width = tokens.mask.shape
    lengths = tokens.mask.sum(dim=-1).tolist()
    options = (
        f"--num_generations {sequences} --per_device_train_batch_size {sequences} --max_completion_length {width} "
        # A second pass over the batch, so that TRL keeps pi_old where it corrects nothing.
        "--num_iterations 2 --router_aux_loss_coef 0.0 --disable_tqdm true"
    )
    with tempfile.TemporaryDirectory() as folder:
        config = trl_side.trl_config(text, Path(folder), *options.split())
        sampled = {
            "prompt_ids": [PROMPT] * sequences,
            "completion_ids": [[7] * length for length in lengths],
            "logprobs": [tokens.rollout[i, :length].tolist() for i, length in enumerate(lengths)],
        }
        trainer = trl_side.trainer_of(
            config, rollout=lambda prompts, trainer: sampled, rewards=tokens.advantages.tolist()
        )
        trl_side.read_log_probabilities(trainer, tokens.old, tokens.train)
        batch = trainer._generate_and_score_completions([{"prompt": "1 + 1 ="}] * sequences)
        assert torch.equal(batch["completion_mask"] > 0, tokens.mask)
        batch["advantages"] = tokens.advantages
        gradient = slope(trainer._compute_loss(trainer.model, batch), tokens)
    normaliser: float | torch.Tensor = float(tokens.mask.sum())
    if config.loss_type in ("grpo", "sapo"):
        normaliser = of_responses(tokens.mask)
    elif config.loss_type == "luspo":
        # Our phi of LUSPO has the length in it; at token level TRL's is a clip, summed over the response.
        of_tokens = config.importance_sampling_level == "token"
        normaliser = float(sequences) if of_tokens else of_responses(tokens.mask)
    elif config.loss_type == "dr_grpo":
        normaliser = float(sequences * width)
    return Done(coefficients(gradient, tokens, normaliser), batch.get("importance_sampling_ratio"))


def through_openrlhf(text: str, tokens: Tokens) -> Done:
    """OpenRLHF: train_ppo_ray's parser, and PolicyLoss of what it parsed."""
    from parity.loading import in_openrlhf

    _, loss_of = in_openrlhf(text)
    loss, *_ = loss_of(tokens.train, tokens.old, tokens.per_token, tokens.counts, tokens.rollout)
    normaliser = float(tokens.mask.sum()) if loss_of.token_level_loss else of_responses(tokens.mask)
    return Done(coefficients(slope(loss, tokens), tokens, normaliser))


def through_skyrl(text: str, tokens: Tokens) -> Done:
    """SkyRL: SkyRLTrainConfig, and the policy loss that its algorithm section names, which is a sum."""
    from omegaconf import OmegaConf
    from parity import config_side

    config = config_side.skyrl().SkyRLTrainConfig.from_dict_config(OmegaConf.create(text)).trainer.algorithm
    from skyrl.backends.skyrl_train.utils.ppo_utils import PolicyLossRegistry

    loss, logged = PolicyLossRegistry.get(config.policy_loss_type)(
        tokens.train, tokens.old, tokens.per_token, config, tokens.counts, tokens.rollout
    )
    return Done(coefficients(slope(loss, tokens), tokens, 1.0), logged=logged)


def through_areal(text: str, tokens: Tokens) -> Done:
    """AReaL: GRPOConfig, and the loss of its actor with the arguments that the actor gives it."""
    from parity import config_side
    from parity.loading import in_areal

    actor, _ = in_areal(text)
    names = (
        *(
            "eps_clip",
            "eps_clip_higher",
            "c_clip",
            "rejection_sampling",
            "m2_threshold",
            "use_decoupled_loss",
        ),
        *("importance_sampling_level", "prox_logp_method", "use_sapo_loss", "sapo_tau_pos", "sapo_tau_neg"),
    )
    # Without the decoupled loss the actor puts the recomputed log-probabilities in the place of the engine's.
    assert actor.use_decoupled_loss or actor.recompute_logprob
    behaviour = tokens.rollout if actor.use_decoupled_loss else tokens.old
    inputs = {
        "logprobs": behaviour,
        "prox_logp": tokens.old,
        "advantages": tokens.per_token,
        "loss_mask": tokens.mask,
    }
    entropy = torch.zeros_like(tokens.old)
    given = {name: getattr(actor, name) for name in names}
    loss = config_side.areal_actor().grpo_loss_fn(tokens.train, entropy, inputs, **given)
    gradient = slope(loss, tokens)
    # M2PO's mask is taken before the tokens are counted, and the mask of rejection after.
    count = float(tokens.mask.sum())
    if actor.m2_threshold is not None:
        kept = config_side.areal_actor()._apply_m2po_masking(
            behaviour, tokens.old, tokens.mask, actor.m2_threshold
        )
        count = float(kept.sum())
    return Done(coefficients(gradient, tokens, count))


def through_ms_swift(text: str, tokens: Tokens) -> Done:
    """ms-swift: its parser, and its trainer's loss with what it makes of the arguments."""
    from accelerate import Accelerator
    from parity import config_side
    from parity.loading import in_swift

    keys = yaml.safe_load(text)
    # The classes around GRPOArgumentsMixin declare these.
    around = {"loss_type": keys["loss_type"], "num_iterations": 1, "gradient_accumulation_steps": 1}
    arguments = SimpleNamespace(**vars(in_swift(keys)), **around)
    trainer = config_side.swift_trainer()()
    vars(trainer).update(
        args=arguments,
        accelerator=Accelerator(cpu=True),
        model=torch.nn.Identity(),
        beta=0.0,
        compute_entropy=False,
        chord_sft_iterator=None,
        disable_rollout_importance_sampling=False,
        current_gradient_accumulation_steps=1,
        model_accepts_loss_kwargs=False,
        compute_loss_func=None,
        _has_teacher=False,
        _get_per_token_logps_and_entropies=lambda *_, **__: (tokens.train, None),
    )
    trainer._prepare_algorithm_params()
    batch = SimpleNamespace(
        completion_mask=tokens.mask,
        truncated_mask=torch.zeros(len(tokens.mask), dtype=torch.bool),
        advantages=tokens.per_token,
        old_per_token_logps=tokens.old,
        rollout_per_token_logps=tokens.rollout,
        teacher_per_token_logps=None,
        num_items_in_batch=tokens.mask.sum(),
    )
    loss, _ = trainer._compute_loss_and_metrics(None, {}, batch)
    by_response = trainer.loss_type in ("grpo", "sapo")
    normaliser = of_responses(tokens.mask) if by_response else float(tokens.mask.sum())
    return Done(coefficients(slope(loss, tokens), tokens, normaliser))


FRAMEWORKS: dict[str, Callable[[str, Tokens], Done]] = {
    "verl": through_verl,
    "trl": through_trl,
    "openrlhf": through_openrlhf,
    "skyrl": through_skyrl,
    "areal": through_areal,
    "ms-swift": through_ms_swift,
}

# The numbers of a run directory are float32, so that both types hold them exactly. AReaL's statistics take no other.
DTYPES = {to: torch.float32 if to == "areal" else torch.float64 for to in FRAMEWORKS}


def product(applies: tuple[WeightMethod, ...], tokens: Tokens) -> torch.Tensor:
    """phi as it was predicted, token by token, [sequences, width]."""
    batch = tokens.batch()
    phi = torch.ones_like(tokens.old, dtype=torch.float64)
    for method in applies:
        phi = phi * method.coefficients(batch)
    return phi


def apart(to: str, config: ExportedConfig, run: Run, dtype: torch.dtype | None = None) -> float:
    """By how much kept fraction, mean weight and effective size differ from what was predicted."""
    tokens = run.tokens(dtype or DTYPES[to])
    predicted = Summary.predicted(config.applies, run)
    return predicted.apart(Summary.of(FRAMEWORKS[to](config.text, tokens).phi, tokens))


def rows(run: Run) -> Iterator[str]:
    """Lines of a Markdown table: framework, number of methods, and the largest difference in either type."""
    for to in FRAMEWORKS:
        largest = {torch.float64: 0.0, torch.float32: 0.0}
        count = 0
        for _, config in exported(to, run):
            effect = expected_effect(config.applies, run.responses, resamples=0)
            if effect.ess.value is None:
                continue  # all is dropped, and a loss over nothing has no gradient to compare
            count += 1
            for dtype in largest if DTYPES[to] == torch.float64 else (torch.float32,):
                torch.set_default_dtype(dtype)
                largest[dtype] = max(largest[dtype], apart(to, config, run, dtype))
        wide = f"{largest[torch.float64]:.0e}" if DTYPES[to] == torch.float64 else ""
        yield f"| {to} | {count} | {wide} | {largest[torch.float32]:.0e} |"


def main() -> None:
    """Prints the table for a run directory, or for the run of the tests."""
    with tempfile.TemporaryDirectory() as folder:
        path = sys.argv[1] if len(sys.argv) > 1 else None
        run = planted_run(Path(folder)) if path is None else recorded(RunDirectory.open_existing(Path(path)))
    # Where A is 0 there is no gradient to read phi from.
    signs = np.where(run.responses.advantages == 0, 1.0, run.responses.advantages)
    run = replace(run, responses=replace(run.responses, advantages=signs))
    for line in rows(run):
        sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
