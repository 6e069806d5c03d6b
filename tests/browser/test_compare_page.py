"""Comparing by mouse: ways and seeds side by side, a slider between two, a grid to take away."""

from __future__ import annotations

from pathlib import Path

import pytest
from page_helpers import keep
from PIL import Image
from playwright.sync_api import Page, expect
from running_app import App
from tiny_weights import write_weights

from composer.diffusion.png import read_png

# Starting the app and its model takes its time on a busy machine, and is no part of a test.
pytestmark = [pytest.mark.browser, pytest.mark.timeout(300, func_only=True)]


def open_tab(page: Page) -> None:
    """The page, filled: it takes over what Compose shows."""
    page.get_by_role("tab", name="Compare").click()
    page.wait_for_selector("#compare-picker .face")
    page.wait_for_selector("#compare-mixer .row")


def choose(page: Page, *names: str) -> None:
    """Exactly these LoRAs, by mouse."""
    while page.locator("#compare-mixer .row").count():
        page.locator("#compare-mixer .remove").first.click()
    for name in names:
        page.click(f"#compare-picker .face[data-name={name}]")
    expect(page.locator("#compare-mixer .row")).to_have_count(len(names))


def settle(page: Page, prompt: str = "a fox", steps: int = 2, seeds: int = 1) -> None:
    if not page.locator("#compare-steps input").is_visible():
        page.click("#compare-settings > button")
        expect(page.locator("#compare-steps input")).to_have_value("20")
    page.fill("#compare-steps input", str(steps))
    page.fill("#compare-prompt textarea", prompt)
    page.locator(".seed-count").nth(seeds - 1).click()


def compare(page: Page, phase: str = "done") -> None:
    page.evaluate("document.querySelector('.pace').dataset.phase = 'before'")
    page.click("#compare-start")
    expect(page.locator(".pace")).to_have_attribute("data-phase", phase)


def labels(page: Page) -> list[str]:
    return page.locator(".comparison .label strong").all_inner_texts()


def test_two_loras_are_checked_before_anything_is_painted(page: Page, tmp_path: Path) -> None:
    open_tab(page)
    choose(page, "zibo", "neon")
    settle(page)
    expect(page.locator(".conflicts")).to_be_hidden()
    page.click("#compare-check")
    expect(page.locator(".conflicts .advice li").last).to_contain_text("as weights times 0.")
    page.click(".conflicts summary")
    of = page.locator(".conflicts dt")
    expect(of).to_have_text(["neon", "zibo", "neon and zibo", "Added up"])
    expect(page.locator(".conflicts dd").nth(2)).to_contain_text("in the same places")
    keep(page, "conflicts", tmp_path)


