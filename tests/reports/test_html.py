"""The page: complete, well-formed, self-contained, inert and the same every time."""

import base64
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from html import unescape
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from reports.sample import HOSTILE, SAMPLES, SECTIONS, Result, absent

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.figures import prepare_figures
from mismatch_probe_reports.html import render_html
from mismatch_probe_reports.model import build_report

ROOT = Path(__file__).parents[2]
VOID = {"meta", "link", "input", "br", "img", "hr"}
WRITERS = (fmt.number, fmt.percent, fmt.near_one, fmt.integer, fmt.times, lambda value: fmt.number(value, 2))


@cache
def page(name: str) -> str:
    return render_html(SAMPLES[name]())


class Outline(HTMLParser):
    """Elements with attributes and all text, refusing anything out of balance."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> inside <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@cache
def outline(name: str) -> Outline:
    return Outline(page(name))


@pytest.mark.parametrize("name", SAMPLES)
def test_page_is_balanced_and_refers_only_to_itself(name: str) -> None:
    found = outline(name)
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {
        value[1:] for _, attributes in found.elements for key, value in attributes.items()
        if key in {"href", "xlink:href"} and value and value.startswith("#")
    }  # fmt: skip
    named = {
        word for _, attributes in found.elements for key in ("aria-labelledby", "for")
        for word in (attributes.get(key) or "").split()
    }  # fmt: skip
    assert targets | named <= set(ids)
    for reference in re.findall(r"url\(#([^)]*)\)", page(name)):
        assert reference in ids


@pytest.mark.parametrize("name", SAMPLES)
def test_page_loads_nothing_and_runs_nothing(name: str) -> None:
    found = outline(name)
    assert not {"iframe", "object", "embed", "base", "form", "img", "foreignobject"} & {
        t for t, _ in found.elements
    }
    for tag, attributes in found.elements:
        assert not [key for key in attributes if key.startswith("on")]
        for key in ("src", "href", "xlink:href", "action", "srcset"):
            value = attributes.get(key)
            if value is None or value.startswith(("#", "data:")):
                continue
            assert tag == "a" and value.startswith("https://"), (tag, key, value)
    styles = re.findall(r"<style>.*?</style>", page(name), re.DOTALL)
    assert len(styles) == 1
    assert "@import" not in styles[0] and "url(" not in styles[0]
    policy = next(a["content"] for t, a in found.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'")
    # The one script is the package's own, and the policy lets it run by its hash; no other.
    scripts = re.findall(r"<script>(.*?)</script>", page(name), re.DOTALL)
    assert len(scripts) == sum(tag == "script" for tag, _ in found.elements) <= 1
    own = (files("mismatch_probe_reports") / "assets" / "copy.js").read_text(encoding="utf-8")
    assert scripts in ([], [own])
    digests = {f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts}
    assert set(re.findall(r"script-src ([^;]*)", policy)) == digests


@pytest.mark.parametrize("name", SAMPLES)
def test_page_is_small(name: str) -> None:
    assert len(page(name).encode()) < 1_000_000


def test_same_result_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    program = "import sys; from reports.sample import dense; from mismatch_probe_reports.html import render_html;" \
        "sys.stdout.buffer.write(render_html(dense()).encode())"  # fmt: skip
    paths = os.pathsep.join(str(ROOT / part) for part in (".", "reports", "tests"))
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True,
        env={**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": "7", "MPLCONFIGDIR": str(tmp_path)},
    )  # fmt: skip
    assert finished.stdout.decode() == page("dense")


def estimates(value: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, dict):
        if "value" in value and "n" in value and "state" not in value:
            yield path, value
            return
        for key, item in value.items():
            yield from estimates(item, f"{path}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from estimates(item, f"{path}[{index}]")


def step_of(result: Result, path: str) -> dict[str, Any]:
    """The step of `.legs.steps[3].mean`."""
    step: dict[str, Any] = result["legs"]["steps"][int(path.split("[")[1].split("]")[0])]
    return step


@pytest.mark.parametrize("name", ["drifting", "dense", "inconclusive", "exact"])
def test_every_estimate_of_the_result_is_on_the_page_with_its_interval_or_reason(name: str) -> None:
    text, result = outline(name).text, SAMPLES[name]()
    shown = 0
    for path, estimate in estimates({section: result[section] for section in SECTIONS}):
        if ".by_length[" in path or ".by_sign." in path:
            continue  # thousands of them: the page has their values, see below
        if estimate["value"] is None:
            assert fmt.clean(estimate["reason"]) in text, path
            continue
        shown += 1
        if path.endswith("].mean") and ".legs.steps" in path:
            assert estimate["value"] == -step_of(result, path)["k1"]["value"], "the page shows K1 for it"
            continue
        if ".legs.steps" in path and estimate["value"] == 0:
            assert "EXACT" in text
            continue
        assert any(write(estimate["value"]) in text for write in WRITERS), path
        if estimate["ci_low"] is not None and estimate["ci_high"] is not None:
            low, high = estimate["ci_low"], estimate["ci_high"]
            forms = [
                f"[{write(low)}, {write(high)}]".replace(" %,", ",").replace(" %]", "] %")
                for write in WRITERS
            ]
            assert any(form in text for form in forms), (path, forms)
    assert shown > 30


def test_every_method_is_on_the_page_by_sign_and_by_length() -> None:
    text, result = outline("drifting").text, SAMPLES["drifting"]()
    for name, method in result["weights"].items():
        assert method["label"] in text and method["reads"] in text, name
        for word in ("positive", "negative"):
            cell = method["by_sign"][word]
            assert fmt.percent(cell["ess"]["value"]) in text
            assert f"{fmt.integer(cell['empty_tokens'])} / {fmt.integer(cell['empty_sequences'])}" in text
        for bucket in method["by_length"]:
            for key in ("positive_mass", "negative_mass", "mass_ratio"):
                value = bucket[key]["value"]
                assert value is None or fmt.near_one(value) in text, (name, key)


@pytest.mark.parametrize("name", ["drifting", "dense", "exact", "inconclusive", "huge"])
def test_verdict_and_every_finding_are_on_the_page(name: str) -> None:
    text, result = outline(name).text, SAMPLES[name]()
    assert text.index(result["verdict"].upper()) < text.index("Validity checks", text.index("All findings"))
    assert result["verdict_sentence"] in text
    assert result["findings"]
    for finding in result["findings"]:
        for key in ("code", "title", "advice", "detail"):
            assert fmt.clean(finding[key]) in text
        for key in ("observed", "bar", "would_pass_at"):
            if finding[key] is not None:
                assert fmt.with_unit(finding[key], finding["unit"]) in text
    for check in result["data_quality"]["checks"]:
        assert fmt.clean(check["detail"]) in text
    for action in result["recommendation"]["actions"]:
        assert fmt.clean(action["because"]) in text


def test_ess_stands_beside_k_hat() -> None:
    for name in ("drifting", "dense", "exact", "inconclusive", "huge"):
        for match in re.finditer(r"ESS (?:of sequences|\d[^:]*?%)", outline(name).text):
            assert "k-hat" in outline(name).text[match.start() : match.start() + 250]


def test_exact_is_said_and_no_ratio_to_an_exact_floor_is_made_up() -> None:
    text = outline("exact").text
    assert text.count("EXACT") > 5
    assert "the floor is exactly 0" in text


@pytest.mark.parametrize("name", [name for name in SAMPLES if name != "hostile"])
def test_nothing_of_python_shows_through(name: str) -> None:
    text = outline(name).text
    for check in SAMPLES[name]().get("data_quality", {}).get("checks", []):
        # Sentences of the measurement are shown as they are.
        text = text.replace(fmt.clean(check["detail"]), "")
    assert not re.findall(r"\bNone\b|\bnan\b|\binf\b|\{'|Undefined|\bTrue\b|\bFalse\b", text)


def test_every_absent_section_gives_its_own_reason() -> None:
    text = outline("absent").text
    for section in SECTIONS:
        assert f"{section}: the stage was stopped" in text
    assert "No figure" not in text, "the section's reason stands for its figure's"
    assert "No figure “Token drift against token probability”: all" in outline("exact").text


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize(
    "value", [None, {}, [], "text", {"available": False}, {"value": None, "reason": "r"}]
)
def test_one_broken_section_leaves_the_rest(section: str, value: object) -> None:
    result: Result = absent()
    result[section] = value
    Outline(render_html(result))


def test_hostile_strings_are_text_on_the_page() -> None:
    found, raw = outline("hostile"), page("hostile")
    assert "<img" not in raw and "\x1b" not in raw and "\u202e" not in raw
    assert raw.count("</script") == raw.count("<script") == 1
    assert fmt.clean(HOSTILE) in found.text
    attributes = " ".join(value or "" for _, attrs in found.elements for value in attrs.values())
    assert "onerror" not in {key for _, attrs in found.elements for key in attrs}
    assert fmt.clean(HOSTILE)[:40] in unescape(attributes), "the figure's label names the step"


def test_tables_have_scoped_heads_and_figures_have_labels() -> None:
    found = outline("drifting")
    assert all("scope" in attributes for tag, attributes in found.elements if tag == "th")
    drawings = [attributes for tag, attributes in found.elements if tag == "svg"]
    assert len(drawings) == 11
    assert all(a["role"] == "img" and len(a["aria-label"] or "") > 60 for a in drawings)
    tags = [tag for tag, _ in found.elements]
    assert {"main", "nav", "header", "footer", "h1"} <= set(tags) and tags.count("h1") == 1


def test_layers_beyond_twelve_are_folded() -> None:
    assert '<summary><h3 id="table-routing-layers">Agreement by layer (16 rows)' in page("drifting")


def test_long_tables_are_closed_and_what_was_compared_is_open() -> None:
    closed = set(re.findall(r'<details>\s*<summary><h3 id="table-([^"]+)"', page("drifting")))
    assert {"model", "versions", "prompts", "side-options", "dashboards"} <= closed
    shown = set(re.findall(r'<h3 id="table-([^"]+)"', page("drifting"))) - closed
    assert {
        "run",
        "sides",
        "sampling",
        "steps",
        "length-law",
        "buckets-prompt",
        "buckets-token_class",
    } <= shown


def test_metrics_stand_in_code_style_under_the_heading_of_their_framework() -> None:
    metrics = SAMPLES["drifting"]()["token"]["dashboards"]
    raw = page("drifting")
    places = [raw.index(f'scope="rowgroup" colspan="3">{name}</th>') for name in dict.fromkeys(
        metric["framework"] for metric in metrics
    )]  # fmt: skip
    assert places == sorted(places) and len(places) > 5
    for metric in metrics:
        assert f'<code class="value">{metric["name"]}</code>' in raw
        assert fmt.near_one(metric["value"]) in outline("drifting").text


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("token", "ecdf"), ("token", "dashboards"), ("token", "token_class_names"), ("token", "buckets"),
        ("token", "by_probability"), ("token", "quantiles"), ("token", "num_tokens"),
        ("sequence", "length_law"), ("sequence", "k_hat"), ("sequence", "gaussian_ratio"), ("provenance", "sampling"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", ["gone", None, {}, [], [1, "x"]])
def test_a_result_without_a_key_still_makes_a_page(section: str, key: str, value: object) -> None:
    result = SAMPLES["inconclusive"]()
    del result[section][key]
    if value != "gone":
        result[section][key] = value
    report = build_report(result)
    assert not report.section(section).missing
    prepare_figures(result)
