"""Which correction serves which goal, with what is behind it and by how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mismatch_probe.recommendation.candidates import BASELINE, Candidates, heavy_tail
from mismatch_probe.stats.estimate import Estimate
from mismatch_probe.stats.intervals import MIN_CLUSTERS, Statistic, interval_from_table

Goal = Literal["stability", "signal", "throughput"]
GOALS: tuple[Goal, ...] = ("stability", "signal", "throughput")
DEFAULT_GOAL: Goal = "stability"

# A difference below one point in a hundred is none, however sure it is.
MARGIN = 0.01
# One that is this much behind is not level, however little the data know: preference is for what is close.
FAR_BEHIND = 0.1
# Share of tokens with a ratio beyond 2 either way, above which truncation alone lets a tail rule.
HEAVY_TAIL = 1e-3
# Which of those that the data cannot tell apart: what sees whole responses first, then what acts on tokens, then what
# drops whole responses.
_PREFERENCE = ("vespo", "vespo_tuned", "token_tis", "icepop", "geo_rs", "seq_tis", "seq_mis", "k3_rs")
_COLUMNS = {
    "influence": ("far", "all"),
    "signal": ("signal", "size"),
    "effective_responses": ("mean", "squares", "one"),
}


@dataclass(frozen=True, slots=True)
class Criterion:
    """What a goal compares.

    Attributes:
        number: Field of `Candidate`.
        smaller: Whether a smaller number is better.
        words: The criterion in words.
    """

    number: Literal["influence", "signal", "effective_responses"]
    smaller: bool
    words: str


CRITERIA: dict[Goal, Criterion] = {
    "stability": Criterion(
        "influence",
        True,
        "the smallest share of the update from the tenth of the responses that the two policies disagree most about",
    ),
    "signal": Criterion("signal", False, "the largest share of the signal kept"),
    "throughput": Criterion(
        "effective_responses",
        False,
        "the most effective responses for each one generated, without another forward pass where that costs none",
    ),
}


@dataclass(frozen=True, slots=True)
class Choice:
    """What serves a goal.

    Attributes:
        criterion: What was compared, in words.
        number: Which number of the candidates that is.
        chosen: Key of the candidate, or None where there is none.
        runner_up: The best one that is another method, or None.
        difference: The runner-up's number less the chosen one's, paired over prompts.
        level: Keys that cannot be told from the best one, or are within a point of it; among these the order of preference
            decides.
        because: Why this one, in words.
        forced: Whether no candidate met what all have to meet, so that the bounded one was taken.
    """

    criterion: str
    number: str
    chosen: str | None
    runner_up: str | None
    difference: Estimate | None
    level: tuple[str, ...]
    because: str
    forced: bool


def choose(
    result: Mapping[str, Any], candidates: Candidates, goal: Goal, *, resamples: int = 1000, seed: int = 0
) -> Choice:
    """The candidate for a goal.

    Those that are unfit are left out. The rest is compared by the goal's number; what the data cannot tell from the best
    and is not `FAR_BEHIND`, or what lies within `MARGIN` of it, is level with it, and the order of preference decides
    among these.

    Args:
        result: result.json, for the tail of single tokens.
        candidates: What is put forward.
        goal: What for.
        resamples: Bootstrap resamples of differences.
        seed: Of the bootstrap.
    """
    criterion = CRITERIA[goal]
    order = _order(result, candidates, goal)
    fit = [key for key in order if not candidates.by_key[key].against and _number(candidates, key, criterion)]
    forced = not fit
    if forced:
        fit = [key for key in ("token_tis",) if _number(candidates, key, criterion) is not None]
    if not fit:
        return Choice(
            criterion.words, criterion.number, None, None, None, (), "no correction can be had here", True
        )

    def pick(keys: Sequence[str]) -> tuple[str, tuple[str, ...]]:
        best = min(keys, key=lambda key: _cost(candidates, key, criterion))
        level = tuple(
            key
            for key in keys
            if key == best or not _worse(candidates, key, best, criterion, resamples=resamples, seed=seed)
        )
        return level[0], level

    chosen, level = pick(fit)
    others = [key for key in fit if candidates.by_key[key].method != candidates.by_key[chosen].method]
    runner_up = pick(others)[0] if others else None
    difference = None
    if runner_up is not None:
        difference = _difference(candidates, runner_up, chosen, criterion, resamples=resamples, seed=seed)
    idle = criterion.smaller and not _worse(
        candidates, BASELINE, chosen, criterion, resamples=resamples, seed=seed
    )
    because = _because(candidates, criterion, chosen, level, idle)
    if forced:
        reasons = "; ".join(candidates.by_key[chosen].against)
        because = f"nothing meets what every correction has to meet; token weights are bounded all the same ({reasons})"
    return Choice(criterion.words, criterion.number, chosen, runner_up, difference, level, because, forced)


def _order(result: Mapping[str, Any], candidates: Candidates, goal: Goal) -> list[str]:
    keys = [key for key in _PREFERENCE if key in candidates.by_key]
    tail = heavy_tail(result)
    if tail is not None and tail > HEAVY_TAIL:
        # Truncation keeps what lies below its cap, so single tokens at the lower end stay; a mask drops both ends.
        keys.remove("icepop")
        keys.insert(keys.index("token_tis"), "icepop")
    if goal == "throughput":
        keys.sort(key=lambda key: candidates.by_key[key].second_forward)
    return keys


def _number(candidates: Candidates, key: str, criterion: Criterion) -> Estimate | None:
    found: Estimate | None = getattr(candidates.by_key[key], criterion.number)
    return None if found is None or found.value is None else found


def _cost(candidates: Candidates, key: str, criterion: Criterion) -> float:
    found = _number(candidates, key, criterion)
    value = 0.0 if found is None or found.value is None else found.value
    return value if criterion.smaller else -value


def _worse(
    candidates: Candidates, key: str, best: str, criterion: Criterion, *, resamples: int, seed: int
) -> bool:
    """Whether a candidate is worse than the best by more than chance and more than the margin."""
    found = _difference(candidates, key, best, criterion, resamples=resamples, seed=seed)
    if found.value is None:
        return False
    gap = found.value if criterion.smaller else -found.value
    if gap > FAR_BEHIND:
        return True
    if found.ci_low is None or found.ci_high is None:
        # Too few prompts for an interval: nothing is known to be worse.
        return False
    near = found.ci_low if criterion.smaller else -found.ci_high
    return gap > MARGIN and near > 0


def _difference(
    candidates: Candidates, key: str, other: str, criterion: Criterion, *, resamples: int, seed: int
) -> Estimate:
    """One candidate's number less another's, over the same prompts."""
    names = _COLUMNS[criterion.number]
    rows = [candidates.columns[which][name] for which in (key, other) for name in names]
    table = np.stack(rows, axis=1)
    table = table[np.any(table != 0, axis=1)]
    width = len(names)

    def value(sums: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
        return _ratio(sums[..., :width]) - _ratio(sums[..., width:])

    n = len(table)
    if n < MIN_CLUSTERS:
        point = float(value(table.sum(axis=0)))
        return Estimate(point, None, None, n, f"{n} prompts: an interval needs {MIN_CLUSTERS}")
    return interval_from_table(table, Statistic(value), n=n, resamples=resamples, seed=seed)


def _ratio(sums: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    bottom = sums[..., -1] if sums.shape[-1] == 2 else sums[..., 1] * sums[..., 2]
    top = sums[..., 0] if sums.shape[-1] == 2 else np.square(sums[..., 0])
    return np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom != 0)


def _because(
    candidates: Candidates, criterion: Criterion, chosen: str, level: Sequence[str], idle: bool
) -> str:
    """Why the chosen one, in words; `idle` where doing nothing is level with it."""
    found = _number(candidates, chosen, criterion)
    value = "" if found is None or found.value is None else f"{100 * found.value:.3g} %"
    names = {
        "influence": "of the update rests on the most off-policy tenth of the responses",
        "signal": "of the signal is kept",
        "effective_responses": "of the responses generated are effective",
    }
    said = f"{value} {names[criterion.number]}"
    without = _number(candidates, BASELINE, criterion)
    if criterion.number == "influence" and without is not None and without.value is not None:
        same = ", which is level with it" if idle else ""
        said += f" ({100 * without.value:.3g} % without a correction{same})"
    others = [candidates.by_key[key].label for key in level if key != chosen]
    if others:
        said += f"; level with it on this data: {', '.join(others)}"
    return said
