"""Token drift, the rollout engine against itself, and the tails of the sequence weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mismatch_probe.config.bars import Bars
from mismatch_probe.findings import Severity
from mismatch_probe.outcomes.outcome import Outcome, missing, reason_of, value_of


@dataclass(frozen=True, slots=True)
class K3Bar:
    """The bar of the token K3.

    Attributes:
        value: Nats.
        meaning: Where it comes from, in words.
        code: Of the finding when it is broken.
        keys: The bars that set it.
    """

    value: float
    meaning: str
    code: str
    keys: tuple[str, ...]


def k3_bar(result: Mapping[str, Any], bars: Bars) -> K3Bar:
    """The bar of the token K3: the larger of those that measured floors set, else the published band.

    `k3_max`, where it is set, takes the place of all of them.
    """
    if bars.k3_max is not None:
        return K3Bar(bars.k3_max, "k3_max", "MP201", ("k3_max",))
    floor = result["legs"]["floor"]
    noises = [value_of(floor, "repeat_k3"), value_of(floor, "decode_prefill_k3")]
    noise = max((value for value in noises if value is not None), default=0.0)
    rounding = value_of(floor, "rounding_k3") or 0.0
    by_noise, by_rounding = bars.k3_over_noise * noise, bars.k3_over_rounding * rounding
    both = ("k3_over_rounding", "k3_over_noise")
    if by_rounding >= by_noise and by_rounding > 0:
        meaning = f"{bars.k3_over_rounding:g} times what rounding does to the trainer"
        return K3Bar(by_rounding, meaning, "MP201", both)
    if by_noise > 0:
        return K3Bar(by_noise, f"{bars.k3_over_noise:g} times the noise of batching", "MP201", both)
    moe = bool(result["provenance"]["model"].get("num_moe_layers"))
    kind, key = ("MoE", "k3_moe") if moe else ("dense", "k3_dense")
    return K3Bar(getattr(bars, key), f"where published bands for {kind} models end", "MP202", (key,))


def token_drift_outcomes(result: Mapping[str, Any], bars: Bars) -> Iterator[Outcome]:
    """The token K3 and its kin, and the rollout engine against itself."""
    token = result["token"]
    n = token["num_tokens"]
    yield from _engine_against_itself(result, bars)
    if token.get("exact"):
        yield Outcome(
            "token K3", "MP201", "held", "error", "train/forward equals rollout/decode in every bit",
            ("k3_over_rounding", "k3_over_noise", "k3_dense", "k3_moe", "k3_max"), 0.0, None, "nats", n,
        )  # fmt: skip
    else:
        yield _token_k3(token, k3_bar(result, bars))
    yield _mean_abs(token, bars)
    yield _extreme(token, bars)


def _token_k3(token: Mapping[str, Any], bar: K3Bar) -> Outcome:
    name, n = "token K3", token["num_tokens"]
    k3, clamped = value_of(token, "k3"), value_of(token, "k3_clamped")
    if k3 is None and clamped is not None and clamped > bar.value:
        # Clamping only ever takes away: what is beyond the bar with it is beyond it without.
        return Outcome(
            name, bar.code, "broken", "error",
            f"token K3 has no number ({reason_of(token.get('k3'))}); with log-ratios clamped it is {clamped:.3g} nats, "
            f"{clamped / bar.value:.3g} times the bar ({bar.meaning})",
            bar.keys, clamped, bar.value, "nats", n,
        )  # fmt: skip
    if k3 is None:
        return missing(name, bar.code, "error", reason_of(token, token.get("k3")), bar.keys)
    return Outcome(
        name, bar.code, "broken" if k3 > bar.value else "held", "error",
        f"token K3 is {k3:.3g} nats, {k3 / bar.value:.3g} times the bar ({bar.meaning})",
        bar.keys, k3, bar.value, "nats", n,
    )  # fmt: skip


def _mean_abs(token: Mapping[str, Any], bars: Bars) -> Outcome:
    name, keys = "mean |log-ratio|", ("mean_abs_log_ratio",)
    mean_abs = value_of(token, "mean_abs_log_ratio")
    if mean_abs is None:
        reason = reason_of(token, token.get("mean_abs_log_ratio"))
        return missing(name, "MP203", "warning", reason, keys)
    return Outcome(
        name, "MP203", "broken" if mean_abs > bars.mean_abs_log_ratio else "held", "warning",
        f"the average token differs by {mean_abs:.3g} nats",
        keys, mean_abs, bars.mean_abs_log_ratio, "nats", token["num_tokens"],
    )  # fmt: skip


def _extreme(token: Mapping[str, Any], bars: Bars) -> Outcome:
    name, keys = "tokens beyond a ratio of 2", ("extreme_rate_2",)
    row = next((row for row in token.get("extreme") or [] if row["tau"] == 2), None)
    rate = value_of(row, "rate")
    if row is None or rate is None:
        return missing(name, "MP205", "warning", reason_of(token, (row or {}).get("rate")), keys)
    return Outcome(
        name, "MP205", "broken" if rate > bars.extreme_rate_2 else "held", "warning",
        f"{100 * rate:.3g} % of tokens have a probability ratio beyond 2 either way",
        keys, rate, bars.extreme_rate_2, "share of tokens", token["num_tokens"],
    )  # fmt: skip


def _engine_against_itself(result: Mapping[str, Any], bars: Bars) -> Iterator[Outcome]:
    name, keys = "decode against prefill of the rollout engine", ("decode_prefill_over_floor",)
    # Where the trainer equals decode in every bit, the two sides agree whatever prefill does.
    severity: Severity = "warning" if result["token"].get("exact") else "error"
    floor = result["legs"]["floor"]
    own = value_of(floor, "decode_prefill_k3")
    others = [v for v in (value_of(floor, "repeat_k3"), value_of(floor, "rounding_k3")) if v]
    if own is None or not others:
        reason = "the leg rollout/prefill was not taken" if own is None else "no floor to hold it against"
        yield missing(name, "MP204", severity, reason, keys)
        return
    bar = bars.decode_prefill_over_floor * max(others)
    yield Outcome(
        name, "MP204", "broken" if own > bar else "held", severity,
        f"decode and prefill of the rollout engine differ by K3 {own:.3g} nats",
        keys, own, bar, "nats", result["token"]["num_tokens"],
    )  # fmt: skip


def tails_outcomes(result: Mapping[str, Any], bars: Bars) -> Iterator[Outcome]:
    """k-hat and effective size of the sequence weights, and the length they carry."""
    sequence = result["sequence"]
    n, k_hat = sequence["num_sequences"], sequence["k_hat"]
    shape = value_of(k_hat, "value") if k_hat["state"] == "value" else None
    most = value_of(k_hat, "good_k") if bars.k_hat_max is None else bars.k_hat_max
    if shape is not None and most is not None:
        yield Outcome(
            "k-hat of W", "MP301", "broken" if shape > most else "held", "warning",
            f"k-hat of W is {shape:.2f}; with {n} sequences {most:.2f} is the most",
            ("k_hat_max",), shape, most, "", n,
        )  # fmt: skip
    elif k_hat["state"] == "exact":
        yield Outcome("k-hat of W", "MP301", "held", "warning", "all weights are 1", ("k_hat_max",), n=n)
    else:
        reason = str(k_hat.get("reason") or k_hat["state"])
        yield missing("k-hat of W", "MP301", "warning", reason, ("k_hat_max",))
    ess = value_of(sequence, "ess")
    if ess is None:
        yield missing(
            "ESS of sequences",
            "MP302",
            "warning",
            reason_of(sequence, sequence.get("ess")),
            ("sequence_ess",),
        )
    else:
        yield Outcome(
            "ESS of sequences", "MP302", "broken" if ess < bars.sequence_ess else "held", "warning",
            f"plain sequence weights would leave {100 * ess:.3g} % of the {n} sequences effective",
            ("sequence_ess",), ess, bars.sequence_ess, "share of sequences", n,
        )  # fmt: skip
    yield _within_horizon(sequence)


def _within_horizon(sequence: Mapping[str, Any]) -> Outcome:
    name, law = "length within the horizon", sequence.get("length_law") or {}
    longest, horizon = value_of(sequence, "max_length"), value_of(law, "horizon_tokens")
    # A horizon farther than the data carry has no number; that it lies beyond the responses is known all the same.
    least = value_of(law, "horizon_low") if horizon is None else horizon
    if longest is None or least is None or (horizon is None and longest > least):
        return missing(name, "MP303", "warning", reason_of(law, law.get("horizon_reason")), ())
    return Outcome(
        name, "MP303", "broken" if longest > least else "held", "warning",
        f"responses reach {longest:.0f} tokens, plain sequence weights carry {'' if horizon else 'more than '}{least:.0f}",
        (), longest, least, "tokens", sequence["num_sequences"],
    )  # fmt: skip
