"""A gate: which bars of a measured result decide, and what the status is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from mismatch_probe.config.bars import Bars
from mismatch_probe.errors import EXIT_DRIFT, EXIT_INCONCLUSIVE, EXIT_PASS
from mismatch_probe.outcomes import Outcome, outcomes

_NO_SAY = {
    "replay_explained": "it decides what is advised and is no gate",
    "k3_dense": "the token K3 is held against another bar: floors were measured, or the model is a MoE",
    "k3_moe": "the token K3 is held against another bar: floors were measured, or the model is dense",
    "k3_over_noise": "the token K3 is held against another bar: no floor was measured, or k3_max is set",
    "k3_over_rounding": "the token K3 is held against another bar: no floor was measured, or k3_max is set",
}


@dataclass(frozen=True, slots=True)
class Held:
    """An outcome, and whether it decides.

    Attributes:
        outcome: What the bar came to.
        decides: The gate ends on it: it is an error wherever it is broken, or its bar was named.
        named: Its bar was named by the user, so that a number that cannot be had is no pass.
    """

    outcome: Outcome
    decides: bool
    named: bool

    @property
    def state(self) -> str:
        """`pass`, `fail`, `warn` or `note` (broken, and not deciding) or `skip` (not to be had)."""
        if self.outcome.status == "unmeasured":
            return "skip"
        if self.outcome.status == "held":
            return "pass"
        if self.decides:
            return "fail"
        return "warn" if self.outcome.severity == "warning" else "note"


@dataclass(frozen=True, slots=True)
class Gate:
    """What a result comes to at a gate.

    Attributes:
        held: Every bar and check.
        name: pass, drift or inconclusive.
        exit_code: Status of the command line.
        sentence: One plain sentence.
        idle: Bars that were named and have no say in this run, with the reason.
    """

    held: tuple[Held, ...]
    name: str
    exit_code: int
    sentence: str
    idle: tuple[tuple[str, str], ...]

    def of_state(self, state: str) -> tuple[Outcome, ...]:
        """The outcomes in a state of `Held.state`."""
        return tuple(item.outcome for item in self.held if item.state == state)


def hold_gate(
    result: Mapping[str, Any], bars: Bars, named: Collection[str] = (), *, strict: bool = False
) -> Gate:
    """Holds a measured result against bars, without an engine.

    A bar decides where it is an error for the verdict as well, where the user named it, or under `strict`. Too little
    data is inconclusive whatever else holds, and so is a named bar whose number this run does not have, unless another
    bar is broken.

    Args:
        result: result.json as a mapping.
        bars: The bars.
        named: Keys of the bars that the user named.
        strict: Every bar decides.
    """
    held = tuple(_hold(outcome, named, strict) for outcome in outcomes(result, bars))
    failed = [item.outcome for item in held if item.state == "fail"]
    short = [outcome for outcome in failed if outcome.code == "MP902"]
    # Without a token K3 there is nothing that the other bars could pass.
    absent = [
        item
        for item in held
        if item.state == "skip" and (item.named or item.outcome.code in ("MP201", "MP202"))
    ]
    untrusted = result["token"].get("available") is False
    known = {key for item in held for key in item.outcome.keys}
    idle = tuple(
        (key, _NO_SAY.get(key, "this run has no number for it")) for key in sorted(set(named) - known)
    )
    if short or untrusted:
        return Gate(
            held, "inconclusive", EXIT_INCONCLUSIVE, _first("Nothing can be concluded", short or failed), idle
        )
    if failed:
        return Gate(held, "drift", EXIT_DRIFT, _first(_count(len(failed)), failed), idle)
    if absent:
        first = absent[0].outcome
        return Gate(
            held, "inconclusive", EXIT_INCONCLUSIVE,
            f"Nothing can be concluded: {first.name} could not be had: {first.detail}.", idle,
        )  # fmt: skip
    if result["data_quality"].get("trusted") is False:
        # A failed check breaks the gate above; a result that only says so is not to be passed on the word of its numbers.
        return Gate(
            held, "inconclusive", EXIT_INCONCLUSIVE,
            "Nothing can be concluded: the result says of its own data that they are not to be trusted.", idle,
        )  # fmt: skip
    passed = sum(item.state == "pass" and item.decides for item in held)
    return Gate(held, "pass", EXIT_PASS, f"All {passed} bars that decide hold.", idle)


def _hold(outcome: Outcome, named: Collection[str], strict: bool) -> Held:
    asked = bool(set(outcome.keys) & set(named))
    return Held(
        outcome, asked or outcome.severity == "error" or (strict and outcome.severity == "warning"), asked
    )


def _count(broken: int) -> str:
    return "1 bar is broken" if broken == 1 else f"{broken} bars are broken"


def _first(start: str, broken: list[Outcome]) -> str:
    detail = broken[0].detail if broken else "no number could be had of these data"
    return f"{start}: {detail}."
