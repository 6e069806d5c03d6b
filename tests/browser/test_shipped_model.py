"""What ships, by mouse: its gates in two clicks; a training that outlives the app; a comparison."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from page_helpers import keep, newest, opened, press
from playwright.sync_api import Browser, Page, expect
from running_app import ROOT, App, serving

from composer.diffusion.png import read_png
from composer.diffusion.record import PictureRecord
from composer.fusions.gate_file import read_gates

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400, func_only=True)]
MODEL = ROOT / "assets" / "toybox"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """The app with the model and the LoRAs that ship, in a folder for what it writes."""
    root = tmp_path_factory.mktemp("shipped")
    shutil.copytree(ROOT / "loras", root / "loras")
    with serving(MODEL, root / "loras", root) as app:
        yield app


def paint(page: Page, app: App, button: str = "#generate") -> PictureRecord:
    press(page, button)
    return read_png(newest(app))


def test_the_difference_shows_in_two_clicks(page: Page, app: App, tmp_path: Path) -> None:
    page.click("#examples .with-gates >> nth=0")
    expect(page.locator(".gates .chosen")).to_be_visible()
    gated = paint(page, app)
    assert gated.fusion["name"] == "gates"
    file = read_gates(app.loras / "gates" / f"{gated.fusion['gates']}.safetensors")
    page.click(".gatemap summary")
    expect(page.locator(".gatemap .shares")).to_have_count(len(file.experts))
    columns = len(file.experts) * len(file.tensors)
    expect(page.locator(".gatemap .shares td")).to_have_count(columns)
    keep(page, "shipped gates", tmp_path)
    weighted = paint(page, app, "#other-way")
    assert weighted.fusion == {"name": "weighted"} and weighted.request == gated.request


def test_ways_are_compared(page: Page, app: App, tmp_path: Path) -> None:
    page.click("#examples .with-gates >> nth=0")
    expect(page.locator(".gates .chosen")).to_be_visible()
    page.get_by_role("tab", name="Compare").click()
    page.wait_for_selector("#compare-mixer .row")
    page.click("#compare-settings > button")
    page.fill("#compare-steps input", "4")
    for kind in ("bare", "weighted", "nla", "regions", "mixlora"):
        way = page.locator(f".kind[data-kind={kind}] input")
        if way.is_enabled():
            way.uncheck()
    page.evaluate("document.querySelector('.pace').dataset.phase = 'before'")
    page.click("#compare-start")
    expect(page.locator(".pace")).to_have_attribute("data-phase", "done")
    labels = page.locator(".comparison .label strong").all_inner_texts()
    assert labels[-2:] == ["Best known weights", "Learned gates"] and len(labels) == 5
    assert page.locator(".sides strong").all_inner_texts()[1] == "Learned gates"
    keep(page, "shipped compared", tmp_path)


@pytest.mark.slow
def test_a_training_outlives_the_app(app: App, browser: Browser, tmp_path: Path) -> None:
    """A short training of the pair that the page begins with."""
    app.serve()
    page = opened(browser, app)
    page.get_by_role("tab", name="Train gates").click()
    expect(page.locator(".lora-line")).to_have_count(2)
    page.fill("#gate-name input, #gate-name textarea", "mine")
    page.fill("#train-set-steps input", "32")
    page.click("#train-advanced > button")
    page.fill("#train-set-batch-size input", "2")
    loras = {line.get_attribute("data-name") for line in page.locator(".lora-line").all()}
    page.click("#train-start")
    training = "document.querySelector('.training .what').innerText"
    page.wait_for_function(f"+(/step (\\d+)/i.exec({training}) || [0, 0])[1] >= 27")  # 25 are kept
    app.kill()
    page.close()
    gates = app.loras / "gates" / "mine.safetensors"
    assert not gates.exists()

    app.serve()
    page = opened(browser, app)
    page.get_by_role("tab", name="Train gates").click()
    page.locator(".trainings .row[data-name=mine] .resume").click()
    expect(page.locator(".training")).to_have_attribute("data-state", "finished")
    keep(page, "shipped trained", tmp_path)
    assert {expert.name for expert in read_gates(gates).experts} == loras
    page.locator(".training .use").click()
    expect(page.locator("#fusion input")).to_have_value(re.compile("Learned gates"))
    page.fill("#steps input", "4")
    assert paint(page, app).fusion["gates"] == "mine"
    page.close()
