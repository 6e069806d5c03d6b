"""A full prompt by mouse, on the language model that ships."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from running_app import App
from test_compose_page import choose, field, keep

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300, func_only=True)]


def test_a_prompt_is_expanded_while_a_picture_is_made_and_taken_back(
    page: Page, app: App, tmp_path: Path
) -> None:
    page.fill("#prompt textarea", "moon")
    choose(page, "zibo", "neon")
    expect(page.locator("#prompt textarea")).to_have_value("moon, zibo fox, in neon style")
    for side in ("width", "height"):  # large and long, so that a busy machine stops it in time
        page.fill(f"#{side} input", "96")
    page.fill("#steps input", "500")
    page.click("#generate")
    expect(page.locator(".stage .caption")).to_contain_text("of 500")

    page.click(".expander .expand")
    expect(page.locator(".expander")).to_have_attribute("data-phase", "done")
    made = field(page, "prompt")
    assert made != "moon, zibo fox, in neon style"
    assert all(words in made for words in ("moon", "zibo fox", "in neon style"))
    expect(page.locator(".stage")).to_have_attribute("data-phase", "working")
    keep(page, "expanded", tmp_path)
    page.click("#stop")
    expect(page.locator(".stage")).to_have_attribute("data-phase", "stopped")

    page.click(".expander .back")
    expect(page.locator("#prompt textarea")).to_have_value("moon, zibo fox, in neon style")
    expect(page.locator(".expander .back")).to_be_hidden()

    # what is wrong is told where it was asked, and the box keeps its words
    page.fill("#prompt textarea", "a fox <lora:nean:1>")
    page.click(".expander .expand")
    expect(page.locator(".expander .note")).to_contain_text("'neon'")
    assert field(page, "prompt") == "a fox <lora:nean:1>"
    keep(page, "not_expanded", tmp_path)
    page.fill("#prompt textarea", "cat")
    page.click(".expander .expand")
    expect(page.locator(".expander")).to_have_attribute("data-phase", "done")


def test_another_click_makes_another_and_an_example_ends_it(page: Page) -> None:
    choose(page)
    page.fill("#prompt textarea", "cat")
    seen: set[str] = set()
    for _ in range(4):
        before = field(page, "prompt")
        page.click(".expander .expand")
        expect(page.locator(".expander")).to_have_attribute("data-phase", "done")
        seen.add(field(page, "prompt"))
        assert before == "cat" or before in seen
    assert len(seen) > 1 and all("cat" in made for made in seen)
    page.locator("#examples button:visible").first.click()
    expect(page.locator(".expander .back")).to_be_hidden()
