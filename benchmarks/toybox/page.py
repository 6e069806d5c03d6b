"""How long a new user waits: from starting the app to the first picture, in a real browser.

Also takes the page's picture for the README.
"""

from __future__ import annotations

import time

from playwright.sync_api import expect

from benchmarks.shared.results import write_results
from benchmarks.toybox.browser import IMAGES, opened

NAME = "toybox.page"


def main() -> None:
    """Measure once, from the start of the process, with nothing warm but the disk."""
    with opened() as (page, begun):
        page.wait_for_selector(".card")
        usable = time.monotonic() - begun
        page.wait_for_selector(".state.ready")
        ready = time.monotonic() - begun
        clicked = time.monotonic()
        page.click("#generate")
        expect(page.locator(".stage")).to_have_attribute("data-phase", "done")
        first = time.monotonic() - clicked
        page.wait_for_timeout(500)
        page.screenshot(path=IMAGES / "page.png", full_page=True)
    rows = [
        {"moment": "page usable after the start of `app.py`", "time (s)": round(usable, 1)},
        {"moment": "model ready after the start of `app.py`", "time (s)": round(ready, 1)},
        {"moment": "first picture, two LoRAs, after the click", "time (s)": round(first, 1)},
    ]
    for row in rows:
        print(row)
    write_results(
        NAME, rows, command=f"python -m benchmarks.{NAME}", title="The page's first minute"
    )


if __name__ == "__main__":
    main()
