"""Hyperparameters of the candidates, fitted to the run, and what they were rounded or held to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mismatch_probe.errors import MismatchProbeError
from mismatch_probe.export.measured import Measured
from mismatch_probe.export.thresholds import MAX_SEQUENCE_CAP, band_beyond, cap_beyond, round_down, round_up
from mismatch_probe.simulate.held_out import Check
from mismatch_probe.simulate.responses import Responses
from mismatch_probe.simulate.tuning import ThresholdFit, tune_method, tune_vespo
from mismatch_probe.stats.estimate import Estimate

# Shares that thresholds leave alone: just outside of what healthy sides do to each other.
TOKENS_KEPT = 0.999
TOKENS_KEPT_FEW = 0.99
SEQUENCES_KEPT = 0.99
_ENOUGH_TOKENS = 2000
_MIN_MEAN_WIDTH = 1e-4
# E_Q[W], the mean weight that VESPO's reweighted responses may have: 1 is what sampling on policy has.
BUDGET = 1.0
# Refits cost time with every token; above this many they are made on the responses of a random share of the prompts.
MAX_TOKENS = 500_000
_RESAMPLES = 200


@dataclass(frozen=True, slots=True)
class Fit:
    """How a candidate came to its hyperparameters.

    Attributes:
        target: What they were fitted to, in words.
        level: The share to keep, or the budget.
        thresholds: By hyperparameter as fitted, with 95 % intervals over prompts; before rounding and holding.
        check: The target on prompts that were not fitted, or None.
        because: What set the final values, for the comments of a config.
        num_tokens: Tokens that were fitted to.
    """

    target: str
    level: float
    thresholds: dict[str, Estimate]
    check: Check | None
    because: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Fitted:
    """A method with hyperparameters, or why there are none.

    Attributes:
        method: Its name.
        parameters: For `get_method`.
        fit: How they were found; None for those of the method's authors.
        against: Why it cannot be used on this data, or None.
    """

    method: str
    parameters: Mapping[str, Any]
    fit: Fit | None
    against: str | None = None


def fit_all(result: Mapping[str, Any], responses: Responses, *, seed: int = 0) -> dict[str, Fitted]:
    """Every correction that is put forward, by key, fitted to the run.

    Args:
        result: result.json; its noise floor widens thresholds of tokens.
        responses: The run's responses.
        seed: Of resampling and thinning.
    """
    few = thin(responses, MAX_TOKENS, seed)
    made = {"vespo": Fitted("vespo", {}, None), "vespo_tuned": _vespo(few, seed)}
    for name in ("token_tis", "icepop", "seq_tis", "seq_mis", "geo_rs", "k3_rs"):
        try:
            made[name] = _thresholds(result, name, few, seed)
        except MismatchProbeError as error:
            made[name] = Fitted(name, {}, None, str(error))
    return made


def thin(responses: Responses, max_tokens: int, seed: int) -> Responses:
    """The responses of a random share of the prompts, where there are more tokens than wanted."""
    tokens = int(responses.mask.sum())
    if tokens <= max_tokens or responses.num_prompts < 2:
        return responses
    order = np.random.default_rng(seed).permutation(responses.num_prompts)
    keep = max(1, int(responses.num_prompts * max_tokens / tokens))
    return responses.subset(np.sort(order[:keep]))


def _vespo(responses: Responses, seed: int) -> Fitted:
    try:
        tuned = tune_vespo(responses, budget_pos=BUDGET, budget_neg=BUDGET, resamples=_RESAMPLES, seed=seed)
    except MismatchProbeError as error:
        return Fitted("vespo", {}, None, str(error))
    signs = {"A > 0": tuned.positive, "A < 0": tuned.negative}
    loose = [sign for sign, kernel in signs.items() if not kernel.active]
    fit = Fit(
        target="E_Q[W], the mean weight of the reweighted responses, at most",
        level=BUDGET,
        thresholds={"lambda_pos": tuned.positive.rate, "lambda_neg": tuned.negative.rate},
        check=tuned.positive.check,
        because=f"the smallest rates with E_Q[W] <= {BUDGET:g}",
        num_tokens=_tokens(responses),
    )
    against = None
    if loose:
        against = (
            f"the budget does not bind for {' and '.join(loose)}: the rate is 0 and nothing bounds the kernel"
        )
    return Fitted("vespo", tuned.parameters, fit, against)


def _thresholds(result: Mapping[str, Any], name: str, responses: Responses, seed: int) -> Fitted:
    of_tokens = name in ("token_tis", "icepop")
    enough = _tokens(responses) >= _ENOUGH_TOKENS
    kept = (TOKENS_KEPT if enough else TOKENS_KEPT_FEW) if of_tokens else SEQUENCES_KEPT
    if name == "icepop":
        kept = 1.0 - 2.0 * (1.0 - kept)
    tuned = tune_method(name, responses, kept=kept, resamples=_RESAMPLES, seed=seed)
    parameters, because = _settle(result, name, tuned)
    fit = Fit(
        target="share of tokens left alone" if of_tokens else "share of tokens in responses left alone",
        level=kept,
        thresholds=tuned.thresholds,
        check=tuned.check,
        because=because,
        num_tokens=_tokens(responses),
    )
    return Fitted(name, parameters, fit)


def _settle(result: Mapping[str, Any], name: str, tuned: ThresholdFit) -> tuple[dict[str, float], str]:
    """Final values: outside of the noise floor, no band narrower than rounding, none that lets single weights rule."""
    value = {key: float(estimate.value or 0.0) for key, estimate in tuned.thresholds.items()}
    said = f"the fit that leaves {100 * tuned.level:.4g} % of the tokens alone: " + ", ".join(
        _with_interval(key, estimate) for key, estimate in tuned.thresholds.items()
    )
    log = {
        key: Measured(f"recommendation.candidates.{name}.fit.thresholds.{key}", math.log(number))
        for key, number in value.items()
        if number > 0
    }
    if name == "token_tis":
        fitted = cap_beyond(result, log["cap"])
        return {"cap": fitted.value}, _also(said, fitted.because, log["cap"])
    if name == "icepop":
        band = band_beyond(result, log["low"], log["high"])
        return {"low": band.low, "high": band.high}, said
    if name == "k3_rs":
        return {"bound": round_up(max(value["bound"], 1e-12))}, said
    if name == "geo_rs":
        centre = (log["low"].value + log["high"].value) / 2.0
        half = max((log["high"].value - log["low"].value) / 2.0, _MIN_MEAN_WIDTH)
        low, high = round_down(math.exp(centre - half), 6), round_up(math.exp(centre + half), 6)
        return {"low": low, "high": high}, said
    held = f", held within 1/{MAX_SEQUENCE_CAP:g} and {MAX_SEQUENCE_CAP:g}, beyond which single responses rule a batch"
    if name == "seq_tis":
        cap = min(max(round_up(value["cap"]), round_up(1.05)), MAX_SEQUENCE_CAP)
        return {"cap": cap}, said + (held if value["cap"] > MAX_SEQUENCE_CAP else "")
    low = max(min(round_down(value["low"]), round_down(1 / 1.05)), 1.0 / MAX_SEQUENCE_CAP)
    high = min(max(round_up(value["high"]), round_up(1.05)), MAX_SEQUENCE_CAP)
    outside = value["low"] < 1.0 / MAX_SEQUENCE_CAP or value["high"] > MAX_SEQUENCE_CAP
    return {"low": low, "high": high}, said + (held if outside else "")


def _also(said: str, because: str, fitted: Measured) -> str:
    """What a threshold was widened to, where it was."""
    return said if because.startswith(fitted.path) and "widened" not in because else f"{said}; {because}"


def _with_interval(key: str, estimate: Estimate) -> str:
    text = f"{key} {estimate.value:.4g}"
    if estimate.ci_low is None or estimate.ci_high is None:
        return text
    return f"{text} [{estimate.ci_low:.4g}, {estimate.ci_high:.4g}]"


def _tokens(responses: Responses) -> int:
    return int(responses.mask.sum()) // (2 if responses.assumed else 1)
