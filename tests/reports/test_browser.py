"""The page in a real browser: no request leaves it, and it never scrolls sideways."""

import html
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from reports.sample import hostile

from mismatch_probe_reports.html import render_html

WANTED = os.environ.get("MISMATCH_PROBE_BROWSER_TESTS") == "1"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--virtual-time-budget=4000",
)  # fmt: skip


@pytest.mark.skipif(
    not WANTED and BROWSER is None, reason="no chromium; MISMATCH_PROBE_BROWSER_TESTS=1 demands one"
)
@pytest.mark.parametrize("width", [400, 900, 1600])
def test_page_fits_its_window(width: int, tmp_path: Path) -> None:
    assert BROWSER is not None, "MISMATCH_PROBE_BROWSER_TESTS=1 needs chromium: apt-get install chromium"
    # The page forbids scripts, so the copy that measures itself goes without the policy.
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", render_html(hostile()))
    probe = "<script>parent.postMessage(document.documentElement.scrollWidth - document.documentElement.clientWidth, '*')</script>"
    frame = html.escape(page.replace("</body>", f"{probe}</body>"))
    outer = tmp_path / "frame.html"
    outer.write_text(
        f'<iframe style="width:{width}px;height:900px" srcdoc="{frame}"></iframe>'
        "<script>onmessage = event => { document.title = 'overflow ' + event.data }</script>"
    )
    finished = subprocess.run(
        [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", outer.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "<title>overflow 0</title>" in finished.stdout
