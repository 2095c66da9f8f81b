"""VESPO with one of its choices undone: length-normalised weights, and one pair of hyperparameters for both signs.

Both are the paper's own ablations (arXiv 2602.10693 v3): log W / sqrt(T) and
log W / T in place of log W; (2, 3) or (3, 2) for both signs in place of (2, 3) for A > 0 and (3, 2) for A < 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mismatch_probe.weights import WeightMethod, get_method

Question = Literal["as deployed", "length normalisation", "one pair for both signs"]


@dataclass(frozen=True, slots=True)
class Variant:
    """One variant of VESPO.

    Attributes:
        title: What it is.
        question: Which choice it undoes.
        method: The correction.
    """

    title: str
    question: Question
    method: WeightMethod


def variants() -> dict[str, Variant]:
    """VESPO as deployed and its ablations, by key."""
    positive, negative = (2.0, 3.0), (3.0, 2.0)
    return {
        "vespo": Variant("VESPO: log W, (2, 3) and (3, 2)", "as deployed", get_method("vespo")),
        "vespo_sqrt": Variant("log W / sqrt(T)", "length normalisation", get_method("vespo_sqrt")),
        "vespo_lin": Variant("log W / T", "length normalisation", get_method("vespo_lin")),
        "vespo_both_2_3": Variant("(2, 3) for both signs", "one pair for both signs", _same(*positive)),
        "vespo_both_3_2": Variant("(3, 2) for both signs", "one pair for both signs", _same(*negative)),
    }


def _same(power: float, rate: float) -> WeightMethod:
    return get_method("vespo", k_pos=power, lambda_pos=rate, k_neg=power, lambda_neg=rate)
