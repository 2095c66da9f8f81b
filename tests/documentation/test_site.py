"""The site builds strictly, holds every page, and loads nothing from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from documentation.printed import ROOT

from tools.document_failed_audit import CHART, PAGE, QUESTIONS, chart, page

LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


class Loads(HTMLParser):
    """Addresses that a browser fetches to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag in LOADED and attributes.get("rel") != "canonical":
            self.addresses.append(attributes.get(LOADED[tag]) or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    build = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--quiet",
        "--strict",
        "--config-file",
        "tools/mkdocs.yml",
    ]
    run = subprocess.run(
        [*build, "--site-dir", str(out)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return out


def test_every_page_is_there(site: Path) -> None:
    docs = ROOT / "docs"
    wanted = {str(path.relative_to(docs).with_suffix(".html")) for path in docs.rglob("*.md")}
    assert wanted <= {str(path.relative_to(site)) for path in site.rglob("*.html")}


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = [path for path in site.rglob("*.html") if path.name != "404.html"]
    found = 0
    for path in pages:
        loads = Loads()
        loads.feed(path.read_text(encoding="utf-8"))
        for address in filter(None, loads.addresses):
            assert not address.startswith(("http:", "https:", "//")), f"{path.name}: {address}"
            if not address.startswith(("#", "data:")):
                assert (path.parent / address.partition("?")[0].partition("#")[0]).is_file(), address
                found += 1
    assert found > len(pages)
    for sheet in site.rglob("*.css"):
        assert "url(http" not in sheet.read_text(encoding="utf-8").replace('"', "").replace("'", ""), sheet


def test_the_python_page_has_what_it_names(site: Path) -> None:
    text = (site / "python.html").read_text(encoding="utf-8")
    for name in (
        "weights.Batch.from_padded",
        "engines.protocol.RolloutEngine.force_decode",
        "live.trl.watch",
    ):
        assert f'id="mismatch_probe.{name}"' in text, name


def test_the_page_on_failed_audits_is_what_its_list_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python tools/document_failed_audit.py"
    assert CHART.read_text(encoding="utf-8") == chart(), "python tools/document_failed_audit.py"


def test_the_codes_of_the_chart_exist() -> None:
    from mismatch_probe.causes.catalogue import CAUSES
    from mismatch_probe.findings import CATALOGUE

    known = {*CATALOGUE, *(cause.code for cause in CAUSES.values())}
    for question in QUESTIONS:
        for code in re.findall(r"MP\d{3}", " ".join((*question.ask, question.more))):
            assert code in known, code