def test_two_loras_are_compared_and_the_grid_taken_away(
    page: Page, app: App, tmp_path: Path
) -> None:
    shown = page.locator(".strip .film button")
    earlier = shown.count()
    open_tab(page)
    choose(page, "zibo", "neon")
    settle(page, steps=3, seeds=2)
    page.fill("#compare-mixer .row[data-name=neon] > .fader .number", "0.5")
    expect(page.locator(".ways-choice .sum")).to_have_text("up to 18 pictures")
    expect(page.locator(".kind[data-kind=best]")).to_contain_text("best of 16 by CLIP")
    before = set(app.outputs.rglob("*.png"))
    compare(page)
    assert labels(page) == [
        "Without LoRAs",
        "Zibo alone",
        "Neon alone",
        "Your weights",
        "Best known weights",
        "Weights of 1",
        "Average (NLA)",
        "Trigger regions",
        "Learned gates",
    ]
    found = page.locator(".comparison .kind-best .detail")
    expect(found).to_have_text("Zibo 0.8 + Neon 1.2, best of 16 by CLIP")
    expect(page.locator(".comparison .cell:enabled")).to_have_count(18)
    made = [read_png(path) for path in sorted(set(app.outputs.rglob("*.png")) - before)]
    assert len(made) == 18 and {record.request.prompt for record in made} == {"a fox"}
    assert len({record.request.seed for record in made}) == 2

    # the user's weights against the gates, until two pictures are clicked
    sides = page.locator(".sides strong")
    expect(sides).to_have_text(["Your weights", "Learned gates"])
    keep(page, "compare", tmp_path)
    # every picture has its scores: of the LoRAs in it, and how far it is from the bare model's
    expect(page.locator(".comparison .way").nth(5).locator(".score")).to_have_count(4)
    expect(page.locator(".comparison .way .bare")).to_have_count(16)
    # and every way its own: two seeds are too few for an interval
    ways = page.locator(".standings tbody tr")
    expect(ways).to_have_count(9)
    expect(page.locator(".standings thead")).to_contain_text("least recognised")
    expect(ways.last).to_contain_text("wins")
    expect(ways.last).to_contain_text("of 2")
    expect(ways.last).to_contain_text("too few pairs")
    page.get_by_role("button", name="Zibo alone (weight 1), seed").nth(1).click()
    page.get_by_role("button", name="Without LoRAs").nth(1).click()
    expect(sides).to_have_text(["Zibo alone", "Without LoRAs"])
    expect(page.locator(".cell[aria-pressed=true]")).to_have_count(2)
    expect(page.locator(".split .tag-left")).to_have_text("Zibo alone")

    # the divider, by mouse and by keyboard
    divider = page.get_by_role("slider", name="Divider")
    expect(divider).to_have_attribute("aria-valuenow", "50")
    box = page.locator(".split").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 60, steps=4)
    page.mouse.up()
    page.mouse.move(box["x"] + box["width"] - 5, box["y"] + 60)
    expect(divider).to_have_attribute("aria-valuenow", "25")
    clip = page.evaluate("getComputedStyle(document.querySelector('.split .before')).clipPath")
    assert "75%" in clip
    page.keyboard.press("ArrowRight")
    expect(divider).to_have_attribute("aria-valuenow", "27")
    page.keyboard.press("End")
    expect(divider).to_have_attribute("aria-valuenow", "100")
    page.get_by_role("button", name="Swap sides").click()
    expect(sides).to_have_text(["Without LoRAs", "Zibo alone"])

    # the best known weights against the gates
    page.get_by_role("button", name="Best known weights").first.click()
    page.get_by_role("button", name="Learned gates").first.click()
    expect(sides).to_have_text(["Best known weights", "Learned gates"])

    with page.expect_download() as download:
        page.get_by_role("link", name="Download grid").click()
    expect(page.locator(".files .file")).to_have_text(
        ["Grid", "Report", "CSV", "CSV of ways", "JSON"]
    )
    assert download.value.suggested_filename.startswith("comparison-")
    with Image.open(download.value.path()) as sheet:
        assert sheet.format == "PNG" and sheet.width > 7 * 256 and sheet.height > 2 * 256

    # in the dark, on a phone; then the pictures are in Compose's history
    page.click(".masthead .light")
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    keep(page, "compare narrow", tmp_path)
    page.get_by_role("tab", name="Compose").click()
    expect(shown).to_have_count(earlier + 18)


def test_compose_is_taken_over(page: Page) -> None:
    page.wait_for_selector("#mixer .row[data-name=neon]")
    page.click(".gates .back")
    expect(page.locator(".gates .chosen")).to_be_hidden()
    page.fill("#prompt textarea", "zibo fox at night")
    page.fill("#steps input", "7")
    page.fill("#mixer .row[data-name=neon] > .fader .number", "0.35")
    page.get_by_role("tab", name="Compare").click()
    prompt = page.locator("#compare-prompt textarea")
    expect(prompt).to_have_value("zibo fox at night")
    row = page.locator("#compare-mixer .row[data-name=neon]")
    expect(row.locator("> .fader .number")).to_have_value("0.35")
    prompt.fill("something else")
    # what is chosen here is not chosen there, and the other way round
    page.click("#compare-picker .face[data-name=neon]")
    expect(row).to_have_count(0)
    page.get_by_role("tab", name="Compose").click()
    expect(page.locator("#mixer .row[data-name=neon]")).to_be_visible()
    page.get_by_role("tab", name="Compare").click()
    expect(prompt).to_have_value("something else")
    page.click("#compare-take")
    expect(prompt).to_have_value("zibo fox at night")
    expect(row).to_be_visible()
    page.click("#compare-settings > button")
    expect(page.locator("#compare-steps input")).to_have_value("7")


def test_gates_that_are_missing_are_greyed_and_lead_to_training(page: Page) -> None:
    open_tab(page)
    choose(page, "zibo", "neon")
    gates = page.locator(".kind[data-kind=gates]")
    expect(gates.locator("input")).to_be_enabled()
    expect(page.locator(".ways-choice .problems")).to_contain_text("alien.safetensors")
    page.click("#compare-mixer .row[data-name=neon] .switch")
    expect(gates.locator("input")).to_be_disabled()
    expect(gates).to_contain_text("two LoRAs or more")
    choose(page, "zibo", "moon")
    expect(gates.locator("input")).to_be_disabled()
    settle(page)
    compare(page)
    assert "Learned gates" not in labels(page) and len(labels(page)) == 6
    expect(
        page.locator(".comparison .detail", has_text="the same as weights of 1").first
    ).to_be_visible()
    gates.get_by_role("button", name="Train some").click()
    expect(page.get_by_role("tab", name="Train gates")).to_have_attribute("aria-selected", "true")


