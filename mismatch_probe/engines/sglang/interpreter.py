"""Where SGLang is installed. Its dependencies do not fit beside vLLM's, so it mostly has an environment of its own."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mismatch_probe.errors import ConfigError

SERVER_KEY_VARIABLE = "MISMATCH_PROBE_SGLANG_KEY"
DEFAULT = Path(".venv-sglang/bin/python")
MISSING = (
    f"SGLang is not installed here, and there is no {DEFAULT}; make sglang builds one, or rollout.options.python names the "
    "interpreter of an environment that has it"
)


def sglang_python(options: Mapping[str, Any]) -> Path | None:
    """The interpreter that has SGLang: `rollout.options.python`, this one, or that of `.venv-sglang`; else None.

    Args:
        options: `rollout.options.*`.

    Raises:
        ConfigError: The interpreter that was named is not there.
    """
    named = options.get("python")
    if named:
        path = Path(str(named))
        if not path.is_file():
            raise ConfigError(
                f"rollout.options.python: there is no {path}", hint="give the path of bin/python"
            )
        return path.absolute()
    if find_spec("sglang") is not None:
        return Path(sys.executable)
    # Not resolved: a link to the system's python would lose its environment.
    return DEFAULT.absolute() if DEFAULT.is_file() else None
