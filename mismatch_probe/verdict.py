"""From a measured result and bars to findings and a verdict; reads result.json's sections, so a run can be judged again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mismatch_probe.causes.as_findings import cause_clause, with_causes
from mismatch_probe.config.bars import Bars
from mismatch_probe.errors import EXIT_DRIFT, EXIT_INCONCLUSIVE, EXIT_PASS
from mismatch_probe.findings import Finding, finding, name_modules
from mismatch_probe.sign_balance import shifted_for_sure

VerdictName = Literal["pass", "drift", "inconclusive"]
_EXIT_CODES: dict[VerdictName, int] = {
    "pass": EXIT_PASS,
    "drift": EXIT_DRIFT,
    "inconclusive": EXIT_INCONCLUSIVE,
}
NOT_INVALIDATING = frozenset({"MP109"})
"""Checks whose failure is worth a line but does not put the numbers in doubt."""
_ORDER = {"error": 0, "warning": 1, "info": 2}
_RELOAD = "But loading the same weights again breaks the rollout engine"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a run comes to.

    Attributes:
        name: pass, drift or inconclusive.
        exit_code: Status of the command line.
        sentence: One plain sentence.
        findings: Errors first, then warnings, then notes.
    """

    name: VerdictName
    exit_code: int
    sentence: str
    findings: tuple[Finding, ...]


def judge(result: Mapping[str, Any], bars: Bars) -> Verdict:
    """Holds a result against the bars.

    Args:
        result: The sections of result.json that the measurement fills.
        bars: The bars.
    """
    findings = [*_data(result), *_weight_sync(result)]
    measured = result["token"].get("available") is not False
    if measured:
        findings += [
            *_token_drift(result, bars),
            *_tails(result, bars),
            *_routing(result, bars),
            *_weights(result, bars),
        ]
    findings = with_causes(findings, result)
    short = _too_little(result, bars) if measured else None
    name: VerdictName = "drift" if any(item.severity == "error" for item in findings) else "pass"
    if short is not None:
        findings.append(short)
    if short is not None or not measured:
        name = "inconclusive"
    findings.sort(key=lambda item: (_ORDER[item.severity], item.code))
    return Verdict(name, _EXIT_CODES[name], _sentence(name, result, findings, bars), tuple(findings))


def _value(section: Mapping[str, Any] | None, key: str) -> float | None:
    """A number of a section, whether it is plain or an estimate; None where it could not be had."""
    item = (section or {}).get(key)
    if isinstance(item, Mapping):
        item = item.get("value")
    return float(item) if isinstance(item, int | float) else None


def _too_little(result: Mapping[str, Any], bars: Bars) -> Finding | None:
    tokens, prompts = result["token"]["num_tokens"], result["provenance"]["prompts"]["num_prompts"]
    if tokens < bars.min_tokens:
        return finding(
            "MP902", "error", f"{tokens} response tokens, a verdict needs {bars.min_tokens}",
            observed=tokens, bar=bars.min_tokens, unit="tokens", n=tokens,
        )  # fmt: skip
    if prompts < bars.min_prompts:
        return finding(
            "MP902", "error", f"{prompts} prompt, a verdict needs {bars.min_prompts}",
            observed=prompts, bar=bars.min_prompts, unit="prompts", n=prompts,
        )  # fmt: skip
    return None


def _num_tokens(result: Mapping[str, Any]) -> int | None:
    """Response tokens, also where no number could be had of them."""
    count: int | None = result["token"].get("num_tokens", result["provenance"].get("num_tokens"))
    return count


def _weight_sync(result: Mapping[str, Any]) -> Iterator[Finding]:
    """What a reload of the engine's own checkpoint did to it; says nothing of the drift, which was read before."""
    sync = result.get("weight_sync") or {}
    if sync.get("failed"):
        yield finding("MP603", "warning", str(sync["reason"]))
    if not sync.get("available") or sync["exact"]:
        return
    change, weights = sync["change"], sync["weights"]
    gap = _value(change, "mean_abs")
    if change.get("available") is False:
        moved = str(change["reason"])
    else:
        moved = f"log-probabilities move by {gap:.3g} nats on average ({change['max_abs']:.3g} at most)"
    where = name_modules(sync["modules"])
    held = f"{len(weights['differences'])} of {weights['compared']} tensors are not what they were"
    yield finding(
        "MP601", "error", f"{moved}, {held}" + (f": {where}" if where else ""),
        observed=gap, bar=0.0, unit="nats", n=sync["num_tokens"],
    )  # fmt: skip


