"""The corrections as each framework codes and ships them: one name, different weights.

Defaults are of the versions named in `FRAMEWORKS`; check the one that runs before relying on a number.
"""

from __future__ import annotations

import difflib
from types import MappingProxyType
from typing import Any

from mismatch_probe.errors import ConfigError
from mismatch_probe.weights.method import WeightMethod
from mismatch_probe.weights.registry import get_method, methods

FRAMEWORKS = MappingProxyType(
    {
        "areal": "AReaL cbff54d",
        "miles": "miles 31f1ca9",
        "ms_swift": "ms-swift 3602360",
        "nemo_rl": "NeMo-RL 7ea279a",
        "openrlhf": "OpenRLHF 0.11.2",
        "prime_rl": "prime-rl 559b447",
        "roll": "ROLL 8eb27cc",
        "skyrl": "SkyRL a956457",
        "slime": "slime 624b824",
        "slime_mis": "mis.yaml of slime 624b824 and miles 31f1ca9",
        "tinker": "tinker-cookbook 9dfcc3a",
        "trl": "TRL 1.16.0",
        "verl": "verl 0.9.1",
        "vespo": "FloyedShen/VESPO aa1f304",
    }
)

Parameters = dict[str, float | str | None]

# The clip that a framework puts under its corrections. verl's is always a dual clip.
_CLAMPED: Parameters = {"clamp": 20.0}
_VERL_CLIP: Parameters = {"dual_c": 3.0, "clamp": 20.0}
_FLAT: Parameters = {"eps_low": 0.2, "eps_high": 0.2}
_GSPO: Parameters = {"variant": "paper", **_FLAT}
_SLIME: dict[str, Parameters] = {
    "dual_clip": {},
    "gspo": _GSPO,
    "icepop": {"low": 0.0, "high": 2.0},
    # compares with the recomputed pi_old; with rollout log-probabilities this delta drops nearly everything negative
    "opsm": {"delta": 1e-4, "drift": "train/old"},
    "ppo_clip": {},
    "token_tis": {"cap": 2.0, "floor": 0.0},
}

