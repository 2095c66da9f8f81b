"""What two results say apart from their parts: findings, settings, versions, and numbers with their stored intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mismatch_probe.compare.differences import Difference
from mismatch_probe.compare.metrics import METRICS
from mismatch_probe.stats.estimate import Estimate

# What differs between any two runs and says nothing of them.
_VOLATILE = frozenset(
    {"command", "created_at", "run_id", "responses_sha256", "mean_reward", "num_sequences", "num_tokens",
     "num_prompt_tokens", "finish_reasons", "has_advantages"}
)  # fmt: skip
_WHERE: dict[str, tuple[str, ...]] = {
    "k3": ("token", "k3"),
    "mean_abs_log_ratio": ("token", "mean_abs_log_ratio"),
    "mean_log_ratio": ("token", "mean_log_ratio"),
    "log_weight_mean": ("sequence", "log_weight", "mean"),
    "log_weight_std": ("sequence", "log_weight", "std"),
}
_UNTESTED = (
    (
        "k_hat",
        "k-hat of W",
        ("sequence", "k_hat"),
        "a fit of the tail: no test of a difference was found to hold",
    ),
    (
        "ess",
        "ESS of sequences",
        ("sequence", "ess"),
        "its spread hangs on single sequences: see the spread of log W",
    ),
    (
        "explained",
        "K3 explained by routing replay",
        ("routing", "replay", "explained"),
        "of two legs, not of the drift",
    ),
)


@dataclass(frozen=True, slots=True)
class Setting:
    """Something of the configuration, the engines or the versions that differs.

    Attributes:
        key: Dotted, as in `provenance`.
        first: In the first run; None where it has no such key.
        second: In the second run.
    """

    key: str
    first: Any
    second: Any


@dataclass(frozen=True, slots=True)
class Untested:
    """A number that is shown without a test.

    Attributes:
        name: Stable name.
        label: For readers.
        first: In the first run, or None.
        second: In the second run, or None.
        reason: Why no test.
    """

    name: str
    label: str
    first: float | None
    second: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class FindingChange:
    """A finding that only one run has, or that both have with another weight.

    Attributes:
        code: Stable code.
        change: `new`, `gone`, or `changed` for another severity.
        severity: In the run that has it; of the second run where both have.
        title: What it is.
        detail: One sentence with the numbers.
    """

    code: str
    change: str
    severity: str
    title: str
    detail: str


def changed_settings(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[Setting, ...]:
    """What differs in `provenance`, apart from names and counts of the run itself."""
    one, two = dict(_flat(first["provenance"])), dict(_flat(second["provenance"]))
    return tuple(
        Setting(key, one.get(key), two.get(key))
        for key in sorted({*one, *two})
        if one.get(key) != two.get(key) and key.partition(".")[0] not in _VOLATILE
    )


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def changed_findings(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[FindingChange, ...]:
    """New, gone and changed findings, by code; errors first."""
    one, two = ({item["code"]: item for item in result["findings"]} for result in (first, second))
    changes = []
    for code in sorted({*one, *two}):
        before, after = one.get(code), two.get(code)
        if before is not None and after is not None and before["severity"] == after["severity"]:
            continue
        change = "new" if before is None else "gone" if after is None else "changed"
        item = after or before or {}
        changes.append(FindingChange(code, change, item["severity"], item["title"], item["detail"]))
    order = ("error", "warning", "info")
    return tuple(sorted(changes, key=lambda item: (order.index(item.severity), item.code)))


def untested(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[Untested, ...]:
    """Numbers that are worth a look and have no test."""
    rows = []
    for name, label, where, reason in _UNTESTED:
        one, two = _number(_at(first, where)), _number(_at(second, where))
        if one is not None or two is not None:
            rows.append(Untested(name, label, one, two, reason))
    return tuple(rows)


def compare_results(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[Difference, ...]:
    """Compares by the stored intervals alone: beyond noise where they do not meet, which two runs rarely do by chance.

    This is conservative, above all for runs of the same prompts, which the intervals know nothing of.
    """
    rows = []
    for metric in METRICS:
        where = _WHERE.get(metric.name)
        one, two = (None if where is None else _at(result, where) for result in (first, second))
        if not isinstance(one, Mapping) or not isinstance(two, Mapping):
            continue
        low, high = _number(one), _number(two)
        bounds: list[Any] = [estimate.get(end) for estimate in (one, two) for end in ("ci_low", "ci_high")]
        gap = None if low is None or high is None else high - low
        n = int(one.get("n") or 0) + int(two.get("n") or 0)
        if gap is None or any(bound is None for bound in bounds):
            reason = "a run has no interval for it"
            rows.append(
                Difference(
                    metric.name, metric.label, metric.unit, low, high, Estimate(gap, None, None, n, reason), None,
                    "unknown", None, reason,
                )
            )  # fmt: skip
            continue
        first_low, first_high, second_low, second_high = bounds
        apart = second_high < first_low or second_low > first_high
        worse = (gap > 0) == (metric.worse == "more") if apart and metric.worse else None
        reason = "from the two intervals alone: the runs' parts are not there"
        rows.append(
            Difference(
                metric.name, metric.label, metric.unit, low, high, Estimate(gap, None, None, n, reason), None,
                "yes" if apart else "no", worse,
            )
        )  # fmt: skip
    return tuple(rows)


def _at(result: Mapping[str, Any], where: tuple[str, ...]) -> Any:
    node: Any = result
    for key in where:
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def _number(item: Any) -> float | None:
    value = item.get("value") if isinstance(item, Mapping) else item
    return float(value) if isinstance(value, int | float) else None
