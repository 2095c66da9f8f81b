"""JSON Schema of what `to_json` makes of a dataclass: types from its hints, words from its docstring."""

from __future__ import annotations

import collections.abc
import dataclasses
import re
import types
import typing
from typing import Any

import numpy as np

Schema = dict[str, Any]
NUMBER: Schema = {"type": "number"}
INTEGER: Schema = {"type": "integer"}
TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
OPEN: Schema = {"type": "object"}
_PLAIN = {float: NUMBER, int: INTEGER, str: TEXT, bool: FLAG, type(None): {"type": "null"}}
_ATTRIBUTE = re.compile(r"^ {4,8}(\w+): (.*)$")


class Schemas:
    """Schemas of dataclasses, each once, by the name of the class."""

    def __init__(self) -> None:
        self.definitions: dict[str, Schema] = {}
        self._owner: dict[str, type] = {}

    def of(self, kind: Any) -> Schema:
        """The schema of what `to_json` makes of a value of this type."""
        if kind in _PLAIN:
            return dict(_PLAIN[kind])
        if dataclasses.is_dataclass(kind):
            return self._reference(typing.cast(type, kind))
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if kind is Any:
            return {}
        if origin in (typing.Union, types.UnionType):
            return either(*(self.of(argument) for argument in arguments))
        if origin is typing.Literal:
            return {"enum": list(arguments)}
        if origin is np.ndarray:
            return {"type": "array"}
        if origin in (dict, collections.abc.Mapping):
            return {"type": "object", "additionalProperties": self.of(arguments[1])}
        if origin is tuple and Ellipsis not in arguments:
            items = [self.of(argument) for argument in arguments]
            return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
        if origin in (tuple, list, collections.abc.Sequence):
            return array(self.of(arguments[0]))
        raise TypeError(f"no schema for {kind}")

    def fields(self, kind: type) -> dict[str, Schema]:
        """Properties of a dataclass, described by its docstring."""
        hints, said = typing.get_type_hints(kind), attributes(kind.__doc__ or "")
        fields = dataclasses.fields(kind)
        return {
            field.name: described(self.of(hints[field.name]), said.get(field.name, "")) for field in fields
        }

    def _reference(self, kind: type) -> Schema:
        name = kind.__name__
        if self._owner.setdefault(name, kind) is not kind:
            # Two classes of one name would hide each other.
            name = f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"
        if name not in self.definitions:
            self.definitions[name] = {}
            self.definitions[name] = described(closed(self.fields(kind)), first_sentence(kind.__doc__ or ""))
        return {"$ref": f"#/$defs/{name}"}


def closed(properties: dict[str, Schema], *, optional: typing.Collection[str] = ()) -> Schema:
    """An object of these keys and no others; a reason is there only where a number is not."""
    optional = {"reason", *optional}
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


def opened(properties: dict[str, Schema]) -> Schema:
    """An object that has at least these keys."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def array(items: Schema) -> Schema:
    """An array of one kind of items."""
    return {"type": "array", "items": items}


def either(*schemas: Schema) -> Schema:
    """One of several; plain types in one list."""
    if all(set(schema) == {"type"} and isinstance(schema["type"], str) for schema in schemas):
        return {"type": [schema["type"] for schema in schemas]}
    return {"anyOf": list(schemas)}


def maybe(schema: Schema) -> Schema:
    """A value or null."""
    return either(schema, {"type": "null"})


def described(schema: Schema, text: str) -> Schema:
    """The schema with a description."""
    return {**schema, "description": text} if text else schema


def first_sentence(docstring: str) -> str:
    """The first paragraph of a docstring."""
    return " ".join(docstring.strip().partition("\n\n")[0].split())


def attributes(docstring: str) -> dict[str, str]:
    """What the section `Attributes` of a docstring says of each."""
    _, _, section = docstring.partition("Attributes:\n")
    found: dict[str, str] = {}
    name = None
    for line in section.splitlines():
        if not line.strip():
            break
        match = _ATTRIBUTE.match(line)
        if match and len(line) - len(line.lstrip()) <= 8:
            name = match[1]
            found[name] = match[2]
        elif name is not None:
            found[name] += f" {line.strip()}"
    return found
