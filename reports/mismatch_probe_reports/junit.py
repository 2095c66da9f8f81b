"""JUnit XML of a gate: a test case for each bar and check, in suites by the first digit of their code."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from xml.etree import ElementTree

from mismatch_probe.errors import ConfigError, RunDirectoryError
from mismatch_probe.gate import Gate, Held
from mismatch_probe_reports.format import clean
from mismatch_probe_reports.png import write_bytes
from mismatch_probe_reports.reading import Json, read_mapping, read_text

SUITES = {
    "1": "data",
    "2": "token drift",
    "3": "sequences",
    "4": "routing",
    "5": "corrections",
    "6": "reload",
    "9": "amount",
}


def render_junit(gate: Gate, result: Json) -> bytes:
    """Return the XML; the same gate gives the same bytes.

    A bar that decides and is broken is a failure, one that could not be had is skipped, and one that only warns is a test
    that passed, with the warning as its output.

    Args:
        gate: What the bars came to.
        result: result.json as a mapping; names the run.
    """
    provenance = read_mapping(result.get("provenance"))
    root = ElementTree.Element("testsuites", _counts(gate.held) | {"name": "mismatch-probe"})
    for digit, items in groupby(sorted(gate.held, key=_digit), key=_digit):
        held = list(items)
        suite = ElementTree.SubElement(
            root, "testsuite", {"name": SUITES.get(digit, "others"), **_counts(held)}
        )
        properties = ElementTree.SubElement(suite, "properties")
        for name in ("run_id", "tool_version"):
            value = read_text(provenance.get(name), "not reported")
            ElementTree.SubElement(properties, "property", {"name": name, "value": value})
        for item in held:
            _case(suite, item)
    ElementTree.indent(root, " ")
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def write_junit(gate: Gate, result: Json, path: Path) -> None:
    """Write the XML whole or not at all.

    Raises:
        ConfigError: The file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, render_junit(gate, result))
    except (OSError, RunDirectoryError) as error:
        raise ConfigError(
            f"the JUnit file {path} cannot be written: {getattr(error, 'strerror', None) or error}",
            hint="--junit takes the path of a file in a folder that can be written to",
        ) from error


def _digit(item: Held) -> str:
    return item.outcome.code[2:3]


def _counts(held: tuple[Held, ...] | list[Held]) -> dict[str, str]:
    states = [item.state for item in held]
    return {
        "tests": str(len(states)),
        "failures": str(states.count("fail")),
        "errors": "0",
        "skipped": str(states.count("skip")),
        "time": "0",
    }


def _case(suite: ElementTree.Element, item: Held) -> None:
    outcome = item.outcome
    case = ElementTree.SubElement(
        suite, "testcase", {"classname": f"mismatch-probe.{outcome.code}", "name": clean(outcome.name), "time": "0"}
    )  # fmt: skip
    detail = clean(outcome.detail)
    numbers = [
        f"{name}: {value!r} {outcome.unit}".rstrip()
        for name, value in (
            ("observed", outcome.observed),
            ("bar", outcome.bar),
            ("would pass at", outcome.would_pass_at),
            ("n", outcome.n),
        )
        if value is not None
    ]
    text = "\n".join([detail, *numbers, f"mismatch-probe explain {outcome.code}"])
    if item.state == "fail":
        ElementTree.SubElement(case, "failure", {"message": detail, "type": outcome.code}).text = text
    elif item.state == "skip":
        ElementTree.SubElement(case, "skipped", {"message": detail})
    else:
        ElementTree.SubElement(case, "system-out").text = (
            text if item.state == "pass" else f"{item.state}: {text}"
        )
