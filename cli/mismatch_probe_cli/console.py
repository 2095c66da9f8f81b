"""What the command line writes to: results to stdout, progress and errors to stderr."""

from __future__ import annotations

import os
import re
import sys
import time
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.markup import escape

from mismatch_probe.errors import MismatchProbeError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_PLAIN_INTERVAL_S = 15.0


def clean(text: str) -> str:
    """Text without control or direction characters, and with rich's markup escaped."""
    return escape(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", text))


class _PipeConsole(Console):
    """A console whose reader may go away (head, less): the status is still the verdict's."""

    def on_broken_pipe(self) -> None:
        """Rich would end the process with status 1, which reads as a verdict."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def stdout() -> Console:
    """Where results go; without a terminal, as wide as the text needs."""
    console = _PipeConsole(highlight=False)
    return console if console.is_terminal else _PipeConsole(highlight=False, width=110, color_system=None)


def stderr() -> Console:
    """Where progress and errors go."""
    return Console(stderr=True, highlight=False)


def show_error(error: MismatchProbeError) -> None:
    """One line that says what is wrong, one that says the mend."""
    console = stderr()
    console.print(f"[bold red]error:[/] {clean(error.message)}", soft_wrap=True)
    if error.hint:
        console.print(f"  [dim]mend:[/] {clean(error.hint)}", soft_wrap=True)


class ProgressWatcher:
    """Follows a run: bars on a terminal, a line now and then without one."""

    def __init__(self) -> None:
        self._console = stderr()
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._done: dict[str, list[int]] = {}
        self._began: dict[str, float] = {}
        self._last_line = 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._progress = Progress(
                TextColumn("{task.description:<16}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("sequences"),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(compact=True),
                console=self._console,
            )
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def stage_started(self, stage: str, total_sequences: int, done_sequences: int, detail: str) -> None:
        """A stage begins."""
        self._done[stage] = [done_sequences, 0, total_sequences]
        self._began[stage] = time.monotonic()
        if self._progress is not None:
            self._tasks[stage] = self._progress.add_task(
                stage, total=total_sequences, completed=done_sequences, rate=""
            )
        else:
            held = f", {done_sequences} done before" if done_sequences else ""
            self._console.print(
                f"{stage}: {total_sequences} sequences{held} ({clean(detail)})", soft_wrap=True
            )

    def stage_progress(self, stage: str, sequences: int, tokens: int) -> None:
        """So many more are done."""
        done = self._done[stage]
        done[0] += sequences
        done[1] += tokens
        elapsed = time.monotonic() - self._began[stage]
        rate = f"{done[1] / elapsed:,.0f} tokens/s" if done[1] and elapsed > 1 else ""
        if self._progress is not None:
            self._progress.update(self._tasks[stage], completed=done[0], rate=rate)
        elif time.monotonic() - self._last_line > _PLAIN_INTERVAL_S and done[0] < done[2]:
            self._last_line = time.monotonic()
            self._console.print(f"{stage}: {done[0]} of {done[2]} sequences {rate}", soft_wrap=True)

    def stage_finished(self, stage: str) -> None:
        """A stage is on disk."""
        done = self._done.get(stage, [0, 0, 0])
        elapsed = time.monotonic() - self._began.get(stage, time.monotonic())
        if self._progress is not None and stage in self._tasks:
            self._progress.update(self._tasks[stage], completed=done[2])
        elif self._progress is None:
            self._console.print(f"{stage}: done in {elapsed:.1f} s", soft_wrap=True)

    def message(self, text: str) -> None:
        """A line."""
        (self._progress.console if self._progress is not None else self._console).print(
            f"[dim]{clean(text)}[/]", soft_wrap=True
        )
