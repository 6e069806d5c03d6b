"""Learned gates by mouse: chosen, switched branch by branch, seen, and left again."""

from __future__ import annotations

from pathlib import Path

import pytest
from page_helpers import keep, newest, press
from playwright.sync_api import Page, expect
from running_app import App
from tiny_gates import write_gates

from composer.diffusion.png import read_png
from composer.diffusion.record import PictureRecord

# Starting the app and its model takes its time on a busy machine, and is no part of a test.
pytestmark = [pytest.mark.browser, pytest.mark.timeout(300, func_only=True)]


def paint(page: Page, app: App, button: str = "#generate") -> PictureRecord:
    """Press the button, wait until the picture is there, and return what it says of itself."""
    press(page, button)
    return read_png(newest(app))


def choose_gates(page: Page) -> None:
    page.click("#fusion input")
    page.get_by_role("option", name="Learned gates: Zibo + Neon").click()
    expect(page.locator(".gates .chosen")).to_be_visible()


def test_gates_are_chosen_switched_and_seen(page: Page, app: App, tmp_path: Path) -> None:
    page.fill("#steps input", "4")
    choose_gates(page)
    expect(page.locator(".mixer .row")).to_have_count(2)
    strength = page.locator(".row[data-name=neon] > .fader input.number")
    expect(strength).to_have_value("1.00")  # whatever its weight in a sum was
    expect(page.locator(".mixer .remove:visible")).to_have_count(0)
    expect(page.locator(".gates .chosen")).to_contain_text("stronger or weaker than they give")

    both = paint(page, app)
    assert (both.fusion["name"], both.fusion["gates"]) == ("gates", "pair")
    assert both.fusion["switches"] == {"zibo": True, "neon": True}
    expect(page.locator(".recipe")).to_contain_text("Learned gates: pair")
    strength.fill("0.5")
    weaker = paint(page, app)
    assert weaker.fusion["strengths"] == {"neon": 0.5}
    expect(page.locator(".recipe")).to_contain_text("Neon × 0.5")
    strength.fill("1")

    # one branch off: the next picture is without it
    page.click(".row[data-name=neon] .switch")
    alone = paint(page, app)
    assert alone.fusion["switches"] == {"zibo": True, "neon": False}
    expect(page.locator(".recipe .lora.off")).to_have_text("Neon off")

    # the map of this picture, then of the earlier one
    page.click(".gatemap summary")
    expect(page.locator(".gatemap .shares")).to_have_count(2)
    neon = page.locator(".gatemap .shares.role-style td").first
    expect(neon).to_have_text("0")
    expect(page.locator(".gatemap .entropy td").first).to_have_text("0.0")
    page.locator(".strip .film button").nth(2).click()
    expect(neon).not_to_have_text("0")
    page.get_by_role("tab", name="Without it").click()
    expect(page.get_by_role("tab", name="Without it")).to_have_attribute("aria-selected", "true")
    page.hover(".gatemap .time.role-style canvas")
    expect(page.locator(".gatemap .reading")).to_contain_text("of the steps done · Neon")
    keep(page, "gates", tmp_path)
    for words, ends in (("Download map", "gates-without.png"), ("Download numbers", ".gates.npz")):
        with page.expect_download() as download:
            page.get_by_role("link", name=words).click()
        assert download.value.suggested_filename.endswith(ends)

    # its settings come back, gates, switches and all
    page.click("#use")
    expect(page.locator(".row[data-name=neon] .switch")).to_have_attribute("aria-checked", "true")
    assert paint(page, app) == both

    # its first unit pinned by hand, for the pictures to come
    pin = page.locator(".gatemap .numbers-row button").first
    unit = (pin.get_attribute("title") or "").removeprefix("Pin ")
    pin.click()
    expect(page.locator("#pins textarea")).to_have_value(f"{unit}: zibo=1, neon=1")
    page.fill("#pins textarea", f"{unit}: zibo=1, neon=-2")
    pinned = paint(page, app)
    assert pinned.fusion["pins"] == [f"{unit}: zibo=1, neon=-2"]
    expect(page.locator(".recipe")).to_contain_text(f"{unit}: zibo=1, neon=-2")
    keep(page, "gates pinned", tmp_path)
    page.fill("#pins textarea", "")
    page.click("#use")
    expect(page.locator("#pins textarea")).to_have_value(f"{unit}: zibo=1, neon=-2")


