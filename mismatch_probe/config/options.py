"""Options of an engine or a scorer: what `rollout.options.*` and `train.options.*` may hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mismatch_probe.errors import ConfigError

Options = TypeVar("Options", bound=BaseModel)


def read_options(kind: type[Options], given: Mapping[str, Any], where: str, *, more: str = "") -> Options:
    """Checks options against their model.

    Args:
        kind: The model of the options.
        given: By name, as configured.
        where: "rollout.options" or "train.options", for the message.
        more: What else may be given beside the fields of `kind`, for the hint.

    Raises:
        ConfigError: An unknown name or a value that cannot be; the hint lists the known names.
    """
    try:
        return kind.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in (where, *first["loc"]))
        known = ", ".join(kind.model_fields)
        raise ConfigError(f"{key}: {first['msg']}", hint=f"known: {known}{more}") from error