def _data(result: Mapping[str, Any]) -> Iterator[Finding]:
    for check in result["data_quality"]["checks"]:
        if check["status"] == "fail":
            severity: Literal["error", "info"] = "info" if check["code"] in NOT_INVALIDATING else "error"
            yield finding(
                check["code"], severity, check["detail"], observed=check["observed"], bar=check["bar"],
                n=_num_tokens(result),
            )  # fmt: skip
    for leg, count in (result["data_quality"].get("broken_legs") or {}).items():
        yield finding(
            "MP102", "warning", f"{count} values of the leg {leg} are NaN, infinite or sentinels: the leg is left out",
            observed=count, bar=0.0, unit="tokens", n=_num_tokens(result),
        )  # fmt: skip
    if result["provenance"]["model"].get("is_random"):
        yield finding(
            "MP903", "info", f"{result['provenance']['model']['name']} was made with random weights"
        )
    if not result["provenance"].get("has_advantages"):
        yield finding("MP904", "info", "this run has no rewards, so no advantages")
    masked = result["data_quality"].get("masked_tokens") or 0
    if masked:
        yield finding(
            "MP905", "info", f"{masked} response tokens are outside the loss and are left out",
            observed=masked, unit="tokens", n=_num_tokens(result),
        )  # fmt: skip


def _token_drift(result: Mapping[str, Any], bars: Bars) -> Iterator[Finding]:
    token = result["token"]
    k3, n = _value(token, "k3"), token["num_tokens"]
    if token.get("exact"):
        yield finding(
            "MP901", "info", "train/forward equals rollout/decode in every bit (EXACT)", observed=0.0, n=n
        )
        return
    yield from _engine_against_itself(result, bars)
    if k3 is None:
        return
    bar = _k3_bar(result, bars)
    if k3 > bar.value:
        yield finding(
            bar.code, "error", f"token K3 is {k3:.3g} nats, {k3 / bar.value:.3g} times the bar ({bar.meaning})",
            observed=k3, bar=bar.value, unit="nats", n=n,
        )  # fmt: skip
    mean_abs = _value(token, "mean_abs_log_ratio")
    if mean_abs is not None and mean_abs > bars.mean_abs_log_ratio:
        yield finding(
            "MP203", "warning", f"the average token differs by {mean_abs:.3g} nats",
            observed=mean_abs, bar=bars.mean_abs_log_ratio, unit="nats", n=n,
        )  # fmt: skip
    for row in token.get("extreme") or []:
        rate = _value(row, "rate")
        if row["tau"] == 2 and rate is not None and rate > bars.extreme_rate_2:
            yield finding(
                "MP205", "warning", f"{100 * rate:.3g} % of tokens have a probability ratio beyond 2 either way",
                observed=rate, bar=bars.extreme_rate_2, unit="share of tokens", n=n,
            )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _K3Bar:
    value: float
    meaning: str
    code: str


def _k3_bar(result: Mapping[str, Any], bars: Bars) -> _K3Bar:
    """The bar of the token K3: the larger of those that measured floors set, else the published band."""
    floor = result["legs"]["floor"]
    noises = [_value(floor, "repeat_k3"), _value(floor, "decode_prefill_k3")]
    noise = max((value for value in noises if value is not None), default=0.0)
    rounding = _value(floor, "rounding_k3") or 0.0
    by_noise, by_rounding = bars.k3_over_noise * noise, bars.k3_over_rounding * rounding
    if by_rounding >= by_noise and by_rounding > 0:
        return _K3Bar(
            by_rounding, f"{bars.k3_over_rounding:g} times what rounding does to the trainer", "MP201"
        )
    if by_noise > 0:
        return _K3Bar(by_noise, f"{bars.k3_over_noise:g} times the noise of batching", "MP201")
    moe = bool(result["provenance"]["model"].get("num_moe_layers"))
    kind = "MoE" if moe else "dense"
    return _K3Bar(
        bars.k3_moe if moe else bars.k3_dense, f"where published bands for {kind} models end", "MP202"
    )


def _engine_against_itself(result: Mapping[str, Any], bars: Bars) -> Iterator[Finding]:
    floor = result["legs"]["floor"]
    own = _value(floor, "decode_prefill_k3")
    others = [v for v in (_value(floor, "repeat_k3"), _value(floor, "rounding_k3")) if v]
    if own is None or not others:
        return
    bar = bars.decode_prefill_over_floor * max(others)
    if own > bar:
        yield finding(
            "MP204", "error", f"decode and prefill of the rollout engine differ by K3 {own:.3g} nats",
            observed=own, bar=bar, unit="nats", n=result["token"]["num_tokens"],
        )  # fmt: skip


def _tails(result: Mapping[str, Any], bars: Bars) -> Iterator[Finding]:
    sequence = result["sequence"]
    n, k_hat = sequence["num_sequences"], sequence["k_hat"]
    if k_hat["state"] == "value" and k_hat["value"] > k_hat["good_k"]:
        yield finding(
            "MP301", "warning", f"k-hat of W is {k_hat['value']:.2f}; with {n} sequences {k_hat['good_k']:.2f} is the most",
            observed=k_hat["value"], bar=k_hat["good_k"], n=n,
        )  # fmt: skip
    elif k_hat["state"] in ("degenerate", "too_few"):
        yield finding("MP304", "info", f"no k-hat of W: {k_hat['reason']}", n=n)
    ess = _value(sequence, "ess")
    if ess is not None and ess < bars.sequence_ess:
        yield finding(
            "MP302", "warning", f"plain sequence weights would leave {100 * ess:.3g} % of the {n} sequences effective",
            observed=ess, bar=bars.sequence_ess, unit="share of sequences", n=n,
        )  # fmt: skip
    horizon, longest = _value(sequence.get("length_law"), "horizon_tokens"), _value(sequence, "max_length")
    if horizon is not None and longest is not None and longest > horizon:
        yield finding(
            "MP303", "warning", f"responses reach {longest:.0f} tokens, plain sequence weights carry {horizon:.0f}",
            observed=longest, bar=horizon, unit="tokens", n=n,
        )  # fmt: skip


