"""Is there enough, are the data what they should be, and does the engine survive a reload."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mismatch_probe.config.bars import Bars
from mismatch_probe.findings import name_modules
from mismatch_probe.outcomes.outcome import Outcome, Status, missing, reason_of, value_of

NOT_INVALIDATING = frozenset({"MP109"})
"""Checks whose failure is worth a line but does not put the numbers in doubt."""


def enough_outcomes(result: Mapping[str, Any], bars: Bars) -> Iterator[Outcome]:
    """Whether there are tokens and prompts enough for a verdict."""
    token = result["token"]
    if token.get("available") is False:
        return
    tokens, prompts = token["num_tokens"], result["provenance"]["prompts"]["num_prompts"]
    for name, count, least, key in (
        ("response tokens", tokens, bars.min_tokens, "min_tokens"),
        ("prompts", prompts, bars.min_prompts, "min_prompts"),
    ):
        what = name if count != 1 else name.removesuffix("s")
        yield Outcome(
            f"enough {name}", "MP902", "broken" if count < least else "held", "error",
            f"{count} {what}, a verdict needs {least}", (key,), count, least, name.split()[-1], count,
        )  # fmt: skip


def validity_outcomes(result: Mapping[str, Any]) -> Iterator[Outcome]:
    """What the validity checks came to, and legs that are left out."""
    # Response tokens, also where no number could be had of them.
    n = result["token"].get("num_tokens", result["provenance"].get("num_tokens"))
    status: dict[str, Status] = {"pass": "held", "fail": "broken"}
    for check in result["data_quality"]["checks"]:
        yield Outcome(
            str(check["name"]), check["code"], status.get(check["status"], "unmeasured"),
            "info" if check["code"] in NOT_INVALIDATING else "error",
            check["detail"], (), check["observed"], check["bar"], "", n,
        )  # fmt: skip
    for leg, count in (result["data_quality"].get("broken_legs") or {}).items():
        yield Outcome(
            f"finite values of {leg}", "MP102", "broken", "warning",
            f"{count} values of the leg {leg} are NaN, infinite or sentinels: the leg is left out",
            (), count, 0.0, "tokens", n,
        )  # fmt: skip


def weight_sync_outcomes(result: Mapping[str, Any]) -> Iterator[Outcome]:
    """What a reload of the engine's own checkpoint did to it; says nothing of the drift, which was read before."""
    sync = result.get("weight_sync") or {}
    name = "a reload changes nothing"
    if sync.get("failed"):
        yield Outcome("reload works", "MP603", "broken", "warning", str(sync["reason"]))
    if not sync.get("available"):
        if not sync.get("failed"):
            yield missing(name, "MP601", "error", reason_of(sync), ())
        return
    if sync["exact"]:
        yield Outcome(
            name, "MP601", "held", "error", "log-probabilities and weights are what they were",
            (), 0.0, 0.0, "nats", sync.get("num_tokens"),
        )  # fmt: skip
        return
    change, weights = sync["change"], sync["weights"]
    gap = value_of(change, "mean_abs")
    if gap is None:
        moved = reason_of(change, change.get("mean_abs"))
    else:
        most = value_of(change, "max_abs")
        moved = f"log-probabilities move by {gap:.3g} nats on average" + (
            "" if most is None else f" ({most:.3g} at most)"
        )
    where = name_modules(sync["modules"])
    held = f"{len(weights['differences'])} of {weights['compared']} tensors are not what they were"
    yield Outcome(
        name, "MP601", "broken", "error", f"{moved}, {held}" + (f": {where}" if where else ""),
        (), gap, 0.0, "nats", sync["num_tokens"],
    )  # fmt: skip
