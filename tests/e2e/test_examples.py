"""Every example that README, docs and --help print does what it says, up to where an engine would start."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from documentation.printed import Example, help_texts, printed
from documentation.workbench import NOT_RUN as COMMANDS_NOT_RUN
from documentation.workbench import Workbench

EXAMPLES = printed()
# By file and first line: what is not run, and why. Of Python the imports are run all the same.
NOT_RUN = {
    ("docs/live.md", "from mismatch_probe.live.trl import watch"): (
        "needs a trainer that trains; tests/parity/test_live.py trains one with TRL"
    ),
    ("docs/live.md", "from mismatch_probe.live.verl import mismatch_metrics"): (
        "needs verl's batch; tests/parity/test_live.py makes one"
    ),
    ("docs/parity.md", "python -m pytest tests/parity"): "these tests run in the same suite",
}
# These need an engine: their examples have to come as far as its start, unless they only list or continue.
ENGINE_VERBS = ("audit", "record", "score", "ablate", "locate")


@pytest.fixture(scope="module")
def workbench(embedded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    with pytest.MonkeyPatch.context() as patch:
        yield Workbench(tmp_path_factory.mktemp("examples"), embedded.path, patch)


def key(example: Example) -> tuple[str, str]:
    return example.where.partition(":")[0], example.text.splitlines()[0]


def test_what_is_not_run_is_printed() -> None:
    assert set(NOT_RUN) <= {key(example) for example in EXAMPLES}
    first_words = {line.split()[0] for e in EXAMPLES for line in e.text.splitlines() if line.strip()}
    assert set(COMMANDS_NOT_RUN) <= first_words


def test_every_verb_has_examples_in_its_help_and_in_the_pages() -> None:
    pages = "\n".join(example.text for example in EXAMPLES if not example.where.endswith("--help"))
    for verb, text in help_texts():
        assert text.count(f"mismatch-probe {verb}") >= 2, verb
        assert f"mismatch-probe {verb}" in pages, verb


@pytest.mark.parametrize(
    "number", range(len(EXAMPLES)), ids=[f"{e.where}-{i}".replace("/", "_") for i, e in enumerate(EXAMPLES)]
)
def test_example(workbench: Workbench, number: int) -> None:
    example = EXAMPLES[number]
    if key(example) in NOT_RUN:
        if example.kind == "python":
            exec(compile(imports(example.text), example.where, "exec"), {})
        return
    workbench.ends.clear()
    workbench.try_out(example, number)
    verbs = [line.split()[1] for line in example.text.splitlines() if line.startswith("mismatch-probe ")]
    if example.text.count("\n") == 0 and verbs and verbs[0] in ENGINE_VERBS and "--list" not in example.text:
        assert workbench.ends[-1] in ("border", "done before"), workbench.ends


def imports(text: str) -> ast.Module:
    body = [node for node in ast.parse(text).body if isinstance(node, ast.Import | ast.ImportFrom)]
    return ast.Module(body, type_ignores=[])


def test_a_wrong_example_is_found(workbench: Workbench) -> None:
    """Options, names and keys that do not exist, also behind a pipe and in Python."""
    wrong = (
        "mismatch-probe audit --no-such-option",
        "mismatch-probe measure runs/first --set bars.no_such_bar=1 | head",
        "mismatch-probe audit --rollout no-such-engine",
        "python -m benchmarks.synthetic_run --no-such-option",
        "make no-such-target",
    )
    for number, text in enumerate(wrong):
        with pytest.raises(BaseException):  # noqa: B017 - each fails in a way of its own
            workbench.try_out(Example("test", "shell", text), 1000 + number)
    with pytest.raises(ImportError):
        workbench.try_out(Example("test", "python", "from mismatch_probe.weights import no_such_name"), 2000)
