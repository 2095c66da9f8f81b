"""The bars of the verdict, from `bars.toml` beside this file."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from mismatch_probe.errors import ConfigError


class Bars(BaseModel):
    """See `bars.toml` for what each one means and where it comes from."""

    # A bar at infinity is held by everything.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    min_tokens: int = Field(ge=1)
    min_prompts: int = Field(ge=1)
    k3_over_noise: float = Field(gt=0)
    k3_over_rounding: float = Field(gt=0)
    k3_dense: float = Field(gt=0)
    k3_moe: float = Field(gt=0)
    k3_max: float | None = Field(default=None, gt=0)
    decode_prefill_over_floor: float = Field(gt=0)
    mean_abs_log_ratio: float = Field(gt=0)
    extreme_rate_2: float = Field(gt=0, le=1)
    k_hat_max: float | None = Field(default=None, gt=0)
    sequence_ess: float = Field(gt=0, le=1)
    set_agreement: float = Field(gt=0, le=1)
    replay_explained: float = Field(gt=0, le=1)
    sign_balance: float = Field(gt=0, le=1)
    kept_fraction: float = Field(gt=0, le=1)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value(cls, value: object) -> object:
        if isinstance(value, bool):
            raise ValueError("a bar is a number, not a truth value")
        return value


@cache
def default_bars_text() -> str:
    """The shipped TOML, comments included."""
    return (files("mismatch_probe.config") / "bars.toml").read_text(encoding="utf-8")


def load_bars(changes: Mapping[str, Any] | None = None) -> Bars:
    """The shipped bars with changes applied.

    Args:
        changes: Values by key.

    Raises:
        ConfigError: An unknown bar or a value out of range.
    """
    try:
        return Bars.model_validate({**tomllib.loads(default_bars_text()), **(changes or {})})
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            nearest = difflib.get_close_matches(key, Bars.model_fields, n=1)
            known = ", ".join(Bars.model_fields)
            raise ConfigError(
                f"unknown bar {key!r}", hint=f"did you mean {nearest[0]!r}?" if nearest else f"known: {known}"
            ) from error
        raise ConfigError(f"bars.{key}: {first['msg']}, got {first['input']!r}") from error
