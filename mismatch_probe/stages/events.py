"""What a running stage tells whoever watches; the watcher prints, the stages do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Watcher(Protocol):
    """Follows a run. Every method may be called at any time and must be quick."""

    def stages_planned(self, stages: Sequence[tuple[str, int | None]]) -> None:
        """Which stages will come, as far as it is known before the first.

        Args:
            stages: In order, each with the sequences that it still has to do; None where that shows when it begins.
        """
        ...

    def stage_started(self, stage: str, total_sequences: int, done_sequences: int, detail: str) -> None:
        """A stage begins.

        Args:
            stage: Such as "record rollout/decode".
            total_sequences: Sequences of the whole run.
            done_sequences: Of these, how many an earlier run has done.
            detail: One line about what runs it.
        """
        ...

    def stage_progress(self, stage: str, sequences: int, tokens: int) -> None:
        """So many more sequences and tokens are done."""
        ...

    def stage_finished(self, stage: str) -> None:
        """A stage is complete and on disk."""
        ...

    def message(self, text: str) -> None:
        """Something worth a line."""
        ...


class SilentWatcher:
    """Watches without a word; the default of the Python API."""

    def stages_planned(self, stages: Sequence[tuple[str, int | None]]) -> None:
        """Ignored."""

    def stage_started(self, stage: str, total_sequences: int, done_sequences: int, detail: str) -> None:
        """Ignored."""

    def stage_progress(self, stage: str, sequences: int, tokens: int) -> None:
        """Ignored."""

    def stage_finished(self, stage: str) -> None:
        """Ignored."""

    def message(self, text: str) -> None:
        """Ignored."""
