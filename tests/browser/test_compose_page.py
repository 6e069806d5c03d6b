from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

import pytest
from page_helpers import keep, newest, press, ready
from PIL import Image
from playwright.sync_api import Page, expect
from running_app import App

from composer.diffusion.png import read_png
from composer.fusions.places import SIDE, Place
from composer.fusions.rows import recorded_places
from composer.ui.compose_page import TAKE_PROPOSAL

# Starting the app and its model takes its time on a busy machine, and is no part of a test.
pytestmark = [pytest.mark.browser, pytest.mark.timeout(300, func_only=True)]


def field(page: Page, name: str) -> str:
    return page.input_value(f"#{name} input, #{name} textarea")


def generate(page: Page, ends: str = "done") -> str:
    """Press Generate, wait until the job is over, and return what the page says of it."""
    press(page, ends=ends)
    return page.inner_text(".stage .caption")


def clear(page: Page) -> None:
    """No LoRA, weights in place of the gates that the page begins with."""
    if (back := page.locator(".gates .back")).is_visible():
        back.click()
        expect(back).to_be_hidden()
    while page.locator(".mixer .remove").count():
        page.locator(".mixer .remove").first.click()


def choose(page: Page, *names: str) -> None:
    """These LoRAs, whatever the page began with."""
    clear(page)
    for name in names:
        page.click(f".card[data-name={name}]")


def test_whoever_opens_the_page_gets_a_picture_with_two_loras_at_once(page: Page, app: App) -> None:
    expect(page.locator(".mixer .row")).to_have_count(2)
    assert "zibo fox" in field(page, "prompt")
    generate(page)
    assert len(read_png(newest(app)).loras) == 2


def test_what_was_written_before_the_gates_came_stays(page: Page) -> None:
    before = {"names": ["zibo"], "prompt": "a zibo fox"}
    gates = [[{"name": "neon"}], "gates:pair", "in neon style", ""]
    forms = {
        ("zibo", "a zibo fox"): gates,
        ("zibo", "a zibo fox at sea"): None,
        ("neon", "a zibo fox"): None,
    }
    for (name, prompt), wanted in forms.items():
        form = [[{"name": name}], "weighted", prompt, "mid*: zibo=1"]
        for proposal, result in (({"before": before, "form": gates}, wanted), (None, None)):
            arguments = [proposal, *form]
            found = page.evaluate(f"(given) => ({TAKE_PROPOSAL})(...given)", arguments)
            assert found == (result or form)


def test_the_main_job_by_mouse(page: Page, app: App, tmp_path: Path) -> None:
    clear(page)
    expect(page.locator(".mixer .nothing")).to_contain_text("paints alone")
    page.fill("#prompt textarea", "a cat at sunset")
    page.fill(".library .search", "zibo")
    expect(page.locator(".card:visible")).to_have_count(1)
    page.click(".card:visible")
    expect(page.locator("#prompt textarea")).to_have_value("a cat at sunset, zibo fox")
    page.fill(".library .search", "")
    page.click(".card[data-name=neon]")
    expect(page.locator(".mixer .row")).to_have_count(2)

    # a weight by its slider, another as a number, the text encoder's apart
    slider = page.locator(".row[data-name=zibo] > .fader input[type=range]")
    box = slider.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.74, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.62, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    moved = float(slider.input_value())
    assert 0.3 < moved < 0.7
    page.fill(".row[data-name=neon] > .fader .number", "0.65")
    page.click(".row[data-name=neon] .more")
    page.click(".row[data-name=neon] .apart")
    page.fill(".row[data-name=neon] .fold .number", "0.25")

    page.fill("#count input", "2")
    generate(page)
    record = read_png(newest(app))
    assert record.request.prompt == "a cat at sunset, zibo fox, in neon style"
    weights = {lora.name: (lora.unet, lora.text_encoder) for lora in record.loras}
    assert weights == {"zibo": (moved, moved), "neon": (0.65, 0.25)}
    expect(page.locator(".recipe")).to_contain_text(str(record.request.seed))
    expect(page.locator(".recipe .lora")).to_have_text(
        [
            f"Zibo {moved:g}",
            "Neon 0.65 (text 0.25)",
        ]
    )
    keep(page, "compose", tmp_path)

    # switched off, it has no effect
    page.click(".row[data-name=neon] .switch")
    page.fill("#count input", "1")
    generate(page)
    assert [lora.name for lora in read_png(newest(app)).loras] == ["zibo"]
    first = read_png(newest(app))

    # an earlier picture: its settings come back, and with them the picture
    page.locator(".strip .film button").nth(1).click()
    expect(page.locator(".recipe")).to_contain_text(str(record.request.seed))
    page.click("#use")
    expect(page.locator(".row[data-name=neon] > .fader .number")).to_have_value("0.65")
    expect(page.locator("#seed input")).to_have_value(str(record.request.seed))
    assert first.request.seed != record.request.seed
    with page.expect_download() as download:
        page.click(".download")
    assert read_png(download.value.path()) == record
    generate(page)
    assert read_png(newest(app)).request == record.request

    # removing a LoRA takes its trigger words along
    page.click(".row[data-name=neon] .remove")
    expect(page.locator("#prompt textarea")).to_have_value("a cat at sunset, zibo fox")
    expect(page.locator(".card[data-name=neon]")).to_have_attribute("aria-pressed", "false")


def test_a_number_may_go_beyond_its_slider(page: Page, app: App) -> None:
    choose(page, "neon")
    number = page.locator(".row[data-name=neon] > .fader .number")
    number.fill("3.5")
    page.fill("#prompt textarea", "a cat")
    generate(page)
    assert {lora.name: lora.unet for lora in read_png(newest(app)).loras}["neon"] == 3.5
    number.fill("99")
    number.blur()
    expect(number).to_have_value("10.00")