def test_where_no_best_weights_are_known_the_way_says_how_to_find_them(
    page: Page, app: App, tiny_sd: Path, tmp_path: Path
) -> None:
    open_tab(page)
    choose(page, "zibo", "moon")
    best = page.locator(".kind[data-kind=best]")
    expect(best.locator("input")).to_be_disabled()
    expect(best.locator("code")).to_have_text("composer tune-weights zibo moon")
    keep(page, "compare best unknown", tmp_path)
    loras = {name: app.loras / f"{name}.safetensors" for name in ("zibo", "moon")}
    path = app.loras / "weights" / "moon+zibo.json"
    write_weights(path, tiny_sd, loras, {"zibo": 1.4, "moon": 1.0})
    try:
        page.get_by_role("tab", name="Compose").click()
        page.get_by_role("tab", name="Compare").click()  # looks into the folders again
        expect(best.locator("input")).to_be_enabled()
        expect(best).to_contain_text("best of 16 by CLIP")
        page.click(".kind[data-kind=best] input")
        page.click(".kind[data-kind=best] input")
        settle(page)
        compare(page)
        details = page.locator(".comparison .kind-best .detail")
        expect(details).to_have_text(["Zibo 1.4 + On the moon 1, best of 16 by CLIP"])
    finally:
        path.unlink()
    choose(page, "zibo")
    expect(best).to_contain_text("two LoRAs or more")


def test_more_is_varied_than_seeds(page: Page, tmp_path: Path) -> None:
    open_tab(page)
    choose(page, "zibo", "neon")
    settle(page)
    axis = page.locator(".ways-choice .axis")
    axis.first.get_by_role("combobox").select_option("CFG scale")
    axis.first.get_by_role("textbox").fill("2, 4")
    axis.nth(1).get_by_role("combobox").select_option("Weight of neon")
    axis.nth(1).get_by_role("textbox").fill("0.5, 1, 1.5")
    page.click(".ways-choice .scored input")
    for kind in ("bare", "alone", "best", "nla", "regions", "gates"):
        page.click(f".kind[data-kind={kind}] input")
    expect(page.locator(".ways-choice .sum")).to_have_text("up to 12 pictures")
    compare(page)
    # with weights of 1 yours are the same as weights of 1, and are one way
    expect(page.locator(".comparison .cell:enabled")).to_have_count(6)
    rows = page.locator(".comparison .way").first.locator(".row")
    expect(rows.first).to_contain_text("cfg 2 · lora:neon 0.5 · seed")
    expect(page.locator(".comparison .score")).to_have_count(0)
    keep(page, "compare varied", tmp_path)
    # taken out again
    axis.first.get_by_role("combobox").select_option("Vary …")
    expect(page.locator(".ways-choice .sum")).to_have_text("up to 6 pictures")


def test_one_lora_is_compared_with_none(page: Page, tmp_path: Path) -> None:
    open_tab(page)
    choose(page, "moon")
    settle(page)
    compare(page)
    assert labels(page) == ["Without LoRAs", "On the moon alone"]
    keep(page, "compare one", tmp_path)


def test_what_is_wrong_is_told_and_the_page_goes_on(page: Page) -> None:
    open_tab(page)
    settle(page)
    choose(page)
    compare(page, "failed")
    caption = page.locator(".pace .caption")
    expect(caption).to_contain_text("No LoRA is chosen")
    choose(page, "zibo", "foreign")
    compare(page, "failed")
    expect(caption).to_contain_text("foreign")
    expect(page.locator(".comparison .invitation")).to_be_visible()
    choose(page, "zibo", "neon")
    for kind in ("bare", "alone", "yours", "best", "weighted", "nla", "regions", "gates"):
        page.click(f".kind[data-kind={kind}] input")
    compare(page, "failed")
    expect(caption).to_contain_text("choose another way")  # no MixLoRA has learned these
    page.click(".kind[data-kind=gates] input")
    page.click(".kind[data-kind=bare] input")
    compare(page)
    assert labels(page) == ["Without LoRAs", "Learned gates"]
    expect(page.locator("#compare-stop")).to_be_disabled()


def test_a_comparison_is_stopped_and_keeps_what_is_done(page: Page) -> None:
    open_tab(page)
    choose(page, "zibo", "neon")
    settle(page, steps=500)  # so that it is not over before it is stopped
    page.click("#compare-start")
    expect(page.locator(".cell:enabled").first).to_be_visible()
    page.click("#compare-stop")
    expect(page.locator(".pace")).to_have_attribute("data-phase", "done")
    expect(page.locator(".pace .title")).to_have_text("Stopped")
    assert page.locator(".cell.lost").count() > 0
    expect(page.locator(".files .file").first).to_be_visible()


def test_markup_in_a_title_is_text(page: Page) -> None:
    open_tab(page)
    choose(page, "evil")
    settle(page)
    compare(page)
    assert any("onerror" in label for label in labels(page))
    assert page.evaluate("window.hacked") is None
