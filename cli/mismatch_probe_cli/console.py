"""What the command line writes to: results to stdout, progress and errors to stderr."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.markup import escape

from mismatch_probe.errors import MismatchProbeError
from mismatch_probe_cli.pace import Pace, StagePace, duration

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_PLAIN_INTERVAL_S = 15.0
# Columns of a terminal from which on the progress has room for more than names, rates and what is left.
_ROOM_FOR_TOTALS, _ROOM_FOR_TOKENS, _ROOM_FOR_BAR, _ROOM_FOR_LONG_BAR = 60, 76, 88, 102


def clean(text: str) -> str:
    """Text without control or direction characters, and with rich's markup escaped."""
    return escape(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", text))


class _OutputConsole(Console):
    """A console that writes no escape codes where NO_COLOR asks for none."""

    def __init__(self, **options: Any) -> None:
        if os.environ.get("NO_COLOR"):
            # Rich itself would leave bold and dim.
            options["color_system"] = None
        super().__init__(highlight=False, **options)


class _PipeConsole(_OutputConsole):
    """A console whose reader may go away (head, less): the status is still the verdict's."""

    def on_broken_pipe(self) -> None:
        """Rich would end the process with status 1, which reads as a verdict."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def stdout() -> Console:
    """Where results go; without a terminal, as wide as the text needs."""
    console = _PipeConsole()
    return console if console.is_terminal else _PipeConsole(width=110, color_system=None)


def stderr() -> Console:
    """Where progress and errors go."""
    return _OutputConsole(stderr=True)


def show_error(error: MismatchProbeError) -> None:
    """One line that says what is wrong, one that says the mend."""
    console = stderr()
    console.print(f"[bold red]error:[/] {clean(error.message)}", soft_wrap=True)
    if error.hint:
        console.print(f"  [dim]mend:[/] {clean(error.hint)}", soft_wrap=True)


class ProgressWatcher:
    """Follows a run: bars on a terminal, a line now and then without one.

    Args:
        clock: Seconds that only grow.
        console: Where to; None: stderr.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, console: Console | None = None) -> None:
        self._clock = clock
        self._console = console or stderr()
        self._live = self._console.is_terminal and not self._console.is_dumb_terminal
        self._pace = Pace()
        self._planned = 0
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._whole: TaskID | None = None
        self._last_line = clock()

    def __enter__(self) -> Self:
        if self._live:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn

            columns: list[ProgressColumn] = [TextColumn("{task.description}")]
            if self._console.width >= _ROOM_FOR_TOTALS:
                columns.append(MofNCompleteColumn())
            if self._console.width >= _ROOM_FOR_BAR:
                columns.insert(
                    1, BarColumn(bar_width=24 if self._console.width >= _ROOM_FOR_LONG_BAR else 10)
                )
            columns.append(TextColumn("{task.fields[said]}"))
            self._progress = Progress(*columns, console=self._console)
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def stages_planned(self, stages: Sequence[tuple[str, int | None]]) -> None:
        """All stages in order, before the first."""
        self._pace.plan(stages)
        self._planned = len(stages)
        if self._progress is not None and self._planned > 1:
            if self._whole is None:
                self._whole = self._progress.add_task("stages", total=self._planned, said="")
            self._progress.reset(self._whole, total=self._planned, said="")

    def stage_started(self, stage: str, total_sequences: int, done_sequences: int, detail: str) -> None:
        """A stage begins."""
        self._pace.start(stage, total_sequences, done_sequences, self._clock())
        self._last_line = self._clock()
        if self._progress is not None:
            self._tasks[stage] = self._progress.add_task(
                stage, total=total_sequences, completed=done_sequences, said=""
            )
            self._show_whole()
            return
        number = f"stage {self._pace.number(stage)} of {self._planned}, " if self._planned > 1 else ""
        held = f", {done_sequences} done before" if done_sequences else ""
        self._say(f"{number}{stage}: {total_sequences} sequences{held} ({clean(detail)})")

    def stage_progress(self, stage: str, sequences: int, tokens: int) -> None:
        """So many more are done."""
        now = self._clock()
        paced = self._pace.advance(stage, sequences, tokens, now)
        if paced is None:
            return
        if self._progress is not None:
            self._progress.update(self._tasks[stage], completed=paced.done, said=self._stage_text(paced))
            self._show_whole()
        elif now - self._last_line > _PLAIN_INTERVAL_S and paced.done < (paced.total or 0):
            self._last_line = now
            whole = self._whole_text()
            said = [f"{stage}: {paced.done} of {paced.total} sequences", self._stage_text(paced)]
            self._say(", ".join(filter(None, said)) + (f"; all stages: {whole}" if whole else ""))

    def stage_finished(self, stage: str) -> None:
        """A stage is on disk."""
        now = self._clock()
        paced = self._pace.finish(stage, now)
        if paced is None:
            return
        if self._progress is not None and stage in self._tasks:
            said = [*self._counts(paced), f"{paced.elapsed(now):.1f} s"]
            self._progress.update(self._tasks[stage], completed=paced.total, said=", ".join(said))
            self._show_whole()
        elif self._progress is None:
            said = [f"{stage}: done in {paced.elapsed(now):.1f} s", *self._counts(paced)]
            whole = self._whole_text()
            self._say(", ".join(said) + (f"; all stages: {whole}" if whole else ""))

    def message(self, text: str) -> None:
        """A line."""
        self._console.print(f"[dim]{clean(text)}[/]", soft_wrap=not self._console.is_terminal)

    @property
    def _is_narrow(self) -> bool:
        return self._live and self._console.width < _ROOM_FOR_TOTALS

    def _say(self, line: str) -> None:
        self._console.print(line, soft_wrap=not self._console.is_terminal)

    def _counts(self, stage: StagePace) -> list[str]:
        rate = stage.tokens_per_second()
        tokens = stage.tokens if not self._live or self._console.width >= _ROOM_FOR_TOKENS else 0
        unit = "tok/s" if self._is_narrow else "tokens/s"
        return ([f"{tokens:,} tokens"] if tokens > 0 else []) + (
            [f"{rate:,.0f} {unit}"] if rate is not None else []
        )

    def _stage_text(self, stage: StagePace) -> str:
        left = stage.seconds_left(self._clock())
        return ", ".join(self._counts(stage) + ([f"{duration(left)} left"] if left is not None else []))

    def _whole_text(self) -> str:
        """Empty where there is one stage only, or no pace is known."""
        whole = self._pace.whole(self._clock())
        if self._planned < 2 or whole.seconds_left is None or whole.ended == whole.stages:
            return ""
        left = duration(whole.seconds_left)
        if self._live and self._console.width < _ROOM_FOR_BAR:
            return f"about {left}" + (f" + {whole.untimed} untimed" if whole.untimed else " left")
        stages = f"{whole.untimed} stage{'s' if whole.untimed > 1 else ''}"
        return f"about {left} left" + (f" and {stages} not timed yet" if whole.untimed else "")

    def _show_whole(self) -> None:
        if self._progress is not None and self._whole is not None:
            done, said = self._pace.whole(self._clock()).ended, self._whole_text()
            if self._is_narrow:
                said = ", ".join(filter(None, (f"{done}/{self._planned}", said.removeprefix("about "))))
            self._progress.update(self._whole, completed=done, said=said)
