"""Secrets: what is one, and how it is kept out of everything that is written down.

An option or an environment variable is a secret by its name (`hf_token`, `api_key`, `WANDB_API_KEY`). Options go to the
engine as they are, and into the manifest without their values. What an engine prints of them is taken out of its log.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mismatch_probe.errors import ConfigError

REDACTED = "<redacted>"
_WORDS = {"key", "token", "secret", "password", "passwd", "passphrase", "credential", "credentials", "bearer"}
_SHORTEST = 8
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")
_PLAIN = re.compile(r"[-+.\deE]+|true|false")
_ASSIGNMENT = re.compile(r"[A-Za-z_][\w.\-\[\]]*")


def is_secret_name(name: str) -> bool:
    """Whether a value of that name is a secret; a name that ends in `_env` names the variable that holds one."""
    parts = re.split(r"[_\-.]", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    return parts[-1] != "env" and not _WORDS.isdisjoint(parts)


def redact(value: Any) -> Any:
    """Options as they may be written down: without the values of secrets and without credentials in addresses.

    Args:
        value: JSON-like; a mapping's values are looked at one by one, however deep.
    """
    if isinstance(value, Mapping):
        return {
            key: REDACTED if is_secret_name(str(key)) and _holds(item) else redact(item)
            for key, item in value.items()
        }
    if isinstance(value, str):
        return _CREDENTIALS.sub(f"{REDACTED}@", value)
    return [redact(item) for item in value] if isinstance(value, list | tuple) else value


def _holds(value: Any) -> bool:
    """Numbers and switches are settings of a secret's kind (a number of keys), and no secret."""
    return value is not None and not isinstance(value, bool | int | float)


def redact_command(arguments: Sequence[str]) -> str:
    """A command line as it may be written down, which can be pasted back with the secrets filled in."""
    shown = []
    for argument in arguments:
        name, _, value = argument.removeprefix("--set=").partition("=")
        if value and _ASSIGNMENT.fullmatch(name) and is_secret_name(name) and not _PLAIN.fullmatch(value):
            shown.append(argument.removesuffix(value) + REDACTED)
        else:
            # A value in TOML, such as a table of options: what is not a plain name and text is looked through.
            shown.append(_inside(_CREDENTIALS.sub(f"{REDACTED}@", argument)))
    return shlex.join(shown)


def _inside(text: str) -> str:
    def replaced(found: re.Match[str]) -> str:
        return f"{found[1]}{found[2]}{found[3]}{REDACTED}{found[3]}" if is_secret_name(found[1]) else found[0]

    return re.sub(r"""([A-Za-z_][\w\-]*)("?\s*[=:]\s*)(["'])[^"']*\3""", replaced, text)


def check_given(options: Mapping[str, Any], where: str) -> None:
    """Refuses options of a manifest that does not have their secrets.

    Raises:
        ConfigError: A value is missing; it has to be given again.
    """
    for name, value in options.items():
        if isinstance(value, Mapping):
            check_given(value, f"{where}.{name}")
        elif lacks_secret(value):
            raise ConfigError(
                f"{where}.{name} is not kept in the manifest", hint=f"give it again: --set {where}.{name}=..."
            )


def lacks_secret(value: Any) -> bool:
    """Whether something in options, however deep, was redacted."""
    if isinstance(value, Mapping):
        return any(map(lacks_secret, value.values()))
    if isinstance(value, list | tuple):
        return any(map(lacks_secret, value))
    return isinstance(value, str) and REDACTED in value


def secret_values(options: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> set[str]:
    """The secrets that a process with these options and variables knows.

    Short values are left out: to replace them everywhere would garble what is no secret.
    """
    found = {value for name, value in environment.items() if is_secret_name(name)} | set(_secrets(options))
    return {value for value in found if len(value) >= _SHORTEST and REDACTED not in value}


def _secrets(value: Any, named: bool = False) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _secrets(item, named or is_secret_name(str(key)))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _secrets(item, named)
    elif named and isinstance(value, str):
        yield value


def scrub(text: str, secrets: Collection[str]) -> str:
    """Text without secrets."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, REDACTED)
    return text


def scrub_file(path: Path, secrets: Collection[str]) -> None:
    """Takes secrets out of a text file, line by line; a file without any is not touched."""
    if not secrets or not path.is_file():
        return
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        if not any(scrub(line, secrets) != line for line in file):
            return
    clean = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with (
        path.open(encoding="utf-8", errors="surrogateescape") as file,
        clean.open("w", encoding="utf-8", errors="surrogateescape") as target,
    ):
        target.writelines(scrub(line, secrets) for line in file)
    clean.replace(path)
