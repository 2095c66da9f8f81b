"""Writes docs/cli.md from the verbs as they are registered.

    python tools/document_cli.py

A test fails where the page and the command line differ.
"""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

from typer.main import get_command

from mismatch_probe_cli.app import app

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"

INTRODUCTION = """\
# Command line

    mismatch-probe VERB [OPTIONS] [ARGUMENTS]

`mismatch-probe --help` lists the verbs, `mismatch-probe VERB --help` says the same as this page, which
`tools/document_cli.py` writes from them. `--version` prints the version.

## Exit status

| status | meaning |
| --- | --- |
| 0 | pass, or done |
| 1 | drift over a bar |
| 2 | usage, configuration or tool error; what went wrong and the mend are on stderr |
| 3 | inconclusive: too little data for a verdict |
| 130 | interrupted; `audit --resume` goes on where it stopped |

## Output

Results go to stdout, progress and errors to stderr. `--format` prints a result as `text`, `json` or `markdown`; verbs with a
verdict also as `github` (annotations of a workflow, and Markdown into its job summary). Without a terminal, or with
`NO_COLOR` set, stdout has no escape codes. Without a terminal lists (`explain`, `methods`, `engines`) have a line an entry;
on one, tables keep to its width, down to 40 columns: columns are left out before a number is broken over lines.

Progress says for each stage its place among all, sequences and tokens done, tokens a second and the time left, and the time
left for all stages. Every time is from stages timed in this run: a stage to come takes as long a sequence as those of its
kind took (rollout legs that go token by token; passes of the trainer), others are counted as not timed yet. The start of an
engine is not in it. Tokens of a rollout leg are counted as each part of the run ends, so the rate is over the time
up to there. Without a terminal there is a line every 15 seconds.

## Completion

    mismatch-probe --install-completion
    mismatch-probe --show-completion

installs the completion for the shell it is called from (bash, zsh, fish, PowerShell), or prints it. It completes verbs and
options, run directories (folders with a `manifest.json`, here and one folder below), codes and causes, engines, scorers,
corrections, frameworks, knobs and known models; no engine is imported for it.

## Verbs

"""


Choices = dict[str, tuple[str, ...]]


def page() -> str:
    """The whole page, Markdown."""
    group: Any = get_command(app)
    verbs = {name: command for name, command in group.commands.items() if not command.hidden}
    functions = {str(entry.name): entry.callback for entry in app.registered_commands}
    lines = [f"| [`{name}`](#{name}) | {_summary(command)} |" for name, command in verbs.items()]
    table = "\n".join(["| verb | what it does |", "| --- | --- |", *lines])
    return f"{INTRODUCTION}{table}\n\n" + "\n".join(
        _verb(name, command, _choices(functions[name])) for name, command in verbs.items()
    )


def _choices(function: Any) -> Choices:
    """By parameter of a verb, the words that it can be."""
    found = {}
    for name, hint in get_type_hints(function).items():
        kinds = [
            kind for kind in (hint, *get_args(hint)) if isinstance(kind, type) and issubclass(kind, Enum)
        ]
        if kinds:
            found[name] = tuple(str(member.value) for member in kinds[0])
    return found


def _summary(command: Any) -> str:
    return _one_line(_parts(command)[0]).partition(": ")[0].rstrip(".").replace("|", "\\|")


def _parts(command: Any) -> tuple[str, str, list[str]]:
    """The first paragraph of a verb's help, the others, and its examples."""
    said, _, examples = (command.help or "").partition("**Examples**")
    first, _, rest = said.strip().partition("\n\n")
    return first, rest.strip(), re.findall(r"`(mismatch-probe [^`]+)`", examples)


def _verb(name: str, command: Any, choices: Choices) -> str:
    first, rest, examples = _parts(command)
    shown = [parameter for parameter in command.params if not parameter.hidden]
    arguments = [parameter for parameter in shown if parameter.param_type_name == "argument"]
    options = [parameter for parameter in shown if parameter.param_type_name == "option"]
    values = {argument.name: _value(argument) for argument in arguments}
    usage = [values[a.name] if a.required else f"[{values[a.name]}]" for a in arguments]
    blocks = [
        f"### {name}",
        "    " + " ".join(["mismatch-probe", name, "[OPTIONS]", *usage]),
        _one_line(first),
    ]
    blocks += [_one_line(paragraph) for paragraph in rest.split("\n\n") if paragraph]
    rows = [(f"`{values[argument.name]}`", argument) for argument in arguments]
    rows += [(_names(option, choices), option) for option in options]
    lines = [f"| {names} | {_meaning(p, choices)} | {_default(p)} |" for names, p in rows]
    if lines:
        blocks.append(
            "\n".join(["| argument or option | meaning | default |", "| --- | --- | --- |", *lines])
        )
    blocks.append("Examples:\n\n" + "\n".join(f"    {_one_line(example)}" for example in examples))
    return "\n\n".join(blocks) + "\n"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _value(parameter: Any) -> str:
    value = str(parameter.metavar or parameter.name.upper())
    # What a verb can do without is written [LIKE THIS] by who registered it.
    return value.strip("[]") if parameter.param_type_name == "argument" else value


def _names(option: Any, choices: Choices) -> str:
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    return names if option.is_flag or option.name in choices else f"{names} `{_value(option)}`"


def _meaning(parameter: Any, choices: Choices) -> str:
    said = _one_line(parameter.help or "")
    if parameter.name in choices:
        said += " One of " + ", ".join(f"`{choice}`" for choice in choices[parameter.name]) + "."
    return said.replace("|", "\\|").strip()


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = getattr(parameter.default, "value", parameter.default)
    if value is None or value is False or value in ((), []):
        return ""
    return "on" if value is True else f"`{value}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
