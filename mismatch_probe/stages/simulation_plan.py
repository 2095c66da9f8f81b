"""What `simulate` does: which corrections, along which hyperparameters, at which lengths and stalenesses."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mismatch_probe.errors import ConfigError
from mismatch_probe.simulate.extrapolate import MAX_STRETCH, MIN_SEQUENCES, STALENESS
from mismatch_probe.simulate.sweep import combinations

if TYPE_CHECKING:
    from mismatch_probe.weights import WeightMethod

MAIN_METHODS = ("vespo", "token_tis", "seq_tis", "icepop", "geo_rs", "gspo", "cispo", "ppo_clip")
LENGTH_STEPS = (0.25, 0.5, 1.0, 2.0, 4.0, float(MAX_STRETCH))
# Longer made-up responses than this are only tried where they are asked for or were measured.
MOST_TOKENS = 32_768
MOST_SETTINGS = 400
_NAME = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """A method and the values of its hyperparameters to try in all combinations."""

    method: str
    grid: dict[str, tuple[Any, ...]]


DEFAULT_SWEEPS = (
    SweepPlan("vespo", {"k_pos": (1.0, 1.5, 2.0, 3.0, 4.0), "lambda_pos": (1.0, 1.5, 2.0, 3.0, 4.0)}),
    SweepPlan("vespo", {"k_neg": (1.0, 1.5, 2.0, 3.0, 4.0), "lambda_neg": (1.0, 1.5, 2.0, 3.0, 4.0)}),
    SweepPlan(
        "gspo", {"eps_low": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2), "eps_high": (1e-4, 4e-4, 1e-3, 3e-3, 1e-2)}
    ),
    SweepPlan("token_tis", {"cap": (1.05, 1.2, 1.5, 2.0, 3.0, 5.0, 8.0)}),
    SweepPlan("icepop", {"low": (0.2, 0.4, 0.5, 0.7, 0.9), "high": (1.1, 1.5, 2.0, 3.0, 5.0)}),
)


@dataclass(frozen=True, slots=True)
class SimulationPlan:
    """What to simulate.

    Attributes:
        methods: Corrections to extrapolate.
        sweeps: Hyperparameters to vary.
        lengths: Lengths of response to try, tokens; None takes multiples of the longest one measured.
        staleness: N to try.
        sequences: Responses to make up for a length and a staleness.
        tokens: Of these together, roughly.
        sweep_tokens: Tokens that sweeps are worked out on; of a larger run, a random share of its prompts.
        resamples: Bootstrap resamples of sweeps and ablations.
        seed: Of all draws.
        checkpoints: (steps or None, folder) of later checkpoints to measure staleness from.
    """

    methods: tuple[str, ...] = MAIN_METHODS
    sweeps: tuple[SweepPlan, ...] = DEFAULT_SWEEPS
    lengths: tuple[int, ...] | None = None
    staleness: tuple[int, ...] = STALENESS
    sequences: int = 1024
    tokens: int = 200_000
    sweep_tokens: int = 1_000_000
    resamples: int = 200
    seed: int = 0
    checkpoints: tuple[tuple[float | None, Path], ...] = field(default=())

    def readings(self) -> dict[str, tuple[str, WeightMethod]]:
        """Label and method by key of what is extrapolated.

        A method that reads pi / pi_old is there twice: as it is where the trainer recomputes pi_old, and reading
        pi / mu, as where the trainer goes without ("gspo@pi/mu"; verl's bypass mode).
        """
        from mismatch_probe.weights import get_method

        made: dict[str, tuple[str, WeightMethod]] = {}
        for name in self.methods:
            method = get_method(name)
            made[name] = (method.label, method)
            settable = dataclasses.is_dataclass(method) and any(
                item.name == "reads" for item in dataclasses.fields(method)
            )
            if settable and method.reads == "train/old":
                made[name] = (f"{method.label} on pi/pi_old", method)
                other = get_method(name, reads="train/rollout")
                made[f"{name}@pi/mu"] = (f"{method.label} on pi/mu", other)
        return made

    def lengths_for(self, longest: int) -> tuple[int, ...]:
        """The lengths to try on a run whose longest response has so many tokens, ascending."""
        if self.lengths is not None:
            return tuple(sorted(set(self.lengths)))
        tried = {max(1, round(longest * step)) for step in LENGTH_STEPS}
        return tuple(sorted(length for length in tried if length <= max(longest, MOST_TOKENS)))


def make_plan(
    *,
    methods: Sequence[str] = (),
    sweeps: Sequence[str] = (),
    lengths: str | None = None,
    staleness: str | None = None,
    sequences: int | None = None,
    checkpoints: Sequence[str] = (),
) -> SimulationPlan:
    """The plan that options ask for, checked; what is not given has its default.

    Args:
        methods: Corrections to extrapolate; default sweeps of others are left out.
        sweeps: Each METHOD:KEY=V1,V2;KEY=..., see `parse_sweep`.
        lengths: Whole numbers with commas.
        staleness: Whole numbers with commas.
        sequences: Responses to make up for each length and staleness, however long they are; None takes up to
            1024, fewer of long ones.
        checkpoints: Each [STEPS=]FOLDER.

    Raises:
        ConfigError: Anything that cannot be read or does not exist.
    """
    from mismatch_probe.weights import get_method

    for name in methods:
        get_method(name)
    chosen: tuple[SweepPlan, ...] = DEFAULT_SWEEPS
    if methods:
        chosen = tuple(item for item in DEFAULT_SWEEPS if item.method in methods)
    if sweeps:
        chosen = tuple(parse_sweep(text) for text in sweeps)
    if sequences is not None and sequences < MIN_SEQUENCES:
        raise ConfigError(
            f"{sequences} made-up responses say nothing", hint=f"give --sequences {MIN_SEQUENCES} or more"
        )
    made_up = {} if sequences is None else {"sequences": sequences, "tokens": sys.maxsize}
    return SimulationPlan(
        methods=tuple(dict.fromkeys(methods)) or MAIN_METHODS,
        sweeps=chosen,
        lengths=None if lengths is None else _whole_numbers(lengths, "--lengths"),
        staleness=STALENESS if staleness is None else _whole_numbers(staleness, "--staleness"),
        checkpoints=tuple(parse_checkpoint(text) for text in checkpoints),
        **made_up,
    )


def parse_sweep(text: str) -> SweepPlan:
    """Reads METHOD:KEY=V1,V2,V3;KEY2=V1,... and tries that every combination is a method.

    Args:
        text: Such as "vespo:k_pos=1,2,3;lambda_pos=2,3,4"; values are numbers or words.

    Raises:
        ConfigError: It cannot be read, names something unknown, or has too many combinations.
    """
    hint = "write METHOD:KEY=V1,V2;KEY2=V1,V2, such as vespo:k_pos=1,2,3;lambda_pos=2,3,4"
    name, colon, rest = text.partition(":")
    grid: dict[str, tuple[Any, ...]] = {}
    for piece in rest.split(";"):
        key, equals, values = (part.strip() for part in piece.partition("="))
        if not colon or not equals or not _NAME.fullmatch(key) or not values or key in grid:
            raise ConfigError(f"cannot read the sweep {text!r}", hint=hint)
        grid[key] = tuple(_value(value.strip()) for value in values.split(","))
        if len(set(grid[key])) < len(grid[key]) or "" in grid[key]:
            raise ConfigError(f"the sweep {text!r} has an empty value, or one twice, for {key}", hint=hint)
    settings = 1
    for tried in grid.values():
        settings *= len(tried)
    if settings > MOST_SETTINGS:
        raise ConfigError(
            f"the sweep {text!r} has {settings} combinations, more than {MOST_SETTINGS}",
            hint="give fewer values",
        )
    combinations(name.strip(), grid)
    return SweepPlan(name.strip(), grid)


def parse_checkpoint(text: str) -> tuple[float | None, Path]:
    """Reads [STEPS=]FOLDER: 8=out/last, or out/step-8 where the name of the folder ends with the steps.

    Raises:
        ConfigError: The folder does not exist.
    """
    steps: float | None = None
    before, equals, after = text.partition("=")
    if equals and re.fullmatch(r"\d+(\.\d+)?", before.strip()):
        steps, text = float(before), after
    path = Path(text)
    if not path.is_dir():
        raise ConfigError(f"{path} is no folder with a checkpoint", hint="give [STEPS=]FOLDER")
    return steps, path


def _whole_numbers(text: str, option: str) -> tuple[int, ...]:
    numbers = []
    for piece in text.split(","):
        if not re.fullmatch(r"\s*\d{1,9}\s*", piece) or int(piece) < 1:
            raise ConfigError(
                f"{option} takes whole numbers from 1, with commas, not {text!r}", hint=f"{option} 1024,8192"
            )
        numbers.append(int(piece))
    return tuple(sorted(set(numbers)))


def _value(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
