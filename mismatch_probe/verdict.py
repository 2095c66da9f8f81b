"""From a measured result and bars to findings and a verdict; reads result.json's sections, so a run can be judged again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mismatch_probe.causes.as_findings import cause_clause, with_causes
from mismatch_probe.config.bars import Bars
from mismatch_probe.errors import EXIT_DRIFT, EXIT_INCONCLUSIVE, EXIT_PASS
from mismatch_probe.findings import Finding, finding
from mismatch_probe.outcomes import k3_bar, outcomes, value_of

VerdictName = Literal["pass", "drift", "inconclusive"]
_EXIT_CODES: dict[VerdictName, int] = {
    "pass": EXIT_PASS,
    "drift": EXIT_DRIFT,
    "inconclusive": EXIT_INCONCLUSIVE,
}
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
    broken = [outcome.finding() for outcome in outcomes(result, bars) if outcome.status == "broken"]
    short = [item for item in broken if item.code == "MP902"]
    findings = with_causes([*(item for item in broken if item not in short), *_facts(result, bars)], result)
    name: VerdictName = "drift" if any(item.severity == "error" for item in findings) else "pass"
    # One line is enough to say that there is too little.
    findings += short[:1]
    if short or result["token"].get("available") is False:
        name = "inconclusive"
    findings.sort(key=lambda item: (_ORDER[item.severity], item.code))
    return Verdict(name, _EXIT_CODES[name], _sentence(name, result, findings, bars), tuple(findings))


def _facts(result: Mapping[str, Any], bars: Bars) -> Iterator[Finding]:
    """What is worth a line and is held against no bar."""
    token, provenance = result["token"], result["provenance"]
    n = token.get("num_tokens", provenance.get("num_tokens"))
    if provenance["model"].get("is_random"):
        yield finding("MP903", "info", f"{provenance['model']['name']} was made with random weights")
    if not provenance.get("has_advantages"):
        yield finding("MP904", "info", "this run has no rewards, so no advantages")
    masked = result["data_quality"].get("masked_tokens") or 0
    if masked:
        yield finding(
            "MP905", "info", f"{masked} response tokens are outside the loss and are left out",
            observed=masked, unit="tokens", n=n,
        )  # fmt: skip
    if token.get("available") is False:
        return
    if token.get("exact"):
        yield finding(
            "MP901", "info", "train/forward equals rollout/decode in every bit (EXACT)", observed=0.0, n=n
        )
    sequence = result["sequence"]
    if sequence["k_hat"]["state"] in ("degenerate", "too_few"):
        yield finding(
            "MP304", "info", f"no k-hat of W: {sequence['k_hat']['reason']}", n=sequence["num_sequences"]
        )
    replay = (result["routing"].get("replay") if result["routing"].get("available") else None) or {}
    explained = value_of(replay, "explained")
    if explained is not None and explained >= bars.replay_explained:
        yield finding(
            "MP402", "info", f"with the rollout's experts the trainer's token K3 falls by {100 * explained:.0f} %",
            observed=explained, unit="share of K3", n=n,
        )  # fmt: skip
    elif explained is not None:
        yield finding(
            "MP403", "info", f"with the rollout's experts the trainer's token K3 changes by {-100 * explained:+.0f} %",
            observed=explained, unit="share of K3", n=n,
        )  # fmt: skip


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
    elif (k3 := value_of(result["token"], "k3")) is None:
        agree = "No finding is an error, and the token K3 has no number"
    else:
        bar = k3_bar(result, bars)
        agree = f"Rollout engine and trainer agree: token K3 is {k3:.3g} nats, the bar is {bar.value:.3g} ({bar.meaning})"
    return agree + clause + tail
