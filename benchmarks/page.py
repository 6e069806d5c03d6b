"""The page with the shipped model: how soon it can be used, and its picture for the README.

`python -m benchmarks.page` starts `app.py` as its users do, opens it in a headless Chromium,
presses Generate on the example that greets whoever opens the page, and writes
`docs/images/page.png`.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

from composer.evaluation import write_results

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 120_000
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def main() -> None:
    """Measure once, from the start of the process, with nothing warm but the disk."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    outputs = tempfile.mkdtemp()
    command = [sys.executable, "app.py", "--port", str(port), "--no-open", "--output-dir", outputs]
    begun = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        with sync_playwright() as playwright:
            found = os.environ.get("CHROMIUM") or next(
                filter(None, map(shutil.which, BROWSERS)), None
            )
            browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
            page = browser.new_page(viewport={"width": 1440, "height": 1000}, color_scheme="light")
            page.set_default_timeout(PATIENCE)
            expect.set_options(timeout=PATIENCE)
            while True:
                try:
                    page.goto(f"http://127.0.0.1:{port}/")
                    break
                except Exception:  # not listening yet
                    time.sleep(0.1)
            page.wait_for_selector(".card")
            usable = time.monotonic() - begun
            page.wait_for_selector(".state.ready")
            ready = time.monotonic() - begun
            clicked = time.monotonic()
            page.click("#generate")
            expect(page.locator(".stage")).to_have_attribute("data-phase", "done")
            first = time.monotonic() - clicked
            page.wait_for_timeout(500)
            target = ROOT / "docs" / "images" / "page.png"
            page.screenshot(path=target, full_page=True)
            browser.close()
    finally:
        process.terminate()
        process.wait(20)
    rows = [
        {"moment": "page usable after the start of `app.py`", "time (s)": round(usable, 1)},
        {"moment": "model ready after the start of `app.py`", "time (s)": round(ready, 1)},
        {"moment": "first picture, two LoRAs, after the click", "time (s)": round(first, 1)},
    ]
    for row in rows:
        print(row)
    write_results(
        "page", rows, command="python -m benchmarks.page", title="The page's first minute"
    )


if __name__ == "__main__":
    main()