def _routing(result: Mapping[str, Any], bars: Bars) -> Iterator[Finding]:
    routing = result["routing"]
    if not routing.get("available"):
        return
    agreement, n = _value(routing, "set_agreement"), routing["num_tokens"]
    if agreement is not None and agreement < bars.set_agreement:
        yield finding(
            "MP401", "warning", f"{100 * (1 - agreement):.3g} % of routers choose other experts",
            observed=agreement, bar=bars.set_agreement, unit="share of routers", n=n,
        )  # fmt: skip
    own = (routing.get("replay") or {}).get("self_replay") or {}
    if own.get("available") and not own["exact"]:
        yield finding(
            "MP404", "warning",
            f"with a forward's own experts forced on it, {own['num_changed']} of {own['num_tokens']} tokens move, by up to "
            f"{own['max_abs_change']:.3g} nats",
            observed=own["max_abs_change"], bar=0.0, unit="nats", n=own["num_tokens"],
        )  # fmt: skip
    explained = _value(routing.get("replay"), "explained")
    if explained is None:
        return
    if explained >= bars.replay_explained:
        yield finding(
            "MP402", "info", f"with the rollout's experts the trainer's token K3 falls by {100 * explained:.0f} %",
            observed=explained, unit="share of K3", n=result["token"]["num_tokens"],
        )  # fmt: skip
    else:
        yield finding(
            "MP403", "info", f"with the rollout's experts the trainer's token K3 changes by {-100 * explained:+.0f} %",
            observed=explained, unit="share of K3", n=result["token"]["num_tokens"],
        )  # fmt: skip


def _weights(result: Mapping[str, Any], bars: Bars) -> Iterator[Finding]:
    """One finding for all corrections that shift the signs, and one for all that drop much."""
    shifted, dropping = [], []
    for name, method in (result["weights"] or {}).items():
        if not isinstance(method, Mapping) or method.get("available") is False:
            continue
        label = method.get("label", name)
        ratio = _value(method, "mass_ratio")
        beyond = ratio is not None and not bars.sign_balance <= ratio <= 1 / bars.sign_balance
        # With so many corrections one is always odd by chance: only what the data carry counts.
        if ratio is not None and beyond and shifted_for_sure(method):
            shifted.append((min(ratio, 1 / ratio if ratio else 0.0), ratio, label))
        kept = _value(method, "kept_fraction")
        if kept is not None and kept < bars.kept_fraction:
            dropping.append((kept, label))
    if shifted:
        _, ratio, label = min(shifted)
        yield finding(
            "MP501", "warning", f"{label} weighs negative advantages {ratio:.3g} times as much as positive ones"
            + _others([f"{other} {value:.3g}" for _, value, other in sorted(shifted)[1:]]),
            observed=ratio, bar=bars.sign_balance, unit="ratio", n=result["sequence"]["num_sequences"],
        )  # fmt: skip
    if dropping:
        kept, label = min(dropping)
        yield finding(
            "MP502", "warning", f"{label} keeps {100 * kept:.3g} % of the tokens"
            + _others([f"{other} {100 * value:.3g} %" for value, other in sorted(dropping)[1:]]),
            observed=kept, bar=bars.kept_fraction, unit="share of tokens", n=result["token"]["num_tokens"],
        )  # fmt: skip


def _others(named: list[str]) -> str:
    """A clause that names the rest, so that one finding speaks for all."""
    return f" (beyond the bar too: {', '.join(named)})" if named else ""


def _sentence(name: VerdictName, result: Mapping[str, Any], findings: list[Finding], bars: Bars) -> str:
    errors = [item for item in findings if item.severity == "error"]
    clause = cause_clause(result)
    if name == "inconclusive":
        # Too little data comes before all; without it, data that no number can be had of.
        first = next((item for item in errors if item.code == "MP902"), errors[0])
        return f"Nothing can be concluded: {first.detail}{clause if first.code != 'MP902' else ''}."
    reload = next((item for item in errors if item.code == "MP601"), None)
    tail = "." if reload is None else f". {_RELOAD}: {reload.detail}."
    first_drift = next((item for item in errors if item is not reload), None)
    if first_drift is not None:
        return f"The two sides drift: {first_drift.title} - {first_drift.detail}{clause}{tail}"
    if result["token"].get("exact"):
        agree = "Rollout engine and trainer agree in every bit on these tokens"
    else:
        k3, bar = _value(result["token"], "k3"), _k3_bar(result, bars)
        agree = f"Rollout engine and trainer agree: token K3 is {k3:.3g} nats, the bar is {bar.value:.3g} ({bar.meaning})"
    return agree + clause + tail
