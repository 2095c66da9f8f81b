"""Which correction fits a measured drift."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mismatch_probe.export.measured import Measured, look_up, read
from mismatch_probe.export.thresholds import token_band, token_cap

_DEFAULT_BALANCE = 0.8
# Below this share of the positive signal VESPO is stable and mostly idle.
_ENOUGH_SIGNAL = 0.5
# Share of tokens with a ratio beyond 2 either way, above which truncation alone lets a tail rule.
_HEAVY_TAIL = 1e-3
_VESPO = ("k_pos", "lambda_pos", "k_neg", "lambda_neg")


@dataclass(frozen=True, slots=True)
class Choice:
    """A correction and why.

    Attributes:
        code: Finding code that the reason belongs to.
        method: Its name.
        parameters: Hyperparameters to set.
        reads: What the weights must contain.
        action: What to do, in words.
        because: Why, with the numbers.
        measured: The number that decided, or None where there is nothing to correct.
    """

    code: str
    method: str
    parameters: Mapping[str, float]
    reads: str
    action: str
    because: str
    measured: Measured | None


def choose_correction(result: Mapping[str, Any]) -> Choice:
    """Chooses by what the simulated weights keep.

    Nothing, where the sides agree in every bit. VESPO, where it keeps at least half of the positive signal
    and the balance of signs within the bar, since it is the one that corrects whole responses. IcePop, where
    the tail of single tokens is heavy. Token truncation otherwise.

    Args:
        result: result.json.
    """
    if look_up(result, "token.exact"):
        because = "the two sides agree in every bit on these tokens"
        return Choice("MP901", "ppo_clip", {}, "pi/pi_old", "add no correction for mismatch", because, None)
    mass = read(result, "weights.vespo.positive_mass")
    ratio = read(result, "weights.vespo.mass_ratio")
    code, against = _against_vespo(result, mass, ratio)
    if mass is not None and against is None:
        signs = "" if ratio is None else f", and {ratio.value:.3g} times that where A < 0"
        assumed = look_up(result, "weights.vespo.sign_basis") == "assumed"
        basis = " (no advantages in this run: both signs tried on every response)" if assumed else ""
        because = f"its mean weight is {mass.value:.3g} where A > 0{signs}{basis}"
        action = "correct with VESPO, W = pi / mu"
        return Choice("MP201", "vespo", _vespo_parameters(result), "pi/mu", action, because, mass)
    tail, band = _extreme_rate(result), token_band(result)
    if tail is not None and tail.value > _HEAVY_TAIL and band is not None:
        because = f"{against}, and {100 * tail.value:.2g} % of tokens have a ratio beyond 2 either way"
        action = f"drop tokens with pi_old / mu outside {band.low:g} to {band.high:g} (IcePop)"
        bounds = {"low": band.low, "high": band.high}
        return Choice("MP205", "icepop", bounds, "pi_old/mu", action, because, tail)
    cap = token_cap(result)
    action = "truncate token weights pi_old / mu" + ("" if cap is None else f" at {cap.value:g}")
    because = str(against) + ("" if cap is None else f"; the cap is set by {cap.because}")
    parameters = {} if cap is None else {"cap": cap.value}
    decided = mass or (None if cap is None else cap.measured)
    return Choice(code, "token_tis", parameters, "pi_old/mu", action, because, decided)


def _against_vespo(
    result: Mapping[str, Any], mass: Measured | None, ratio: Measured | None
) -> tuple[str, str | None]:
    """A code and what speaks against VESPO; None in place of the words where nothing does."""
    bar = read(result, "bars.sign_balance")
    balance = _DEFAULT_BALANCE if bar is None else bar.value
    if mass is None:
        return "MP201", "VESPO was not simulated"
    if mass.value < _ENOUGH_SIGNAL:
        return "MP502", f"VESPO would keep {100 * mass.value:.0f} % of the positive signal"
    if ratio is not None and not balance <= ratio.value <= 1 / balance:
        return (
            "MP501",
            f"VESPO would weigh negative advantages {ratio.value:.3g} times as much as positive ones",
        )
    return "MP201", None


def _vespo_parameters(result: Mapping[str, Any]) -> dict[str, float]:
    simulated = look_up(result, "weights.vespo.parameters") or {}
    return {name: float(simulated[name]) for name in _VESPO if isinstance(simulated.get(name), int | float)}


def _extreme_rate(result: Mapping[str, Any]) -> Measured | None:
    for row in look_up(result, "token.extreme") or []:
        if isinstance(row, Mapping) and row.get("tau") == 2:
            found = read(row, "rate")
            return None if found is None else Measured("token.extreme[tau=2].rate", found.value)
    return None
