"""A MixLoRA by mouse: chosen among the fusions, alone and with a LoRA, and compared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from page_helpers import keep, newest, press
from playwright.sync_api import Page, expect
from running_app import App, running
from tiny_mixlora import tiny_mixlora, write_mixlora

from composer.diffusion.png import read_png
from composer.diffusion.record import PictureRecord

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300, func_only=True)]


@pytest.fixture(scope="module")
def app(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """An app of its own, with a MixLoRA that knows what Zibo's LoRA calls."""
    with running(tiny_sd, tmp_path_factory.mktemp("mixlora")) as app:
        file = tiny_mixlora(tiny_sd, ("zibo fox", "tavo robot"))
        write_mixlora(app.loras / "mixlora" / "both.safetensors", file)
        yield app


def paint(page: Page, app: App) -> PictureRecord:
    press(page)
    return read_png(newest(app))


def choose(page: Page, title: str) -> None:
    """Choose a fusion, which is offered only a moment after the model is there."""
    option = page.get_by_role("option", name=title)
    for _ in range(40):
        page.click("#fusion input")
        if option.count():
            break
        page.keyboard.press("Escape")
        page.wait_for_timeout(500)
    option.click()


def test_it_is_chosen_and_stands_in_the_place_of_a_lora(
    page: Page, app: App, tmp_path: Path
) -> None:
    page.fill("#steps input", "2")
    page.fill("#prompt textarea", "a zibo fox, in neon style")
    expect(page.locator(".row[data-name=zibo]")).to_be_visible()
    choose(page, "MixLoRA: Zibo + Tavo")
    expect(page.locator("#fusion")).to_contain_text("zibo fox, tavo robot")
    expect(page.locator(".row.off[data-name=zibo]")).to_be_visible()
    record = paint(page, app)
    assert record.fusion["mixlora"] == "both"
    assert "zibo" not in {lora.name for lora in record.loras}
    expect(page.locator(".recipe")).to_contain_text("MixLoRA: both")
    keep(page, "compose-mixlora", tmp_path)


def test_it_is_a_way_of_comparing(page: Page, app: App, tmp_path: Path) -> None:
    page.get_by_role("tab", name="Compare").click()
    page.wait_for_selector("#compare-mixer .row")
    way = page.locator(".kind[data-kind=mixlora]")
    expect(way.locator("input")).to_be_enabled()
    expect(way).to_contain_text("in the place of the LoRAs that it has learned")
    keep(page, "compare-mixlora", tmp_path)
