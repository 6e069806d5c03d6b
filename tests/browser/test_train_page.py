"""Gates are trained by mouse: watched, left alone, stopped, continued, used."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from page_helpers import keep, newest, opened, press, ready
from playwright.sync_api import Browser, Page, expect
from running_app import PATIENCE, App
from tiny_clip import write_clip

from composer.diffusion.png import read_png
from composer.fusions.gate_file import read_gates

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300, func_only=True)]


@pytest.fixture(autouse=True)
def files_as_they_were(app: App) -> Iterator[None]:
    """Other tests must not find gates where they look for none."""
    gates = app.loras / "gates"
    before = set(gates.iterdir())
    yield
    for made in set(gates.iterdir()) - before:
        made.unlink()


def open_tab(page: Page, name: str = "Train gates") -> None:
    page.get_by_role("tab", name=name).click()


def choose(page: Page, *names: str) -> None:
    """Exactly these LoRAs, with prompts as short as the tiny model needs them."""
    page.wait_for_selector(".face")
    expect(page.locator(".training-prompts .nothing, .lora-line").first).to_be_attached()
    while page.locator(".lora-line").count():
        page.locator(".lora-line .remove").first.click()
    for name in names:
        page.click(f".face[data-name={name}]")
    expect(page.locator(".lora-line")).to_have_count(len(names))
    expect(page.locator(".lora-line .many").last).to_contain_text("prompts")
    for name in names:
        write(page, f"alone {name}", name)
    write(page, "together", " ".join(names))


def write(page: Page, key: str, prompts: str) -> None:
    fold = page.locator(f".prompts[data-key='{key}']")
    if fold.get_attribute("open") is None:
        fold.locator("summary").click()
    fold.locator("textarea").fill(prompts)


def settle(page: Page, steps: int, name: str) -> None:
    page.fill("#gate-name input, #gate-name textarea", name)
    page.fill("#train-set-steps input", str(steps))
    if not page.locator("#train-set-batch-size input").is_visible():
        page.click("#train-advanced > button")
    page.fill("#train-set-batch-size input", "2")


def state(page: Page, wanted: str, name: str | None = None) -> None:
    """The training that is shown, which may still be an earlier one unless `name` is given."""
    if name is not None:
        expect(page.locator(".training .title")).to_have_text(name)
    expect(page.locator(".training")).to_have_attribute("data-state", wanted)


def step(page: Page) -> int:
    found = re.search(r"[Ss]tep (\d+)", page.inner_text(".training .what"))
    return int(found[1]) if found else 0


def wait_for_step(page: Page, least: int) -> int:
    page.wait_for_function(
        "least => +(/step (\\d+)/i.exec(document.querySelector('.training .what').innerText)"
        " || [0, 0])[1] >= least",
        arg=least,
    )
    return step(page)


def test_gates_are_trained_by_mouse(page: Page, app: App, tmp_path: Path) -> None:
    open_tab(page)
    expect(page.locator(".lora-line")).to_have_count(2)  # a pair is there already
    choose(page, "zibo", "neon")
    expect(page.locator("#gate-name input, #gate-name textarea")).to_have_value("zibo_neon")
    settle(page, 4000, "mine")
    page.click("#train-start")
    state(page, "running", "mine")
    wait_for_step(page, 20)
    curve = page.locator(".chart.loss .line.is-loss")
    expect(curve).to_have_attribute("d", re.compile(r"^M[\d. ]+L"))
    expect(page.locator(".chart.entropy .line")).to_have_attribute("d", re.compile("L"))
    before = curve.get_attribute("d")
    expect(page.locator(".legend button")).to_have_count(3)  # all of it, and each LoRA
    expect(page.locator(".training .left")).to_contain_text("left")
    keep(page, "training", tmp_path)

    # the page is closed and opened again: it went on
    page.reload()
    ready(page)
    open_tab(page)
    state(page, "running")
    later = wait_for_step(page, 40)
    assert page.locator(".chart.loss .line.is-loss").get_attribute("d") != before

    page.click("#train-stop")
    state(page, "stopped")
    stopped = step(page)
    assert stopped >= later
    assert not (app.loras / "gates" / "mine.safetensors").exists()
    row = page.locator(".trainings .row[data-name=mine]")
    expect(row).to_contain_text("stopped")

    row.locator(".resume").click()
    state(page, "running")
    assert wait_for_step(page, stopped + 5) < 4000
    page.click("#train-stop")
    state(page, "stopped")


def test_a_training_ends_with_a_file_that_compose_offers(
    page: Page, app: App, tmp_path: Path
) -> None:
    open_tab(page)
    choose(page, "zibo", "moon")
    settle(page, 24, "whole")
    page.click("#train-start")
    state(page, "finished", "whole")
    expect(page.locator(".training .message")).to_contain_text("ready in Compose")
    expect(page.locator(".previews figure")).to_have_count(6)
    keep(page, "trained", tmp_path)
    file = read_gates(app.loras / "gates" / "whole.safetensors")
    assert [expert.name for expert in file.experts] == ["zibo", "moon"]
    expect(page.locator("#gate-name input, #gate-name textarea")).to_have_value("zibo_moon")

    # the same name again is refused, in place
    page.fill("#gate-name input, #gate-name textarea", "whole")
    page.click("#train-start")
    expect(page.locator("#train-problem")).to_contain_text("'whole' already")

    # one click puts them to use
    page.locator(".training .use").click()
    expect(page.locator(".mixer .row[data-name=moon]")).to_have_count(1)
    expect(page.locator(".mixer .row")).to_have_count(2)
    expect(page.locator("#fusion input")).to_have_value(re.compile("Learned gates"))
    assert {row.get_attribute("data-name") for row in page.locator(".mixer .row").all()} == {
        "zibo",
        "moon",
    }
    open_tab(page)

    row = page.locator(".trainings .row[data-name=whole]")
    row.locator(".forget").click()
    row.locator(".forget").click()
    expect(row).to_have_count(0)
    assert (app.loras / "gates" / "whole.safetensors").is_file()


def test_a_picture_is_made_while_gates_are_trained(page: Page, app: App) -> None:
    open_tab(page)
    choose(page, "zibo", "neon")
    settle(page, 4000, "beside")
    page.click("#train-start")
    state(page, "running", "beside")
    wait_for_step(page, 3)
    open_tab(page, "Compose")
    page.fill("#steps input", "4")
    press(page)
    open_tab(page)
    state(page, "running")
    wait_for_step(page, step(page) + 3)
    page.click("#train-stop")
    state(page, "stopped")


def test_mistakes_are_told_in_place_and_the_page_stays_alive(page: Page, tmp_path: Path) -> None:
    open_tab(page)
    choose(page, "zibo", "neon")
    problem = page.locator("#train-problem")

    def refused(words: str) -> None:
        page.click("#train-start")
        expect(problem).to_contain_text(words)

    settle(page, 10, "../x")
    refused("cannot be the name")
    page.fill("#gate-name input, #gate-name textarea", "fine")
    page.fill("#train-set-learning-rate input", "")
    refused("Learning rate is empty")
    page.fill("#train-set-learning-rate input", "-1")
    refused("learning_rate is -1")
    page.fill("#train-set-learning-rate input", "0.01")
    write(page, "together", "  \n ")
    refused("names all LoRAs together")
    write(page, "together", "zibo neon " * 20)
    page.click("#train-start")
    state(page, "failed", "fine")
    expect(page.locator(".training .message")).to_contain_text("longer than the 30 tokens")
    keep(page, "training-failed", tmp_path)
    write(page, "together", "zibo neon")
    page.click("#train-start")
    state(page, "finished")

    # what strangers wrote is only text here too
    page.click(".face[data-name=evil]")
    expect(page.locator(".lora-line")).to_have_count(3)
    assert page.evaluate("window.hacked") is None


def test_a_narrow_page_in_the_dark_shows_everything(page: Page, tmp_path: Path) -> None:
    page.click(".masthead .light")
    page.set_viewport_size({"width": 390, "height": 844})
    open_tab(page)
    expect(page.locator(".lora-line").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    keep(page, "train-narrow", tmp_path)


def test_words_that_call_a_lora_change_its_prompts_but_not_ones_own(page: Page) -> None:
    open_tab(page)
    expect(page.locator(".lora-line")).to_have_count(2)
    line = page.locator(".lora-line").first
    name = line.get_attribute("data-name")
    page.locator(f".prompts[data-key='alone {name}'] summary").click()
    own = page.locator(f".prompts[data-key='alone {name}'] textarea")
    together = page.locator(".prompts[data-key=together] textarea")
    line.locator(".called input").fill("wuzzle")
    line.locator(".called input").press("Enter")
    expect(together).to_have_value(re.compile("wuzzle"), timeout=PATIENCE * 1000)
    expect(own).to_have_value(re.compile("wuzzle"))
    own.fill("only this")
    line.locator(".called input").fill("woozle")
    line.locator(".called input").press("Enter")
    expect(together).to_have_value(re.compile("woozle"))
    expect(own).to_have_value("only this")


def test_the_paper_is_one_click_away(page: Page, browser: Browser) -> None:
    open_tab(page)
    page.click("#train-advanced > button")
    page.get_by_role("button", name="As published").click()
    expect(page.locator("#train-set-paper input")).to_be_checked()
    page.get_by_role("button", name="Recommended").click()
    expect(page.locator("#train-set-paper input")).not_to_be_checked()


def test_a_clip_of_ones_own_judges(page: Page, app: App, tiny_sd: Path, tmp_path: Path) -> None:
    open_tab(page)
    choose(page, "zibo", "neon")
    page.click("#train-advanced > button")
    page.get_by_role("button", name="As published").click()
    expect(page.locator("#train-set-paper input")).to_be_checked()
    settle(page, 2, "judged")
    problem = page.locator("#train-problem")
    page.click("#train-start")
    expect(problem).to_contain_text("has no CLIP beside it")
    clip = page.locator("#train-set-clip").locator("input, textarea")
    clip.fill("/nowhere/clip")
    page.click("#train-start")
    expect(problem).to_contain_text("there is no such folder")
    clip.fill(str(write_clip(tmp_path / "clip", tiny_sd)))
    keep(page, "train clip", tmp_path)
    page.click("#train-start")
    state(page, "finished", "judged")
    made = read_gates(app.loras / "gates" / "judged.safetensors")
    assert made.training["settings"]["clip"] == str(tmp_path / "clip")


def test_a_training_outlives_the_app(app: App, browser: Browser) -> None:
    """Killed and started anew, here without a language model, where the page says so."""
    app.serve()
    page = opened(browser, app)
    open_tab(page)
    choose(page, "zibo", "moon")
    settle(page, 150, "outlived")
    page.click("#train-start")
    state(page, "running", "outlived")
    wait_for_step(page, 26)  # 25 are kept
    app.kill()
    page.close()
    gates = app.loras / "gates" / "outlived.safetensors"
    assert not gates.exists()

    app.serve("--language-model", str(app.root / "nowhere"))
    page = opened(browser, app)
    expect(page.locator(".expander")).to_have_attribute("data-phase", "off")
    assert page.locator(".expander .expand").is_disabled()
    expect(page.locator(".expander .note")).to_contain_text("nowhere: check the path")

    open_tab(page)
    page.locator(".trainings .row[data-name=outlived] .resume").click()
    state(page, "finished", "outlived")
    assert {expert.name for expert in read_gates(gates).experts} == {"zibo", "moon"}
    page.locator(".training .use").click()
    expect(page.locator("#fusion input")).to_have_value(re.compile("Learned gates"))
    page.fill("#steps input", "4")
    press(page)
    assert read_png(newest(app)).fusion["gates"] == "outlived"
    page.close()
