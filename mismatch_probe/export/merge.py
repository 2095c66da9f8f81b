"""An export put into a config that a user has: comments, order and everything else in it stay."""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, replace
from io import StringIO
from typing import Any

from mismatch_probe.errors import ConfigError
from mismatch_probe.export.annotated import Entry, flow
from mismatch_probe.export.exporter import ExportedConfig

_COMMENT_WIDTH = 90

Table = MutableMapping[str, Any]


@dataclass(frozen=True, slots=True)
class Merged:
    """A config with an export in it.

    Attributes:
        text: The whole file.
        changed: Dotted keys that got another value.
        added: Dotted keys that were not there.
    """

    text: str
    changed: tuple[str, ...]
    added: tuple[str, ...]

    def diff(self, before: str, name: str) -> str:
        """A unified diff against the text before; empty where nothing changes."""
        lines = difflib.unified_diff(
            before.splitlines(keepends=True),
            self.text.splitlines(keepends=True),
            f"{name} (as it is)",
            f"{name} (merged)",
        )
        return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)


def merge_config(before: str, exported: ExportedConfig) -> Merged:
    """Sets the exported keys in a config.

    A key that is there gets the exported value and keeps its comments; a value that is equal already is left as it is
    written. A new key comes at the end of its parent, with the measurement that set it as its comment.

    Args:
        before: The config, YAML or TOML as the export is.
        exported: The export.

    Raises:
        ConfigError: The export is a shell script, the config cannot be read, or a parent of a key is no table in it or is
            shared between places by a YAML anchor.
    """
    if exported.format in ("yaml", "toml"):
        merge = _merge_yaml if exported.format == "yaml" else _merge_toml
        merged = merge(before.replace("\r\n", "\n"), exported.entries)
        if not merged.changed and not merged.added:
            return Merged(before, (), ())
        return replace(merged, text=merged.text.replace("\n", "\r\n")) if "\r\n" in before else merged
    raise ConfigError(
        "what was exported is an array of command-line arguments, which no file can be merged with",
        hint='write it with --out, `source` it in the launch script and add "${MISMATCH_ARGS[@]}" to the command',
    )


def _merge_yaml(before: str, entries: Iterable[Entry]) -> Merged:
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap
    from ruamel.yaml.error import YAMLError
    from ruamel.yaml.util import load_yaml_guess_indent

    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    try:
        *_, offset = load_yaml_guess_indent(before)
        steps = [len(spaces) for spaces in re.findall(r"^( +)[^\s#-]", before, re.MULTILINE)]
        step = min(steps, default=2)
        yaml.indent(mapping=step, sequence=(offset or 0) + 2, offset=offset or 0)
        tree = yaml.load(before)
    except (YAMLError, ValueError, LookupError, TypeError, RecursionError, AssertionError) as error:
        # Besides its own errors the parser has those of what it trips over: an integer of thousands of digits, a line of
        # nothing but dashes, nesting without an end.
        raise ConfigError(
            f"the config to merge into is no YAML: {' '.join(str(error).split())[:500]}"
        ) from error
    if tree is None:
        # Nothing but comments: they stay on top, which the parser would not keep.
        tree, kept = CommentedMap(), before if before.endswith("\n") or not before else f"{before}\n"
    else:
        kept = ""
    if not isinstance(tree, CommentedMap):
        raise ConfigError("the config to merge into is no mapping of keys to values")
    shared = _shared(tree)

    def put(parent: Table, key: str, entry: Entry, depth: int) -> None:
        new = key not in parent
        # Read from the text that an export would have: quotes and exponents stay what every parser takes them for.
        parent[key] = yaml.load(f"value: {flow(entry.value)}")["value"]
        if new and isinstance(parent, CommentedMap):
            because = "\n".join(textwrap.wrap(entry.because, _COMMENT_WIDTH, break_on_hyphens=False))
            parent.yaml_set_comment_before_after_key(key, before=because, indent=depth * step)

    def guard(parent: Table, path: str) -> None:
        if id(parent) in shared:
            raise ConfigError(
                f"{path} is shared with another place by an anchor, which would change with it",
                hint="write the keys out in one of the places and merge again",
            )

    changed, added = _set_all(tree, entries, CommentedMap, put, guard)
    out = StringIO()
    yaml.dump(tree, out)
    return Merged(kept + out.getvalue(), changed, added)


def _merge_toml(before: str, entries: Iterable[Entry]) -> Merged:
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        document = tomlkit.parse(before)
    except TOMLKitError as error:
        raise ConfigError(f"the config to merge into is no TOML: {error}") from error

    def put(parent: Table, key: str, entry: Entry, depth: int) -> None:
        item = tomlkit.item(_plain(entry.value))
        if key not in parent:
            item.comment(" ".join(entry.because.split()))
        parent[key] = item

    changed, added = _set_all(document, entries, tomlkit.table, put, lambda parent, path: None)
    return Merged(tomlkit.dumps(document), changed, added)


def _set_all(
    tree: Table,
    entries: Iterable[Entry],
    make: Callable[[], Table],
    put: Callable[[Table, str, Entry, int], None],
    guard: Callable[[Table, str], None],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    changed: list[str] = []
    added: list[str] = []
    for entry in entries:
        *parents, leaf = entry.key.split(".")
        here = tree
        for depth, name in enumerate(parents):
            if here.get(name) is None:
                guard(here, ".".join(parents[:depth]) or "the config")
                here[name] = make()
            here = here[name]
            if not isinstance(here, MutableMapping):
                raise ConfigError(f"{'.'.join(parents[: depth + 1])} is no table in the config to merge into")
        if leaf in here and _same(here[leaf], _plain(entry.value)):
            continue
        guard(here, ".".join(parents) or "the config")
        (changed if leaf in here else added).append(entry.key)
        put(here, leaf, entry, len(parents))
    return tuple(changed), tuple(added)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value


def _same(there: Any, value: Any) -> bool:
    """Whether a value is the exported one already; true is not 1, and 2 is 2.0."""
    if isinstance(there, bool) or isinstance(value, bool) or there is None or value is None:
        return there is value
    return bool(there == value)


def _shared(tree: Any) -> frozenset[int]:
    """The ids of mappings that the tree reaches in more than one way."""
    seen: set[int] = set()
    twice: set[int] = set()
    stack = [tree]
    while stack:
        item = stack.pop()
        if isinstance(item, Mapping):
            (twice if id(item) in seen else seen).add(id(item))
            if id(item) not in twice:
                stack += list(item.values())
        elif isinstance(item, list):
            stack += item
    return frozenset(twice)
