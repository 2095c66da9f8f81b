"""An exported text in the hands of OpenRLHF's, SkyRL's, AReaL's and ms-swift's own parsers and config classes."""

from __future__ import annotations

from typing import Any

from core.export.reading import words
from parity import config_side

# What belongs to a machine, and what has no default.
AREAL = {
    "experiment_name": "e",
    "trial_name": "t",
    "actor": {"backend": "fsdp:d1", "experiment_name": "e", "trial_name": "t", "path": "model"},
}
SKYRL = ("trainer.logger=console",)


def in_openrlhf(text: str) -> Any:
    """Their parser, and their loss of what it parsed, which refuses combinations."""
    arguments = config_side.openrlhf_parser().parse_args(words(text))
    parsed = vars(arguments)
    threshold = parsed["algo.advantage.is_correction_threshold"]
    low_high = parsed["actor.eps_clip_low_high"] or (0.2, 0.2)
    loss = config_side.openrlhf_loss()(
        *low_high,
        dual_clip=parsed["actor.dual_clip"],
        policy_loss_type=parsed["actor.policy_loss_type"],
        is_correction_level=parsed["algo.advantage.is_correction_level"],
        is_correction_mode=parsed["algo.advantage.is_correction_mode"],
        is_correction_gating=parsed["algo.advantage.is_correction_gating"],
        is_correction_threshold=[0.0, *threshold] if len(threshold) == 1 else threshold,
    )
    return parsed, loss


def in_skyrl(overrides: list[str]) -> Any:
    config = config_side.skyrl().SkyRLTrainConfig.from_cli_overrides([*overrides, *SKYRL])
    from skyrl.train.utils.utils import validate_cfg

    validate_cfg(config)
    return config


def overrides_of(text: str) -> list[str]:
    lines = text.split("# The same on the command line:\n")[1].splitlines()
    return words("MISMATCH_ARGS=(\n" + "\n".join(line.removeprefix("#") for line in lines) + "\n)\n")


def in_areal(text: str) -> Any:
    """Their merge with the defaults, and the objects that check themselves."""
    from omegaconf import OmegaConf

    areal = config_side.areal()
    merged = areal.to_structured_cfg(
        OmegaConf.merge(OmegaConf.create(AREAL), OmegaConf.create(text)), areal.GRPOConfig
    )
    return OmegaConf.to_object(merged.actor), OmegaConf.to_object(merged.gconfig)


def in_swift(keys: dict[str, Any]) -> Any:
    """As swift's command line does with a YAML file, less the keys of the class that holds the model."""
    from transformers import HfArgumentParser

    own = config_side.swift_own_fields()
    line = [word for key, value in keys.items() if key not in own for word in (f"--{key}", str(value))]
    (arguments,) = HfArgumentParser(config_side.swift_arguments()).parse_args_into_dataclasses(line)
    return arguments
