"""Takes the pictures of the report in docs: `python -m tools.screenshots RUN`.

RUN is a run of the embedded model with its report. A Chromium of the system is driven by Playwright.
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path
from typing import Literal

IMAGES = Path(__file__).parents[1] / "docs" / "images"
# Name, width, height, colour scheme, anchor at the top of the picture.
SHOTS: tuple[tuple[str, int, int, Literal["light", "dark"], str], ...] = (
    ("report-light", 1240, 1300, "light", "verdict"),
    ("report-dark", 1240, 1300, "dark", "legs"),
    ("report-narrow", 400, 1300, "light", "verdict"),
    ("report-explorer", 1240, 900, "light", "explorer"),
)


def main() -> None:
    """Writes docs/images/report-*.png, in few colours."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    page_path = parser.parse_args().run.resolve() / "report.html"
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, width, height, scheme, anchor in SHOTS:
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.goto(page_path.as_uri())
            page.evaluate(f"document.getElementById('{anchor}').scrollIntoView({{behavior: 'instant'}})")
            page.wait_for_timeout(300)
            with Image.open(io.BytesIO(page.screenshot())) as picture:
                reduced = picture.convert("RGB").quantize(96)
                reduced.save(IMAGES / f"{name}.png", optimize=True)
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
