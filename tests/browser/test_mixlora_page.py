"""A MixLoRA by mouse: chosen among the fusions, alone and with a LoRA, and compared."""

from __future__ import annotations

from pathlib import Path

import pytest
from page_helpers import keep, newest, press
from playwright.sync_api import Page, expect
from running_app import App

from composer.diffusion.png import read_png
from composer.diffusion.record import PictureRecord

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300, func_only=True)]


def paint(page: Page, app: App) -> PictureRecord:
    press(page)
    return read_png(newest(app))


def test_it_is_chosen_and_stands_in_the_place_of_a_lora(
    page: Page, app: App, tmp_path: Path
) -> None:
    page.fill("#steps input", "2")
    page.click(".card[data-name=zora]")
    expect(page.locator(".row[data-name=zora]")).to_be_visible()
    page.fill("#prompt textarea", "a zora cat, in neon style")
    page.click("#fusion input")
    page.get_by_role("option", name="MixLoRA: Zora + Tavo").click()
    expect(page.locator("#fusion")).to_contain_text("zora cat, tavo robot")
    expect(page.locator(".row.off[data-name=zora]")).to_be_visible()
    record = paint(page, app)
    assert record.fusion["mixlora"] == "both"
    assert {lora.name for lora in record.loras} == {"zibo", "neon"}
    expect(page.locator(".recipe")).to_contain_text("MixLoRA: both")
    keep(page, "compose-mixlora", tmp_path)


def test_it_is_a_way_of_comparing(page: Page, app: App, tmp_path: Path) -> None:
    page.click(".card[data-name=zora]")
    expect(page.locator(".row[data-name=zora]")).to_be_visible()
    page.get_by_role("tab", name="Compare").click()
    page.wait_for_selector("#compare-mixer .row[data-name=zora]")
    way = page.locator(".kind[data-kind=mixlora]")
    expect(way.locator("input")).to_be_enabled()
    expect(way).to_contain_text("in the place of the LoRAs that it has learned")
    keep(page, "compare-mixlora", tmp_path)
