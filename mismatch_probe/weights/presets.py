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
        "areal": "AReaL 1.0.4",
        "ms_swift": "ms-swift 4.4.3",
        "nemo_rl": "NeMo-RL 7ea279a",
        "openrlhf": "OpenRLHF 0.11.2",
        "prime_rl": "prime-rl 559b447",
        "roll": "ROLL 8eb27cc",
        "skyrl": "SkyRL a956457",
        "slime": "slime 624b824",
        "trl": "TRL 1.16.0",
        "verl": "verl 0.9.1",
        "vespo": "FloyedShen/VESPO aa1f304",
    }
)

_AS_CODED: dict[str, dict[str, dict[str, Any]]] = {
    "areal": {
        # ratio at sequence level is the geometric mean, as the statistic and as the weight
        "icepop": {"low": 0.0, "high": 5.0},
        "k3_rs": {"variant": "areal"},
        "m2po": {},
        "seq_tis": {"scope": "mean", "cap": 5.0},
    },
    "ms_swift": {
        # "sequence" is the geometric mean; sequence_mask keeps the token ratios of what survives
        "geo_rs": {"low": 0.0, "high": 2.0, "weighting": "token"},
        "icepop": {"low": 0.0, "high": 2.0},
        "seq_tis": {"scope": "mean", "cap": 2.0},
        "token_tis": {"cap": 2.0},
    },
    "nemo_rl": {
        "geo_rs": {"low": 0.999, "high": 1.002, "weighting": "token"},
        "icepop": {"low": 0.5, "high": 5.0},
    },
    "openrlhf": {
        "geo_rs": {"low": 0.5, "high": 5.0, "weighting": "token"},
        "icepop": {"low": 0.5, "high": 5.0},
        "token_tis": {"floor": 0.5, "cap": 5.0},
    },
    "prime_rl": {"ipo": {}, "prime_dppo": {}},
    "roll": {
        "seq_tis": {"scope": "sequence", "cap": 1.2},
        "token_tis": {"cap": 1.2},
        "topr": {"scope": "token"},
    },
    "skyrl": {
        "geo_rs": {"low": 0.99, "high": 1.01},
        "seq_mis": {"low": 0.5, "high": 2.0, "weighting": "none"},
        "seq_tis": {"cap": 5.0},
        "token_tis": {"cap": 2.0},
    },
    "slime": {
        # its OPSM default drops nearly every negative response at the mismatch of a BF16 rollout
        "icepop": {"low": 0.0, "high": 2.0},
        "opsm": {"delta": 1e-4},
        "token_tis": {"cap": 2.0, "floor": 0.0},
    },
    "trl": {
        # epsilon_high is the cap itself; unset it falls back to epsilon, and every token weighs at most 0.2
        "cispo": {"variant": "absolute", "cap": 0.2},
        "dapo": {"eps_low": 0.2, "eps_high": 0.2},
        "gspo": {"eps_low": 0.2, "eps_high": 0.2},
        "icepop": {"low": 0.0, "high": 3.0},
        "sapo": {},
        "seq_mis": {"low": 0.0, "high": 3.0},
        "seq_tis": {"cap": 3.0},
        "token_tis": {"cap": 3.0},
        "vespo": {"variant": "trl", "is_mode": "token_truncate", "is_max": 3.0},
    },
    "verl": {
        # the K1 statistic is -log ratio: its bounds act on the inverse
        "cispo": {"eps_low": 0.2, "eps_high": 0.2},
        "dppo_kl": {"delta": 0.2, "cap": 3.0},
        "dppo_tv": {"delta": 0.2, "cap": 3.0},
        "dual_clip": {},
        "geo_rs": {"variant": "verl", "low": 0.999, "high": 1.001},
        "gmpo": {"eps_low": 0.2, "eps_high": 0.2},
        "gspo": {"eps_low": 0.2, "eps_high": 0.2},
        "icepop": {"low": 0.5, "high": 5.0},
        "k3_rs": {"bound": 0.01},
        "sapo": {},
        "seq_mis": {"low": 0.5, "high": 2.0},
        "seq_tis": {"cap": 2.0},
        "token_tis": {"cap": 2.0},
    },
    "vespo": {"vespo": {"variant": "repo"}},
}


def framework_methods(framework: str) -> tuple[str, ...]:
    """The corrections known for a framework, sorted.

    Raises:
        ConfigError: Unknown framework; the hint names the nearest.
    """
    return tuple(sorted(_of(framework)))


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


def _of(framework: str) -> dict[str, dict[str, Any]]:
    if framework not in _AS_CODED:
        nearest = difflib.get_close_matches(framework, _AS_CODED, n=1)
        known = ", ".join(_AS_CODED)
        raise ConfigError(
            f"unknown framework {framework!r}",
            hint=f"did you mean {nearest[0]!r}?" if nearest else f"known: {known}",
        )
    return _AS_CODED[framework]
