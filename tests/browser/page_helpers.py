"""What the tests of all pages do: wait for a picture, keep a screenshot."""

from __future__ import annotations

import os
from pathlib import Path

from playwright.sync_api import Browser, Page, expect
from running_app import PATIENCE, App


def keep(page: Page, name: str, folder: Path) -> None:
    """A screenshot, into $SCREENSHOTS if that is set, so that people can look at the page."""
    target = Path(os.environ.get("SCREENSHOTS", folder))
    target.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=target / f"{name}.png", full_page=True)


def opened(browser: Browser, app: App) -> Page:
    """The page, freshly opened, when all is there that it begins with."""
    page = browser.new_page(viewport={"width": 1440, "height": 900}, color_scheme="light")
    page.set_default_timeout(PATIENCE * 1000)
    page.goto(app.address)
    ready(page)
    return page


def ready(page: Page) -> None:
    """Wait until the page shows all it begins with: gates come last, and fill in an example."""
    page.wait_for_selector(".state.ready")
    page.wait_for_selector("#examples .with-gates")
    page.wait_for_selector(".gates .chosen")


def press(page: Page, button: str = "#generate", ends: str = "done") -> None:
    """Press the button that makes a picture, and wait until the job is over."""
    page.evaluate("document.querySelector('.stage').dataset.phase = 'before'")
    page.click(button)
    expect(page.locator(".stage")).to_have_attribute("data-phase", ends)


def newest(app: App) -> Path:
    """The picture that was made last."""
    # two of one batch may be written within one tick of the file system's clock
    return max(app.outputs.rglob("*.png"), key=lambda path: (path.stat().st_mtime_ns, path.name))
