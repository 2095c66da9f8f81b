"""Which pairs of legs are compared, and what each pair says."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Role = Literal["total", "chain", "replay", "reference", "floor", "control"]


@dataclass(frozen=True, slots=True)
class LegStep:
    """A step from one leg to another.

    Attributes:
        start: The leg it starts from.
        end: The leg it ends at; the step's log ratio is end minus start.
        meaning: What a difference means.
        role: "chain" steps add up exactly, token by token, to the "total"; the others stand beside them.
    """

    start: str
    end: str
    meaning: str
    role: Role


_TOTAL = LegStep("rollout/decode", "train/forward", "total drift: what training sees", "total")
_BESIDE = (
    LegStep(
        "rollout/decode", "train/replay", "what is left when the trainer uses the rollout's experts", "replay"
    ),
    LegStep("train/forward", "train/replay", "what the trainer's own choice of experts does", "replay"),
    LegStep("train/forward", "train/reference", "what rounding does to the trainer", "reference"),
    LegStep("rollout/decode", "train/reference", "the rollout engine against float32", "reference"),
    LegStep(
        "train/forward", "train/repeat", "noise floor: the trainer against itself, batched otherwise", "floor"
    ),
    LegStep("rollout/decode", "rollout/forced", "control: the same ids forced through decode", "control"),
)
REFIT_STEP = LegStep(
    "rollout/forced", "rollout/refit", "weight sync: the same checkpoint loaded again, must be 0", "control"
)
"""Not between legs of the whole run: both its ends read a sample, see `mismatch_probe.stages.weight_sync`."""
_CHAIN_MEANING = {
    ("rollout/decode", "rollout/prefill"): "decode vs prefill: the rollout engine against itself",
    ("rollout/prefill", "train/forward"): "prefill vs forward: engine against trainer",
    ("rollout/decode", "train/forward"): "engine against trainer",
}


def leg_steps(legs: Sequence[str]) -> list[LegStep]:
    """The steps that can be taken between the legs that were read, the total first, then the chain, then the rest.

    Args:
        legs: Names of the legs of a run.
    """
    present = set(legs)
    steps = [_TOTAL] if {_TOTAL.start, _TOTAL.end} <= present else []
    chain = [leg for leg in ("rollout/decode", "rollout/prefill", "train/forward") if leg in present]
    steps += [
        LegStep(start, end, _CHAIN_MEANING[start, end], "chain") for start, end in itertools.pairwise(chain)
    ]
    return steps + [step for step in _BESIDE if {step.start, step.end} <= present]