def test_a_renamed_lora_is_found_when_its_picture_is_dropped(page: Page, app: App) -> None:
    choose(page, "neon")
    generate(page)
    made = newest(app)
    path = app.loras / "neon.safetensors"
    path.rename(app.loras / "glow.safetensors")
    try:
        page.reload()
        page.wait_for_selector(".state.ready")
        page.set_input_files("#restore input[type=file]", made)
        expect(page.locator(".row[data-name=glow]")).to_be_visible()
        expect(page.locator(".toast-body").first).to_contain_text("'neon' is called 'glow' now")
    finally:
        (app.loras / "glow.safetensors").rename(path)


def test_stop_ends_at_once_and_the_next_picture_comes(page: Page, app: App) -> None:
    for side in ("width", "height"):  # large and long, so that a busy machine stops it in time
        page.fill(f"#{side} input", "96")
    page.fill("#steps input", "400")
    page.click("#generate")
    expect(page.locator(".stage")).to_have_attribute("data-phase", "working")
    expect(page.locator(".stage .caption")).to_contain_text("of 400")
    page.click("#stop")
    expect(page.locator(".stage")).to_have_attribute("data-phase", "stopped")
    for side in ("width", "height"):
        page.fill(f"#{side} input", "16")
    page.fill("#steps input", "4")
    generate(page)


def test_bad_input_is_told_and_the_page_stays_alive(page: Page, app: App, tmp_path: Path) -> None:
    page.fill("#steps input", "0")
    assert "The number of steps is 0" in generate(page, "failed")
    keep(page, "mistake", tmp_path)
    page.fill("#steps input", "10000")
    assert "from 1 to 500" in generate(page, "failed")
    page.fill("#steps input", "")
    assert "number of steps" in generate(page, "failed")
    page.fill("#steps input", "3")
    page.fill("#width input", "17")
    assert "16 or 18" in generate(page, "failed")
    page.fill("#width input", "16")
    page.fill("#prompt textarea", "a fox <lora:nean:1>")
    assert "'neon'" in generate(page, "failed")
    page.fill("#prompt textarea", "")
    generate(page)
    assert read_png(newest(app)).request.prompt == ""


def test_a_dropped_picture_brings_its_settings(page: Page, app: App, tmp_path: Path) -> None:
    page.fill("#prompt textarea", "a whale in the desert")
    page.fill("#steps input", "3")
    generate(page)
    made = newest(app)
    page.reload()
    ready(page)
    page.set_input_files("#restore input[type=file]", made)
    expect(page.locator("#prompt textarea")).to_have_value("a whale in the desert")
    expect(page.locator("#steps input")).to_have_value("3")
    Image.new("RGB", (8, 8)).save(tmp_path / "mute.png")
    page.set_input_files("#restore input[type=file]", tmp_path / "mute.png")
    expect(page.locator(".toast-body")).to_contain_text(["does not say how it was made"])
    expect(page.locator("#prompt textarea")).to_have_value("a whale in the desert")


def test_what_strangers_wrote_is_only_text(page: Page, app: App) -> None:
    page.click(".card[data-name=evil]")
    expect(page.locator(".gates .chosen")).to_be_hidden()
    generate(page)
    expect(page.locator(".recipe")).to_contain_text("onerror")
    assert page.evaluate("window.hacked") is None
    expect(page.locator(".problems")).to_contain_text("pickle")


def test_a_narrow_page_in_the_dark_shows_everything(page: Page, tmp_path: Path) -> None:
    page.click(".masthead .light")
    assert page.evaluate("document.body.classList.contains('dark')")
    page.set_viewport_size({"width": 390, "height": 844})
    generate(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    keep(page, "narrow", tmp_path)


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "pyproject.toml", "../pyproject.toml", "loras/zibo.safetensors"]
)
def test_no_file_of_the_machine_is_served(app: App, path: str) -> None:
    for name in (path, str(app.loras / "zibo.safetensors"), str(app.outputs)):
        with pytest.raises(urllib.error.HTTPError, match=r"40[034]"):
            urllib.request.urlopen(f"{app.address}gradio_api/file={name}", timeout=30)


def test_each_lora_in_the_part_of_the_picture_that_was_drawn_for_it(
    page: Page, app: App, tmp_path: Path
) -> None:
    choose(page, "zibo", "neon")
    page.click("#fusion input")
    page.locator("#fusion [role=option]", has_text="Drawn places").click()
    whose = page.locator(".places .chip")
    expect(whose).to_have_count(2)
    expect(whose.nth(0)).to_have_text("Ziboeverywhere")
    over = page.locator(".places .over").bounding_box()
    assert over is not None
    page.mouse.move(over["x"] + over["width"] * 0.1, over["y"] + over["height"] / 2)
    page.mouse.down()
    page.mouse.move(over["x"] + over["width"] * 0.4, over["y"] + over["height"] / 2, steps=3)
    page.mouse.up()
    expect(whose.nth(0)).to_have_text("Ziboits place")
    whose.nth(1).click()
    page.click(".places .halves button:has-text('Right')")
    keep(page, "places", tmp_path)
    generate(page)
    places = recorded_places(read_png(newest(app)).fusion)
    assert places["neon"] == Place.rectangle(0.5, 0, 1, 1)
    drawn = places["zibo"].cells()
    assert bool(drawn[SIDE // 2, SIDE // 8 : SIDE // 4].all())  # along the stroke
    assert not bool(drawn[: SIDE // 4].any() or drawn[:, SIDE * 3 // 4 :].any())

    page.click(".places .clear")
    expect(whose.nth(1)).to_have_text("Neoneverywhere")
    page.click("#use")
    expect(whose.nth(1)).to_have_text("Neonits place")
