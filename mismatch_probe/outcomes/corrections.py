"""Routing, and what the corrections would do to these data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mismatch_probe.config.bars import Bars
from mismatch_probe.outcomes.outcome import Outcome, missing, reason_of, value_of
from mismatch_probe.sign_balance import shifted_for_sure


def routing_outcomes(result: Mapping[str, Any], bars: Bars) -> Iterator[Outcome]:
    """Whether the experts agree, and whether replaying a forward's own experts changes nothing."""
    routing, keys = result["routing"], ("set_agreement",)
    agreement = value_of(routing, "set_agreement") if routing.get("available") else None
    if agreement is None:
        yield missing("routers choose the same experts", "MP401", "warning", reason_of(routing), keys)
        return
    n = routing["num_tokens"]
    yield Outcome(
        "routers choose the same experts", "MP401", "broken" if agreement < bars.set_agreement else "held", "warning",
        f"{100 * (1 - agreement):.3g} % of routers choose other experts",
        keys, agreement, bars.set_agreement, "share of routers", n,
    )  # fmt: skip
    own = (routing.get("replay") or {}).get("self_replay") or {}
    most = value_of(own, "max_abs_change")
    if own.get("available") and most is not None:
        yield Outcome(
            "replaying a forward's own experts", "MP404", "held" if own.get("exact") else "broken", "warning",
            f"with a forward's own experts forced on it, {own.get('num_changed')} of {own.get('num_tokens')} tokens move, "
            f"by up to {most:.3g} nats",
            (), most, 0.0, "nats", own.get("num_tokens"),
        )  # fmt: skip


def weights_outcomes(result: Mapping[str, Any], bars: Bars) -> Iterator[Outcome]:
    """One outcome for all corrections that shift the signs, and one for all that drop much."""
    methods = [
        (str(method.get("label", name)), method)
        for name, method in (result["weights"] or {}).items()
        if isinstance(method, Mapping) and method.get("available") is not False
    ]
    reason = reason_of(result["weights"])
    yield _sign_balance(result, methods, bars, reason)
    kept = sorted(
        (value, label)
        for label, method in methods
        if (value := value_of(method, "kept_fraction")) is not None
    )
    name, keys = "corrections keep tokens", ("kept_fraction",)
    if not kept:
        yield missing(name, "MP502", "warning", reason, keys)
        return
    least, label = kept[0]
    dropping = [pair for pair in kept if pair[0] < bars.kept_fraction]
    yield Outcome(
        name, "MP502", "broken" if dropping else "held", "warning",
        f"{label} keeps {100 * least:.3g} % of the tokens"
        + _others([f"{other} {100 * value:.3g} %" for value, other in dropping[1:]]),
        keys, least, bars.kept_fraction, "share of tokens", result["token"]["num_tokens"],
    )  # fmt: skip


def _sign_balance(
    result: Mapping[str, Any], methods: list[tuple[str, Mapping[str, Any]]], bars: Bars, reason: str
) -> Outcome:
    name, keys = "corrections keep the balance of signs", ("sign_balance",)
    ratios = [
        (min(ratio, 1 / ratio if ratio else 0.0), ratio, label, method)
        for label, method in methods
        if (ratio := value_of(method, "mass_ratio")) is not None
    ]
    if not ratios:
        return missing(name, "MP501", "warning", reason, keys)
    # With so many corrections one is always odd by chance: only what the data carry counts.
    shifted = sorted(
        (least, ratio, label)
        for least, ratio, label, method in ratios
        if least < bars.sign_balance and shifted_for_sure(method)
    )
    _, ratio, label = shifted[0] if shifted else min(row[:3] for row in ratios)
    said = f"{label} weighs negative advantages {ratio:.3g} times as much as positive ones"
    if not shifted and min(row[0] for row in ratios) < bars.sign_balance:
        said += ", which these data do not carry"
    return Outcome(
        name, "MP501", "broken" if shifted else "held", "warning",
        said + _others([f"{other} {value:.3g}" for _, value, other in shifted[1:]]),
        keys, ratio, bars.sign_balance, "ratio", result["sequence"]["num_sequences"],
    )  # fmt: skip


def _others(named: list[str]) -> str:
    """A clause that names the rest, so that one finding speaks for all."""
    return f" (beyond the bar too: {', '.join(named)})" if named else ""
