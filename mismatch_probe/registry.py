"""Named implementations behind a Protocol: filled by a decorator here, by entry points from other packages."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from mismatch_probe.errors import ConfigError

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Registered(Generic[T]):
    """One entry of a registry.

    Attributes:
        name: What a user writes.
        item: What it stands for.
        summary: One line for a table.
    """

    name: str
    item: T
    summary: str


class Registry(Generic[T]):
    """Implementations by name.

    Args:
        kind: What the entries are, for messages ("rollout engine").
        group: Entry-point group in which other packages announce theirs; loading an entry point must register it.
        load_own: Imports this package's own implementations; called once, at first use, so that imports stay cheap.
    """

    def __init__(self, kind: str, group: str, load_own: Callable[[], None]) -> None:
        self._kind = kind
        self._group = group
        self._load_own = load_own
        self._entries: dict[str, Registered[T]] = {}
        self._loaded = False

    def add(self, name: str, item: T, summary: str) -> None:
        """Registers `item` under `name`.

        Raises:
            ValueError: The name is taken by something else.
        """
        held = self._entries.get(name)
        if held is not None and held.item is not item:
            raise ValueError(f"{self._kind} {name!r} is registered twice")
        self._entries[name] = Registered(name, item, summary)

    def get(self, name: str) -> Registered[T]:
        """Looks an implementation up.

        Raises:
            ConfigError: No such name; the message lists what there is and the hint names the nearest.
        """
        self._load()
        if name not in self._entries:
            nearest = difflib.get_close_matches(name, self._entries, n=1)
            known = ", ".join(sorted(self._entries))
            raise ConfigError(
                f"unknown {self._kind} {name!r}",
                hint=f"did you mean {nearest[0]!r}?" if nearest else f"known: {known}",
            )
        return self._entries[name]

    def __iter__(self) -> Iterator[Registered[T]]:
        self._load()
        return iter(sorted(self._entries.values(), key=lambda entry: entry.name))

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        self._load_own()
        for point in entry_points(group=self._group):
            try:
                point.load()
            except Exception:  # a broken third-party package must not take the others down
                logger.warning(
                    "could not load %s %r from %s", self._kind, point.name, point.value, exc_info=True
                )
