"""The app as its users start it, and a browser to use it with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from page_helpers import ready
from playwright.sync_api import Browser, Page, expect, sync_playwright
from running_app import PATIENCE, App, serving, write_files

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# No sandbox: tests run as root in containers. No background traffic: nothing is fetched unasked.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
)


@pytest.fixture(scope="session")
def app(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """The app, running: one for the tests of all pages, which leave its files as they were."""
    root = tmp_path_factory.mktemp("app")
    write_files(root / "loras", tiny_sd)
    with serving(tiny_sd, root / "loras", root) as app:
        yield app


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium: the one that $CHROMIUM names, or of the system, or Playwright's own."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    expect.set_options(timeout=PATIENCE * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(app: App, browser: Browser) -> Iterator[Page]:
    """The first page, freshly opened, when the model is ready and with it what fits it. It must
    not log any error."""
    app.serve()  # a test may have killed it
    page = browser.new_page(viewport={"width": 1440, "height": 900}, color_scheme="light")
    page.set_default_timeout(PATIENCE * 1000)
    troubles: list[str] = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda m: troubles.append(m.text) if m.type == "error" else None)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(app.address)
    page.wait_for_selector(".card")
    ready(page)
    yield page
    assert not troubles
    own = (app.address, "data:", "blob:", app.address.replace("http", "ws"))
    assert not [url for url in asked if not url.startswith(own)], "the page asks somebody else"
    page.close()
