"""`--help` is quick because nothing heavy is imported for it."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "vllm", "transformers", "scipy", "matplotlib", "pyarrow", "jinja2")

CODE = """
import sys
sys.argv = ["mismatch-probe", *{arguments!r}]
from mismatch_probe_cli.app import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
found = sorted(name for name in {heavy!r} if name in sys.modules)
assert not found, found
"""

VERBS = [
    "audit",
    "record",
    "score",
    "measure",
    "simulate",
    "tune",
    "recommend",
    "report",
    "check",
    "diff",
    "history",
    "export",
    "doctor",
    "explain",
    "methods",
    "engines",
]


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["explain", "MP201"], *([verb, "--help"] for verb in VERBS)]
)
def test_nothing_heavy_is_imported(arguments):
    run = subprocess.run(
        [sys.executable, "-c", CODE.format(arguments=arguments, heavy=HEAVY)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_verb_shows_two_examples():
    for verb in VERBS:
        run = subprocess.run(
            [sys.executable, "-m", "mismatch_probe_cli", verb, "--help"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "Examples" in run.stdout
        assert run.stdout.count(f"mismatch-probe {verb}") >= 2, verb