def test_the_difference_shows_in_two_clicks(page: Page, app: App) -> None:
    expect(page.locator(".gates .chosen")).to_be_visible()
    gated = paint(page, app)
    assert gated.fusion["name"] == "gates" and len(gated.loras) == 2
    expect(page.locator("#other-way")).to_have_text("Same by weights")
    weighted = paint(page, app, "#other-way")
    assert weighted.fusion == {"name": "weighted"} and weighted.request == gated.request
    expect(page.locator(".gatemap")).to_be_hidden()
    expect(page.locator(".gates .offer")).to_contain_text("Learned gates know these LoRAs")
    expect(page.locator("#other-way")).to_have_text("Same by gates")
    assert paint(page, app, "#other-way") == gated


def test_gates_are_offered_used_and_left(page: Page, app: App, tmp_path: Path) -> None:
    page.click(".gates .back")
    page.click(".gates .use-gates")
    expect(page.locator(".gates .chosen")).to_be_visible()
    expect(page.locator(".mixer .sum")).to_have_text("2 LoRAs · shared out by gates")

    # a card is a switch now, and a LoRA that the gates do not know brings the weights back
    page.click(".card[data-name=neon]")
    expect(page.locator(".row[data-name=neon] .switch")).to_have_attribute("aria-checked", "false")
    page.click(".row[data-name=zibo] .more")
    page.get_by_label("Last part of the steps of Zibo").fill("50")
    page.get_by_label("First part of the depth of Zibo").fill("20")
    limited = paint(page, app).fusion
    assert (limited["steps"], limited["depth"]) == ({"zibo": [0.0, 0.5]}, {"zibo": [0.2, 1.0]})
    keep(page, "gates limited", tmp_path)
    page.get_by_label("First part of the depth of Zibo").fill("0")  # so that one sees it come back
    page.click("#use")
    expect(page.get_by_label("First part of the depth of Zibo")).to_have_value("20")
    page.click(".card[data-name=moon]")
    expect(page.locator(".gates")).to_be_hidden()
    expect(page.locator(".toast-body").first).to_contain_text("know Zibo + Neon alone")
    expect(page.locator(".mixer .row")).to_have_count(3)
    assert {lora.name for lora in paint(page, app).loras} == {"zibo", "moon"}

    page.click("#examples .with-gates")
    expect(page.locator(".gates .chosen")).to_be_visible()
    expect(page.locator(".mixer .row")).to_have_count(2)
    page.click(".masthead .light")
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    keep(page, "gates narrow", tmp_path)
    page.click(".gates .back")
    expect(page.locator(".gates .offer")).to_be_visible()
    expect(page.locator(".row[data-name=neon] > .fader input[type=range]")).to_be_enabled()


def test_what_is_wrong_with_gates_is_told(page: Page, app: App) -> None:
    expect(page.locator(".problems")).to_contain_text("cut.safetensors")
    choose_gates(page)
    page.fill("#prompt textarea", "a fox <lora:moon:1>")
    page.click("#generate")
    expect(page.locator(".stage")).to_have_attribute("data-phase", "failed")
    expect(page.locator(".stage .caption")).to_contain_text("do not know the LoRA 'moon'")
    page.fill("#prompt textarea", "a fox")
    assert paint(page, app).fusion["name"] == "gates"


def test_gates_that_appear_are_there_when_the_page_is_opened_again(
    page: Page, app: App, tiny_sd: Path
) -> None:
    loras = {name: app.loras / f"{name}.safetensors" for name in ("zibo", "moon")}
    path = write_gates(app.loras / "gates" / "second.safetensors", tiny_sd, loras)
    try:
        page.get_by_role("tab", name="Train gates").click()
        page.get_by_role("tab", name="Compose").click()
        page.click("#fusion input")
        expect(page.get_by_role("option", name="Learned gates: Zibo + On the moon")).to_be_visible()
    finally:
        path.unlink()
