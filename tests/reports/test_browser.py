"""The page in a real browser: no request leaves it, it fits its window, keyboard and themes work, hostile text is inert.

A Chromium of the system is driven by Playwright. Without one these tests are skipped; MISMATCH_PROBE_BROWSER_TESTS=1 demands one.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from reports.test_explorer import section

from mismatch_probe_reports.figures import prepare_figures
from mismatch_probe_reports.html import render_page
from reports import sample

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None and os.environ.get("MISMATCH_PROBE_BROWSER_TESTS") != "1", reason="no chromium"
)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of a run that drifts, with an explorer of hostile tokens, and one whose every string is hostile."""
    folder = tmp_path_factory.mktemp("pages")
    written = {}
    for name, result in (("drifting", sample.drifting()), ("hostile", sample.hostile())):
        written[name] = folder / f"{name}.html"
        written[name].write_text(render_page(result, prepare_figures(result), section()), encoding="utf-8")
    return written


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    assert BROWSER is not None, "MISMATCH_PROBE_BROWSER_TESTS=1 needs chromium: apt-get install chromium"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any, pages: dict[str, Path]) -> Iterator[Any]:
    """Opens a page; all its requests and errors are kept as `page.seen` and `page.errors`."""
    contexts = []

    def open_page(name: str, **options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.seen, page.errors = [], []
        page.on("request", lambda request: page.seen.append(request.url))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("dialog", lambda dialog: (page.errors.append("dialog"), dialog.dismiss()))
        page.goto(pages[name].as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize("name", ["drifting", "hostile"])
def test_no_request_leaves_the_page_and_nothing_hostile_runs(
    visit: Any, pages: dict[str, Path], name: str
) -> None:
    page = visit(name)
    page.wait_for_timeout(200)
    away = [url for url in page.seen if not url.startswith(("data:", pages[name].as_uri()))]
    assert away == [] and page.errors == []
    assert "owned" not in page.title() and page.locator("script").count() == 1
    # No attribute that would run anything, wherever it came from.
    handlers = page.evaluate(
        "[...document.querySelectorAll('*')].filter(e => [...e.attributes].some(a => /^on/i.test(a.name))).length"
    )
    assert handlers == 0
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", page.locator("body").inner_text())


@pytest.mark.parametrize("name", ["drifting", "hostile"])
@pytest.mark.parametrize("width", [400, 900, 1600])
def test_page_fits_its_window(visit: Any, name: str, width: int) -> None:
    page = visit(name, viewport={"width": width, "height": 900})
    for step in page.locator("#explorer details").all():
        step.evaluate("item => { item.open = true }")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # What is wider scrolls inside a region that can be reached with the keyboard.
    stuck = page.evaluate(
        "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth && e.tabIndex < 0).length"
    )
    assert stuck == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_follows_the_system_and_the_switch(visit: Any, scheme: str) -> None:
    page = visit("drifting", color_scheme=scheme)

    def background() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    light, dark = "rgb(255, 255, 255)", "rgb(17, 21, 26)"
    assert background() == (light if scheme == "light" else dark)
    for theme, expected in (("dark", dark), ("light", light)):
        page.locator(f"label[for=theme-{theme}]").click()
        assert background() == expected
    text = page.evaluate("getComputedStyle(document.querySelector('figure svg text')).fill")
    assert text == "rgb(27, 31, 36)"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
def test_axe_finds_no_serious_violation(visit: Any, scheme: str, width: int) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = visit("drifting", color_scheme=scheme, viewport={"width": width, "height": 900})
    found = Axe().run(page).response["violations"]
    grave = [
        (item["id"], item["nodes"][0]["html"][:200], item["nodes"][0].get("failureSummary", "")[:300])
        for item in found
        if item["impact"] in ("serious", "critical")
    ]
    assert grave == []


def test_axe_sees_what_is_wrong(visit: Any) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = visit("drifting")
    page.evaluate("document.querySelector('#verdict p').style.color = '#e4e4e4'")
    assert "color-contrast" in {item["id"] for item in Axe().run(page).response["violations"]}


def test_the_explorer_is_filtered_sorted_and_stepped_by_keyboard(visit: Any) -> None:
    page = visit("drifting")
    explorer = page.locator("#explorer")
    count, place = explorer.locator(".explorer-count"), explorer.locator(".explorer-place")
    total = page.locator("#explorer .token").count()
    assert count.inner_text() == f"{total} tokens match"
    page.locator("#explorer-min").focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("2")
    dim = page.locator("#explorer .token.dim").count()
    assert 0 < dim < total and count.inner_text() == f"{total - dim} tokens match"
    page.locator("#explorer-min").fill("0")
    page.locator("#explorer-flipped").focus()
    page.keyboard.press("Space")
    flipped = page.locator("#explorer .token[data-f='1']").count()
    assert count.inner_text() == f"{flipped} tokens match"
    page.keyboard.press("Space")
    # Steps between sequences; only one is open, and the step is said.
    page.locator("#explorer-next").focus()
    page.keyboard.press("Enter")
    assert place.inner_text() == "sequence 2 of 2"
    assert page.locator("#explorer details[open]").count() == 1
    page.keyboard.press("j")
    assert place.inner_text() == "sequence 1 of 2"
    page.keyboard.press("ArrowRight")
    first = page.evaluate("document.activeElement.title")
    page.keyboard.press("ArrowRight")
    assert first and page.evaluate("document.activeElement.title") != first
    assert explorer.locator(".token-detail").inner_text() == page.evaluate("document.activeElement.title")
    page.locator("#explorer-sort").select_option("weight")
    assert page.locator("#explorer details").first.get_attribute("data-weight") == "-9"


def test_exports_are_copied_and_the_copy_is_said(visit: Any) -> None:
    page = visit("drifting")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button = page.locator("button.copy").first
    button.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('.copy-said').textContent.length > 0")
    assert "verl (YAML) copied" in page.locator(".copy-said").inner_text()
    text = page.locator("#snippet-1").text_content()
    assert page.evaluate("navigator.clipboard.readText()") == text
    assert "rollout_correction" in text and len(text.splitlines()) > 10
    without = visit("drifting", java_script_enabled=False)
    assert without.locator("button.copy").first.is_hidden() and without.locator("#snippet-1").is_visible()


def test_a_token_of_100_kilobytes_is_short_on_the_page(visit: Any, pages: dict[str, Path]) -> None:
    page = visit("drifting", viewport={"width": 400, "height": 900})
    longest = max(len(text) for text in page.locator("#explorer .token").all_inner_texts())
    assert longest < 100 and "100000 characters" in page.locator("#explorer").inner_text()
    assert pages["drifting"].stat().st_size < 1_000_000


def test_without_javascript_all_numbers_are_there(visit: Any) -> None:
    with_script, without = visit("drifting"), visit("drifting", java_script_enabled=False)

    def numbers(page: Any) -> list[str]:
        return [
            text
            for table in page.locator("table").all()
            for text in table.locator("td, th").all_text_contents()
        ]

    assert numbers(with_script) == numbers(without) and len(numbers(without)) > 500
    assert without.locator(".explorer-controls").is_hidden()
    assert without.locator("#explorer .token").count() == with_script.locator("#explorer .token").count()
    for heading in ("Verdict", "Token explorer", "Glossary"):
        assert without.get_by_text(heading, exact=False).count()


def test_it_prints_light_and_whole(visit: Any) -> None:
    page = visit("drifting", color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") in (
        "rgb(255, 255, 255)",
        "rgba(0, 0, 0, 0)",
    )
    assert page.locator("nav").is_hidden() and page.locator("#verdict").is_visible()
    assert len(page.pdf()) > 50_000


def test_the_page_is_read_in_order_by_a_screen_reader(visit: Any) -> None:
    page = visit("drifting")
    for role in ("main", "navigation", "contentinfo", "banner"):
        assert page.get_by_role(role).count() >= 1, role
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(e => Number(e.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    unnamed = page.evaluate(
        "[...document.querySelectorAll('svg[role=img]')].filter(e => !e.getAttribute('aria-label')).length"
    )
    assert unnamed == 0
    headless = page.evaluate(
        "[...document.querySelectorAll('table')].filter(t => !t.querySelector('th[scope]')).length"
    )
    assert headless == 0