# A dual clip is off in AReaL, slime, miles, NeMo-RL and OpenRLHF until c is set.
_AS_CODED: dict[str, dict[str, Parameters]] = {
    "areal": {
        # required to be set; these are the values it recommends
        "cispo": {"eps_low": 1.0, "eps_high": 4.0},
        "dual_clip": {},
        # a ratio at sequence level is the geometric mean, as the statistic and as the weight
        "geo_rs": {"low": 0.0, "high": 5.0, "weighting": "mean"},
        "gspo": _GSPO,
        "icepop": {"low": 0.0, "high": 5.0},
        "k3_rs": {"variant": "areal", "bound": 5.0, "weighting": "token"},
        "kpop": {"variant": "areal", "bound": 2.0},
        "m2po": {"variant": "areal"},
        "ppo_clip": {},
        "sapo": {},
        "seq_tis": {"scope": "mean", "cap": 5.0},
        "token_tis": {"cap": 5.0},
    },
    "miles": _SLIME,
    "ms_swift": {
        "cispo": {"variant": "absolute", "cap": 0.2},
        "dapo": _FLAT,
        # "sequence" is the geometric mean; sequence_mask keeps the token ratios of what survives
        "geo_rs": {"low": 0.0, "high": 2.0, "weighting": "token"},
        "gspo": _GSPO,
        "icepop": {"low": 0.0, "high": 2.0},
        "opsm": {},
        "ppo_clip": {},
        "sapo": {},
        "seq_tis": {"scope": "mean", "cap": 2.0},
        "token_tis": {"cap": 2.0},
        "two_sided": _FLAT,
    },
    "nemo_rl": {
        "cispo": _FLAT,
        "dual_clip": {},
        "geo_rs": {"low": 0.999, "high": 1.002, "weighting": "token"},
        "gspo": _GSPO,
        "icepop": {"low": 0.5, "high": 5.0},
        "ppo_clip": {},
        # nothing is truncated until a ratio is set
        "token_tis": {"cap": None},
    },
    "openrlhf": {
        "dual_clip": _CLAMPED,
        "geo_rs": {"low": 0.5, "high": 5.0, "weighting": "token", **_CLAMPED},
        "gspo": _GSPO,
        "icepop": {"low": 0.5, "high": 5.0, **_CLAMPED},
        "kpop": {"variant": "openrlhf", **_CLAMPED},
        "ppo_clip": _CLAMPED,
        "token_tis": {"floor": 0.5, "cap": 5.0, **_CLAMPED},
    },
    "prime_rl": {"ipo": {}, "prime_dppo": {}},
    "roll": {
        "cispo": {"eps_low": 0.1, "eps_high": 0.1},
        "dual_clip": {"c": 1.4},
        "geo_rs": {"low": 0.8, "high": 1.2},
        "icepop": {"low": 0.8, "high": 1.2, "weighting": "none"},
        "ppo_clip": {},
        "reinforce": {},
        "seq_mis": {"low": 0.8, "high": 1.2, "weighting": "none"},
        "seq_tis": {"scope": "sequence", "cap": 1.2},
        "token_tis": {"cap": 1.2},
        "topr": {"scope": "token", "reads": "train/old"},
    },
    "skyrl": {
        "cispo": {"eps_low": 1.0, "eps_high": 4.0},
        "dppo_kl": {"delta": 0.2, "variant": "verl"},
        "dppo_tv": {"delta": 0.2},
        "dual_clip": {"c": 3.0, **_CLAMPED},
        "geo_rs": {"low": 0.99, "high": 1.01, **_CLAMPED},
        "gspo": {"variant": "verl", **_FLAT},
        "icepop": {"low": 0.5, "high": 2.0, "weighting": "none", **_CLAMPED},
        "ppo_clip": _CLAMPED,
        "sapo": _CLAMPED,
        "seq_mis": {"low": 0.5, "high": 2.0, "weighting": "none", **_CLAMPED},
        "seq_tis": {"cap": 5.0, **_CLAMPED},
        "token_tis": {"cap": 2.0, **_CLAMPED},
    },
    "slime": {"cispo": _FLAT, **_SLIME},
    "slime_mis": {
        "token_tis": {"cap": 2.0, "keep_low": 0.5, "keep_high": 2.0, "veto": 1e-4, "normalise": "mean"},
    },
    "tinker": {"cispo": {"eps_low": 1.0, "eps_high": 3.0}, "ppo_clip": {}, "token_is": {}},
    "trl": {
        # epsilon_high is the cap itself; unset it falls back to epsilon, and every token weighs at most 0.2
        "cispo": {"variant": "absolute", "cap": 0.2},
        "dapo": _FLAT,
        "gspo": _GSPO,
        "icepop": {"low": 0.0, "high": 3.0},
        "luspo": _GSPO,
        "opsm": {},
        "ppo_clip": {},
        "sapo": {},
        "seq_mis": {"low": 0.0, "high": 3.0},
        "seq_tis": {"cap": 3.0},
        "token_tis": {"cap": 3.0},
        "two_sided": _FLAT,
        "vespo": {"variant": "trl", "is_mode": "token_truncate", "is_max": 3.0},
    },
    "verl": {
        "cispo": _FLAT,
        # outside of bypass mode the anchor is pi_old, recomputed by the trainer
        "dppo_kl": {"delta": 0.2, "cap": 3.0, "variant": "verl", "reads": "train/old"},
        "dppo_tv": {"delta": 0.2, "cap": 3.0, "reads": "train/old"},
        # its policy loss "vanilla"; there is no clip without c
        "dual_clip": {"c": 3.0, **_CLAMPED},
        # the K1 statistic is -log ratio: its bounds act on the inverse
        "geo_rs": {"variant": "verl", "low": 0.999, "high": 1.001, **_VERL_CLIP},
        "gmpo": _FLAT,
        "gspo": {"variant": "verl", **_FLAT},
        "icepop": {"low": 0.5, "high": 5.0, **_VERL_CLIP},
        "k3_rs": {"variant": "verl", "bound": 0.01, **_VERL_CLIP},
        "reinforce": {},
        "sapo": _CLAMPED,
        "seq_mis": {"variant": "verl", "low": 0.5, "high": 2.0, "cap": 2.0, **_VERL_CLIP},
        "seq_tis": {"cap": 2.0, **_VERL_CLIP},
        "token_tis": {"cap": 2.0, **_VERL_CLIP},
    },
    # the scripts recompute pi_old and pass no weights of the mismatch; the fully-async one reads train/rollout
    "vespo": {"vespo": {"variant": "repo", "reads": "train/old"}},
}


def framework_methods(framework: str) -> tuple[str, ...]:
    """The corrections known for a framework, sorted.

    Raises:
        ConfigError: Unknown framework; the hint names the nearest.
    """
    return tuple(sorted(_of(framework)))


def framework_parameters(framework: str) -> dict[str, Parameters]:
    """By method that a framework has: the hyperparameters that make it what is coded there by default.

    Raises:
        ConfigError: Unknown framework; the hint names the nearest.
    """
    return {name: dict(parameters) for name, parameters in sorted(_of(framework).items())}


def get_method_as_coded(framework: str, name: str, **changes: Any) -> WeightMethod:
    """A correction with the variant and the defaults of a framework.

    Args:
        framework: One of `FRAMEWORKS`.
        name: One of `framework_methods(framework)`.
        **changes: Hyperparameters other than the framework's defaults.

    Raises:
        ConfigError: Unknown framework, method or hyperparameter, or a method that the framework does not
            have.
    """
    known = _of(framework)
    methods.get(name)
    if name not in known:
        raise ConfigError(f"{framework} has no {name!r}", hint=f"it has {', '.join(sorted(known))}")
    return get_method(name, **{**known[name], **changes})


def _of(framework: str) -> dict[str, Parameters]:
    if framework not in _AS_CODED:
        nearest = difflib.get_close_matches(framework, _AS_CODED, n=1)
        known = ", ".join(_AS_CODED)
        raise ConfigError(
            f"unknown framework {framework!r}",
            hint=f"did you mean {nearest[0]!r}?" if nearest else f"known: {known}",
        )
    return _AS_CODED[framework]
