"""Pictures of the pages for the README: gates at work, being trained, and compared."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from benchmarks.toybox.browser import IMAGES, opened

SEED = 2026
"""The first that came to mind."""


def gates(page: Page) -> None:
    """A picture with the gates that ship, and their map."""
    page.click(".with-gates >> nth=0")
    expect(page.locator(".gates .chosen")).to_be_visible()
    page.get_by_label("New each time").uncheck()
    page.fill("#seed input", str(SEED))
    page.click("#generate")
    expect(page.locator(".stage")).to_have_attribute("data-phase", "done")
    page.click(".gatemap summary")
    expect(page.locator(".gatemap .shares")).to_have_count(2)
    page.wait_for_timeout(1000)
    page.screenshot(path=IMAGES / "gate_map.png", full_page=True)


def training(page: Page) -> None:
    """Two LoRAs' gates, a good part of the way through their training."""
    page.get_by_role("tab", name="Train gates").click()
    expect(page.locator(".lora-line")).to_have_count(2)
    page.click("#train-start")
    page.wait_for_function(
        "() => +(/step (\\d+)/i.exec(document.querySelector('.training .what')?.innerText)"
        " || [0, 0])[1] >= 80"
    )
    page.screenshot(path=IMAGES / "train.png", full_page=True)


def comparison(page: Page) -> None:
    """All ways with two seeds, and two of them under the slider."""
    page.get_by_role("tab", name="Compare").click()
    page.wait_for_selector("#compare-mixer .row")
    page.locator(".seed-count").nth(1).click()
    page.click("#compare-start")
    expect(page.locator(".pace")).to_have_attribute("data-phase", "done")
    page.wait_for_timeout(1000)
    page.screenshot(path=IMAGES / "compare.png", full_page=True)


def main() -> None:
    """Make the pictures anew."""
    with opened() as (page, _):
        page.wait_for_selector(".state.ready")
        page.wait_for_selector(".with-gates:visible")  # the pair that ships with gates
        gates(page)
        comparison(page)
        training(page)


if __name__ == "__main__":
    main()
