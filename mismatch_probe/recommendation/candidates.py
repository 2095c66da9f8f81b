"""The corrections that are put forward, and what each does to the responses of this run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import MismatchProbeError
from mismatch_probe.export.measured import look_up, read
from mismatch_probe.recommendation.fits import Fit, Fitted, fit_all
from mismatch_probe.simulate.cells import Cells
from mismatch_probe.simulate.intervals import PromptSums, kish, quotient
from mismatch_probe.simulate.responses import Responses
from mismatch_probe.simulate.sums import Ground, SequenceSums, ground_of, sum_weights
from mismatch_probe.stats.estimate import Estimate
from mismatch_probe.weights.method import WeightMethod

FloatArray = npt.NDArray[np.float64]

BASELINE = "none"
# Below this share of the positive signal a correction is stable and mostly idle.
ENOUGH_SIGNAL = 0.5
_DEFAULT_BALANCE = 0.8
_DEFAULT_ESS = 0.3
# The most off-policy responses: those whose |log W| is in the upper tenth.
_FAR = 0.9


@dataclass(frozen=True, slots=True)
class Candidate:
    """A correction with hyperparameters, on this run.

    Attributes:
        method: Its name.
        label: How a report calls it.
        parameters: Its hyperparameters.
        reads: Which ratio it weighs by: "pi/mu", "pi_old/mu" on top of a clipped pi/pi_old, "pi/pi_old", or "nothing".
        second_forward: Whether the trainer has to recompute pi_old, another forward pass of every batch.
        fit: How the hyperparameters were found, or None for those of its authors.
        kept_fraction: Share of tokens kept.
        mean_weight: Mean phi over its entries.
        ess: Kish effective size of phi over its entries, a share.
        positive_mass: Mean phi where A > 0.
        negative_mass: Mean phi where A < 0.
        mass_ratio: The latter over the former.
        influence: Share of the update that rests on the tenth of the responses that the two policies disagree most
            about: sum |A| phi over them, over that of all. Responses level at the edge of the tenth share its places.
        signal: Share of the signal kept: mean of |A| min(phi, 1) over the mean of |A|; what is weighed above 1 adds nothing.
        effective_responses: Kish effective size over responses of their mean phi, a share of the responses generated.
        against: Why it is not fit for this data; empty where it is.
    """

    method: str
    label: str
    parameters: Mapping[str, Any]
    reads: str
    second_forward: bool
    fit: Fit | None
    kept_fraction: Estimate | None
    mean_weight: Estimate | None
    ess: Estimate | None
    positive_mass: Estimate | None
    negative_mass: Estimate | None
    mass_ratio: Estimate | None
    influence: Estimate | None
    signal: Estimate | None
    effective_responses: Estimate | None
    against: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """All of them with what comparing two of them needs.

    Attributes:
        by_key: In the order in which they are put forward, the baseline first.
        columns: By key: sums by prompt of what the goals compare, float64 [prompts].
    """

    by_key: dict[str, Candidate]
    columns: dict[str, dict[str, FloatArray]]


def put_forward(
    result: Mapping[str, Any], responses: Responses, *, resamples: int = 1000, seed: int = 0
) -> Candidates:
    """Fits every correction to the run and works out what it does there.

    Args:
        result: result.json, for bars and for the noise floor.
        responses: The run's responses.
        resamples: Bootstrap resamples.
        seed: Of all that is random.
    """
    from mismatch_probe.weights import get_method

    fitted = {BASELINE: Fitted("reinforce", {}, None), **fit_all(result, responses, seed=seed)}
    methods = {
        key: get_method(item.method, **item.parameters)
        for key, item in fitted.items()
        if item.fit is not None or item.against is None
    }
    ground = ground_of(responses)
    sums = sum_weights(methods, responses, ground)
    far = _far(ground)
    by_key, columns = {}, {}
    for key, item in fitted.items():
        own = sums.get(key)
        method = methods.get(key, get_method(item.method))
        label = method.label if key != "vespo_tuned" else f"{method.label}, tuned"
        if key == BASELINE:
            label = "no correction"
        if own is None or isinstance(own, MismatchProbeError):
            by_key[key] = _absent(item, method, label, (item.against or str(own),))
            continue
        columns[key] = _columns(ground, own, far)
        prompt_sums = PromptSums(columns[key], resamples, seed)
        n = len(ground.lengths) // (2 if ground.assumed else 1)
        totals = Cells.of(method, ground, own, resamples=resamples, seed=seed).totals()
        missing = "no weight at all"
        by_key[key] = Candidate(
            method=item.method,
            label=label,
            parameters=dict(item.parameters) or _own_parameters(method, item.method),
            reads=_reads(method.reads),
            second_forward="old" in method.reads,
            fit=item.fit,
            kept_fraction=totals["kept_fraction"],
            mean_weight=totals["mean"],
            ess=totals["ess"],
            positive_mass=totals["positive_mass"],
            negative_mass=totals["negative_mass"],
            mass_ratio=totals["mass_ratio"],
            influence=prompt_sums.estimate(("far", "all"), quotient, n=n, missing=missing, highest=1.0),
            signal=prompt_sums.estimate(("signal", "size"), quotient, n=n, missing=missing, highest=1.0),
            effective_responses=prompt_sums.estimate(
                ("mean", "squares", "one"), kish, n=n, missing=missing, highest=1.0
            ),
            against=(
                *((item.against,) if item.against else ()),
                *_off_centre(item.parameters),
                *_unfit(result, totals),
            ),
        )
    return Candidates(by_key, columns)


def _absent(item: Fitted, method: WeightMethod, label: str, against: tuple[str, ...]) -> Candidate:
    return Candidate(
        method=item.method,
        label=label,
        parameters=dict(item.parameters),
        reads=_reads(method.reads),
        second_forward="old" in method.reads,
        fit=item.fit,
        kept_fraction=None,
        mean_weight=None,
        ess=None,
        positive_mass=None,
        negative_mass=None,
        mass_ratio=None,
        influence=None,
        signal=None,
        effective_responses=None,
        against=against,
    )


def _far(ground: Ground) -> FloatArray:
    """How much of each response belongs to the tenth with the largest |log W|, 0 to 1.

    Responses level at its edge share the places that are left: where most agree in every bit, all of them would else be far.
    """
    size = np.abs(ground.log_weight)
    first = int(np.ceil(_FAR * (len(size) - 1) - 1e-9))
    edge = np.partition(size, first)[first]
    above, level = size > edge, size == edge
    places = len(size) - first - int(above.sum())
    return np.asarray(above + level * (places / int(level.sum())), dtype=np.float64)


def _columns(ground: Ground, own: SequenceSums, far: FloatArray) -> dict[str, FloatArray]:
    """Sums by prompt; both signs of a response that stands for both are of one prompt."""
    size = np.abs(ground.advantages)
    mean = own.weight / ground.lengths
    scaled = mean / max(float(np.abs(mean).max()), 1e-300)
    update = size * own.weight / own.scale
    columns = {
        "far": update * far,
        "all": update,
        "signal": size * ground.lengths * np.clip(mean, 0.0, 1.0),
        "size": size * ground.lengths,
        "mean": scaled,
        "squares": np.square(scaled),
        "one": np.ones(len(mean)),
    }
    return {
        name: np.bincount(ground.clusters, column, ground.prompts).astype(np.float64)
        for name, column in columns.items()
    }


def _off_centre(parameters: Mapping[str, Any]) -> list[str]:
    """A band fitted to what was measured keeps it wherever it lies; without 1 it keeps what no policy ratio averages to."""
    low, high = parameters.get("low"), parameters.get("high")
    if low is None or high is None or low <= 1.0 <= high:
        return []
    return [
        f"the drift lies off 1 as a whole, and so does the band that holds it ({low:g} to {high:g}): mend the engines"
    ]


def _unfit(result: Mapping[str, Any], totals: Mapping[str, Any]) -> list[str]:
    """What every correction has to meet, whatever the goal."""
    found = []
    mass, ratio, ess = (totals[name].value for name in ("positive_mass", "mass_ratio", "ess"))
    if mass is not None and mass < ENOUGH_SIGNAL:
        found.append(
            f"it keeps {100 * mass:.0f} % of the positive signal, less than {100 * ENOUGH_SIGNAL:.0f} %"
        )
    bar = read(result, "bars.sign_balance")
    balance = _DEFAULT_BALANCE if bar is None else bar.value
    if ratio is not None and not balance <= ratio <= 1 / balance:
        found.append(f"it weighs negative advantages {ratio:.3g} times as much as positive ones")
    bar = read(result, "bars.sequence_ess")
    least = _DEFAULT_ESS if bar is None else bar.value
    if ess is None:
        found.append("every weight is 0")
    elif ess < least:
        found.append(
            f"a few weights rule: their effective size is {100 * ess:.2g} %, less than {100 * least:.0f} %"
        )
    return found


def _reads(reads: str) -> str:
    if reads == "none":
        return "nothing"
    if "old/rollout" in reads:
        return "pi_old/mu"
    return "pi/pi_old" if reads == "train/old" else "pi/mu"


def _own_parameters(method: Any, name: str) -> dict[str, Any]:
    """The numbers of the authors, where they are worth a line: VESPO's."""
    if name != "vespo":
        return {}
    return {key: float(getattr(method, key)) for key in ("k_pos", "lambda_pos", "k_neg", "lambda_neg")}


def heavy_tail(result: Mapping[str, Any]) -> float | None:
    """Share of tokens with a ratio beyond 2 either way; None where it was not measured."""
    for row in look_up(result, "token.extreme") or []:
        if isinstance(row, Mapping) and row.get("tau") == 2:
            found = read(row, "rate")
            return None if found is None else found.value
    return None
