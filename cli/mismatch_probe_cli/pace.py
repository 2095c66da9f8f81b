"""How fast stages go and how long the rest takes: only from what was timed in this run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Until then a rate is noise.
SETTLED_S = 1.0
# Legs of one pace: those that go token by token, and passes of the same trainer over the same sequences.
_ALIKE = {"rollout/decode": "token by token", "rollout/forced": "token by token"}


@dataclass(slots=True)
class StagePace:
    """One stage as far as it is.

    Attributes:
        name: Such as "train/forward".
        total: Its sequences, those of an earlier run included; None: it has not begun and nobody knows yet.
        held: Sequences that an earlier run has done.
        done: Sequences done, `held` included.
        tokens: Tokens done in this run.
        began: When it began, by the caller's clock, in seconds; None: not yet.
        ended: When it ended; None: not yet.
        counted: When tokens were last reported: an engine reports those of a part at its end, the sequences as they finish.
    """

    name: str
    total: int | None
    held: int = 0
    done: int = 0
    tokens: int = 0
    began: float | None = None
    ended: float | None = None
    counted: float = 0.0

    @property
    def kind(self) -> str:
        """Stages of one kind take about as long a sequence as each other."""
        return "train" if self.name.startswith("train/") else _ALIKE.get(self.name, self.name)

    def elapsed(self, now: float) -> float:
        """Seconds since it began, up to its end."""
        return (
            0.0 if self.began is None else (now if self.ended is None else min(now, self.ended)) - self.began
        )

    def tokens_per_second(self) -> float | None:
        """Tokens of this run over the time up to their last report, or None where that is noise."""
        elapsed = self.elapsed(self.counted)
        return self.tokens / elapsed if self.tokens > 0 and elapsed > SETTLED_S else None

    def seconds_per_sequence(self, now: float) -> float | None:
        """Time over the sequences of this run, or None where none is done or it is noise."""
        new, elapsed = self.done - self.held, self.elapsed(now)
        return elapsed / new if new > 0 and (elapsed > SETTLED_S or self.ended is not None) else None

    def seconds_left(self, now: float) -> float | None:
        """Time that its other sequences take at its own pace, or None before it has one."""
        pace = self.seconds_per_sequence(now)
        if self.ended is not None:
            return 0.0
        return None if pace is None or self.total is None else max(self.total - self.done, 0) * pace


@dataclass(frozen=True, slots=True)
class Whole:
    """All stages together.

    Attributes:
        ended: Stages that are done.
        stages: All of them.
        seconds_left: What the stages with a known pace still take; None where nothing is known of any.
        untimed: Stages to come whose pace nobody knows yet; their time is not in `seconds_left`.
    """

    ended: int
    stages: int
    seconds_left: float | None
    untimed: int


class Pace:
    """Keeps the time of stages; whoever calls gives the clock."""

    def __init__(self) -> None:
        self._stages: dict[str, StagePace] = {}

    def plan(self, stages: Sequence[tuple[str, int | None]]) -> None:
        """Begins anew with the stages that will come; the paces of other engines say nothing of these."""
        self._stages = {name: StagePace(name, total) for name, total in stages}

    def start(self, name: str, total: int, done: int, now: float) -> StagePace:
        """A stage begins, planned or not."""
        stage = StagePace(name, total, held=done, done=done, began=now)
        self._stages[name] = stage
        return stage

    def advance(self, name: str, sequences: int, tokens: int, now: float) -> StagePace | None:
        """So many more are done, or fewer where a part is done again; None of a stage that has not begun."""
        stage = self._stages.get(name)
        if stage is None or stage.began is None:
            return None
        stage.done += sequences
        stage.tokens += tokens
        if tokens > 0:
            stage.counted = now
        return stage

    def finish(self, name: str, now: float) -> StagePace | None:
        """A stage is complete."""
        stage = self._stages.get(name)
        if stage is not None and stage.began is not None:
            stage.ended = now
        return stage

    def number(self, name: str) -> int:
        """Where a stage stands, from 1."""
        return list(self._stages).index(name) + 1

    def whole(self, now: float) -> Whole:
        """All stages together. A stage to come takes as long a sequence as those of its kind took."""
        stages = list(self._stages.values())
        left: list[float] = []
        untimed = 0
        for stage in stages:
            if stage.ended is not None:
                continue
            own = stage.seconds_left(now)
            alike = [pace for other in stages if other.kind == stage.kind
                     and (pace := other.seconds_per_sequence(now)) is not None]  # fmt: skip
            if own is not None:
                left.append(own)
            elif alike and stage.total is not None:
                left.append((stage.total - stage.done) * sum(alike) / len(alike))
            else:
                untimed += 1
        ended = sum(stage.ended is not None for stage in stages)
        return Whole(ended, len(stages), sum(left) if left else None, untimed)


def duration(seconds: float) -> str:
    """Minutes and seconds, or hours and minutes."""
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"
