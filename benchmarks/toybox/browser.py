"""The app as its users start it, and a browser that looks at it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator

from playwright.sync_api import Page, expect, sync_playwright

from benchmarks.shared.results import ROOT

IMAGES = ROOT / "docs" / "images"
PATIENCE = 600_000  # milliseconds
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextlib.contextmanager
def opened(*arguments: str) -> Generator[tuple[Page, float], None, None]:
    """The first page of a new `app.py`, and when that was started (`time.monotonic`)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "app.py", "--port", str(port), "--no-open", *arguments]
    command += ["--output-dir", tempfile.mkdtemp()]
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
            yield page, begun
            browser.close()
    finally:
        process.terminate()
        process.wait(20)
