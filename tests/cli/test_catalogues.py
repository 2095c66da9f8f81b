"""explain, methods and engines: all there is, in each format, in any width, one line an entry into a pipe."""

import io
import json

import pytest
from rich.cells import cell_len
from rich.console import Console
from typer.testing import CliRunner

from mismatch_probe.causes.catalogue import CAUSES
from mismatch_probe.engines.registry import engines
from mismatch_probe.errors import ConfigError
from mismatch_probe.findings import CATALOGUE
from mismatch_probe.scorers.registry import scorers
from mismatch_probe.weights import FRAMEWORKS, available_methods, framework_methods, get_method_as_coded
from mismatch_probe_cli import console, listing
from mismatch_probe_cli.app import app


def shown(*arguments):
    run = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert run.exit_code == 0, run.output
    return run.stdout


def on_terminal(monkeypatch, width, *arguments):
    stream = io.StringIO()
    monkeypatch.setattr(
        listing, "stdout", lambda: Console(file=stream, width=width, force_terminal=True, color_system=None)
    )
    shown(*arguments)
    return stream.getvalue()


@pytest.mark.parametrize("arguments", [("explain",), ("explain", "all")])
def test_explain_lists_all_codes_by_hundred(monkeypatch, arguments):
    codes = [line.split()[0] for line in shown(*arguments).splitlines()]
    assert codes == sorted({*CATALOGUE, *(cause.code for cause in CAUSES.values())})
    assert json.loads(shown(*arguments, "--format", "json")).keys() == set(codes)
    text = on_terminal(monkeypatch, 80, *arguments)
    assert all(code in text for code in codes), "no code is outside of the hundreds"
    for code in codes:
        assert text.index(f"{code[:3]}xx ") < text.index(f"{code}  "), code


def test_methods_one_line_each_with_what_is_coded_where():
    lines = shown("methods").splitlines()
    assert [line.split()[0] for line in lines] == list(available_methods())
    (tis,) = (line for line in lines if line.startswith("token_tis "))
    assert "train/old * old/rollout" in tis and "cap 2.0" in tis
    assert "areal: cap 5.0" in tis and "roll: cap 1.2" in tis and "slime: the defaults" in tis
    rows = {row["name"]: row for row in json.loads(shown("methods", "--format", "json"))}
    assert rows["token_tis"]["frameworks"]["areal"]["cap"] == 5.0


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_methods_of_a_framework_say_what_its_code_differs_in(framework):
    rows = json.loads(shown("methods", "--framework", framework, "--format", "json"))
    assert [row["name"] for row in rows] == list(framework_methods(framework))
    for row, line in zip(rows, shown("methods", "--framework", framework).splitlines(), strict=True):
        said = line.rpartition(f"{framework}: ")[2]
        coded = get_method_as_coded(framework, row["name"])
        for key, default in row["parameters"].items():
            value = getattr(coded, key)
            assert (f"{key} {'none' if value is None else value}" in said) == (value != default), (key, line)


def test_engines_one_line_each_and_a_line_for_each_capability():
    lines = [line.split() for line in shown("engines").splitlines()]
    assert [(side, name) for side, name, *_ in lines] == [
        *(("rollout", entry.name) for entry in engines),
        *(("train", entry.name) for entry in scorers),
    ]
    for side, name, here, given, *_ in lines:
        able = (engines if side == "rollout" else scorers).get(name).item.capabilities()
        assert (here == "available") == (able.sampling if side == "rollout" else able.scoring)
        assert all(getattr(able, capability) for capability in given.split(",") if capability != "-")
    assert "routing          no " in shown("engines", "llama-cpp")


def test_an_engine_that_is_not_installed_says_the_mend(monkeypatch):
    from dataclasses import replace

    entry = engines.get("llama-cpp").item
    absent = replace(
        entry.capabilities(), sampling=False, reason={"sampling": "pip install mismatch-probe[llama]"}
    )
    kept = dict(engines._entries)
    changed = replace(kept["llama-cpp"], item=replace(entry, capabilities=lambda: absent))
    monkeypatch.setitem(engines._entries, "llama-cpp", changed)
    (line,) = (line for line in shown("engines").splitlines() if "llama-cpp" in line)
    assert "missing" in line and line.endswith("(pip install mismatch-probe[llama])")
    assert "llama-cpp: pip install" in " ".join(on_terminal(monkeypatch, 100, "engines").split())
    (row,) = json.loads(shown("engines", "llama-cpp", "--format", "json"))
    assert not row["available"] and row["mend"] == "pip install mismatch-probe[llama]"


@pytest.mark.parametrize("width", [40, 60, 80, 120, 160, 200])
@pytest.mark.parametrize(
    "arguments",
    [("engines",), ("engines", "vllm"), ("methods",), ("methods", "token_tis"), ("explain", "causes")],
)
def test_tables_keep_to_the_terminal(monkeypatch, width, arguments):
    lines = on_terminal(monkeypatch, width, *arguments).splitlines()
    assert max(map(cell_len, lines)) <= width
    names = {"engines": [e.name for e in engines], "methods": available_methods()}.get(
        " ".join(arguments), ()
    )
    first = [line.split()[0] for line in lines if line.strip()]
    assert set(names) <= set(first), "no name is broken over lines"


@pytest.mark.parametrize("arguments", [("methods",), ("engines",), ("explain",), ("methods", "vespo")])
def test_markdown_rows_have_as_many_cells_as_the_head(arguments):
    for block in shown(*arguments, "--format", "markdown").split("\n\n"):
        rows = [line.replace("\\|", "") for line in block.splitlines() if line.startswith("|")]
        assert len({row.count("|") for row in rows}) <= 1, block


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (("explain", "MP2001"), "MP201"),
        (("explain", "stale-weight"), "stale-weights"),
        (("methods", "vespa"), "vespo"),
        (("methods", "--framework", "veri"), "verl"),
        (("engines", "vllm-serve"), "vllm-server"),
        (("methods", "vespo", "--framework", "verl"), "cispo"),
    ],
)
def test_a_wrong_name_gives_near_ones(arguments, near):
    with pytest.raises(ConfigError) as error:
        shown(*arguments)
    assert near in error.value.hint


def test_no_escape_into_a_pipe_or_with_no_color(monkeypatch):
    assert not any("\x1b" in shown(verb) for verb in ("methods", "engines", "explain"))
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[1;31m" in coloured(), "the same with colours"
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in coloured()


def coloured():
    written = io.StringIO()
    for made in (console.stdout(), console.stderr()):
        made.file = written
        made.print("[bold red]drift[/] [dim]quiet[/]")
    return written.getvalue()
