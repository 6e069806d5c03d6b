"""The actions of the page that compares, on the tiny model, without a browser."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from tiny_loras import write_lora

from composer.evaluation.conflicts import STEPS
from composer.fusions import LoraRow, Sum
from composer.studio import Studio
from composer.ui import compare_views, views
from composer.ui.compare_actions import CompareActions
from composer.ui.compare_layout import ComparePage, lay_out as lay_out_compare
from composer.ui.layout import Page, lay_out

ROWS = (LoraRow(name="zibo", weight=0.7), LoraRow(name="neon", text_encoder=0.2))
VISITOR: Any = SimpleNamespace(session_hash="ann")
COMPOSED = {
    "fusion": "weighted", "prompt": "zibo fox", "negative": "blur", "steps": 2, "cfg_scale": 2.0,
    "sampler": "Euler", "count": 3, "width": 16, "height": 16, "clip_skip": 1, "seed": 5,
    "new_seed": True, "pins": "", "schedule": "Karras", "hires": 1, "strength": 0.7, "start": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def studio(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    folder = tmp_path_factory.mktemp("comparing") / "loras"
    for seed, name in enumerate(("zibo", "neon")):
        told = {"modelspec.trigger_phrase": f"{name} here", "modelspec.title": name.title()}
        write_lora(folder / f"{name}.safetensors", seed=seed, **told)
    studio = Studio(tiny_sd, [folder], folder.parent / "outputs")
    assert studio.wait(120).state == "ready"
    return studio


@pytest.fixture
def pages() -> tuple[Page, ComparePage]:
    with gr.Blocks():
        return lay_out(), lay_out_compare()


@pytest.fixture
def page(pages: tuple[Page, ComparePage]) -> ComparePage:
    return pages[1]


@pytest.fixture
def actions(studio: Studio, pages: tuple[Page, ComparePage]) -> CompareActions:
    return CompareActions(studio, pages[1], pages[0])


def mixer(*rows: LoraRow) -> list[Any]:
    return [views.row_view(row, None, Sum()) for row in rows]


def composed(actions: CompareActions, *rows: LoraRow) -> list[Any]:
    values = {**COMPOSED, "mixer": mixer(*rows)}
    return [values[name] for name in actions._compose.form]  # pyright: ignore[reportPrivateUsage]


def form(page: ComparePage, *rows: LoraRow, **changes: Any) -> list[Any]:
    encoders = {"clip": "", "dino": None}
    values = {**COMPOSED, "mixer": mixer(*rows), "ways": None, **encoders, **changes}
    return [values[name] for name in page.form]


def varied(name: str, values: str) -> dict[str, Any]:
    return {**compare_views.ways_view(), "axes": [{"name": name, "values": values}]}


def last(updates: Iterator[dict[Any, Any]]) -> dict[Any, Any]:
    whole: dict[Any, Any] = {}
    for update in updates:
        whole |= update
    return whole


def test_an_untouched_page_takes_over_what_compose_shows(
    actions: CompareActions, page: ComparePage
) -> None:
    update = actions.open([], "", None, *composed(actions, *ROWS))
    assert views.read_rows(update[page.mixer], "weighted") == ROWS
    assert update[page.mixer][0]["title"] == "Zibo"
    assert {update[page.prompt], update[page.negative]} == {"zibo fox", "blur"}
    assert (update[page.steps], update[page.sampler], update[page.seed]) == (2, "Euler", 5)
    assert {card["name"] for card in update[page.picker]["cards"]} == {"zibo", "neon"}
    own = actions.open(mixer(ROWS[0]), "mine", None, *composed(actions, *ROWS))
    assert own.keys() == {page.picker, page.ways}


def test_gates_rows_are_taken_over_as_weights(actions: CompareActions, page: ComparePage) -> None:
    limited = replace(ROWS[0], steps=(0.0, 0.5), depth=(0.2, 1.0), on=False)
    update = actions.take(*composed(actions, limited))
    assert views.read_rows(update[page.mixer], "weighted") == (limited,)


def test_loras_are_checked_before_anything_is_painted(
    actions: CompareActions, page: ComparePage
) -> None:
    updates = list(actions.check(VISITOR, mixer(*ROWS), "a fox"))
    said = [update[page.conflicts] for update in updates]
    assert said[0] == {"status": "Measuring …"}
    assert said[-2]["status"] == f"Step {STEPS} of {STEPS} of the bare model"
    names = [of for of, _ in said[-1]["lines"]]
    assert names == ["neon", "zibo", "neon and zibo", "Added up"]
    assert "in the same places" in said[-1]["lines"][2][1] and said[-1]["advice"]
    assert updates[-1][page.check]["interactive"] and not updates[-1][page.stop]["interactive"]
    without = last(actions.check(VISITOR, mixer(*ROWS), " "))[page.conflicts]
    assert "in the same places" not in without["lines"][2][1]
    none = last(actions.check(VISITOR, mixer(replace(ROWS[0], on=False)), "a fox"))
    assert "No LoRA is active" in none[page.conflicts]["status"]


def test_rows_that_are_none_are_told(
    actions: CompareActions, page: ComparePage, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(gr, "Warning", lambda message, **_: told.append(message))
    values = composed(actions)
    values[list(actions._compose.form).index("mixer")] = "rows"  # pyright: ignore[reportPrivateUsage]
    assert actions.take(*values)[page.mixer] == [] and "Reload the page" in told[0]


def test_trigger_words_follow_the_loras(actions: CompareActions) -> None:
    event: Any = SimpleNamespace(name="neon")
    assert actions.add_trigger("a fox", event) == "a fox, neon here"
    assert actions.remove_trigger("a fox, neon here", event) == "a fox"
    # what changes nothing is no answer: it would take back what is written meanwhile
    for same in (actions.add_trigger("neon here", event), actions.remove_trigger("a fox", event)):
        assert same == gr.skip()


def test_the_grid_fills_picture_by_picture(actions: CompareActions, page: ComparePage) -> None:
    updates = list(actions.compare(VISITOR, *form(page, *ROWS)))
    grids = [update[page.comparison] for update in updates if page.comparison in update]
    there = [sum(src is not None for row in grid["cells"] for src in row) for grid in grids]
    assert there == [*range(15), 14]  # seven ways with two seeds; the last one brings the files
    assert len({grid["id"] for grid in grids}) == 1
    assert [grid["over"] for grid in grids] == [False] * 15 + [True]
    scores = [one for way in grids[-1]["scores"] for one in way]
    assert [len(one["loras"]) for one in scores] == [0, 0, 1, 1, 1, 1] + [2] * 8
    assert scores[2]["loras"][0]["title"] == "Zibo" and scores[0]["bare"] == 0
    whole = last(iter(updates))
    assert whole[page.pace]["phase"] == "done" and whole[page.stop]["interactive"] is False
    assert len(whole[page.comparison]["files"]) == 5
    # gates are beside the sum; what one LoRA makes alone is beside nothing
    standings = dict(whole[page.comparison]["standings"]["ways"])
    wins = {way: "wins" in str(lines) for way, lines in standings.items()}
    assert len(wins) == 7 and wins[6] and not wins[1]
    assert "there already" not in whole[page.pace]["detail"]
    # the same once more: nothing is painted, and all is there
    again = last(actions.compare(VISITOR, *form(page, *ROWS)))
    assert again[page.comparison]["cells"] == whole[page.comparison]["cells"]
    assert "there already" in again[page.pace]["detail"]


def test_more_can_be_varied_and_not_be_scored(actions: CompareActions, page: ComparePage) -> None:
    ways = {**varied("cfg", "1, 2, 4"), "seeds": 1, "scored": False}
    whole = last(actions.compare(VISITOR, *form(page, *ROWS, ways=ways)))
    grid = whole[page.comparison]
    assert grid["rows"] == ["cfg 1 · seed 5", "cfg 2 · seed 5", "cfg 4 · seed 5"]
    assert [len(way) for way in grid["cells"]] == [3] * 7 and None not in grid["cells"][6]
    assert all(not one["loras"] for way in grid["scores"] for one in way)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mixer": []}, "No LoRA is chosen"),
        ({"mixer": "rows"}, "Reload the page"),
        ({"ways": "ways"}, "Reload the page"),
        ({"ways": {**compare_views.ways_view(), "lines": []}}, "one way or more"),
        ({"ways": {**compare_views.ways_view(), "seeds": 9}}, "1 to 4"),
        ({"ways": varied("cfg", "")}, "NAME=VALUE"),
        ({"ways": varied("cfg", "2,x")}, "give a number"),
        ({"ways": varied("steps", ",".join(map(str, range(1, 200))))}, "1000 are the most"),
        ({"ways": varied("density", "0.5")}, "no axis 'density'"),
        ({"steps": 0}, "number of steps"),
        ({"clip": " ./nowhere "}, "The CLIP ./nowhere cannot be used (there is no such folder)"),
        ({"dino": "./nowhere"}, "The DINO ./nowhere cannot be used"),
        ({"seed": None}, "The seed"),
        ({"width": 17}, "does not fit this model"),
        ({"mixer": mixer(LoraRow(name="zobi"))}, "Did you mean 'zibo'"),
    ],
)
def test_what_is_wrong_is_told_in_place(
    actions: CompareActions, page: ComparePage, changes: dict[str, Any], told: str
) -> None:
    update = last(actions.compare(VISITOR, *form(page, *ROWS, **changes)))
    assert update[page.pace]["phase"] == "failed" and told in update[page.pace]["detail"]
    assert update[page.stop]["interactive"] is False
    assert update.get(page.comparison) is None


def test_a_comparison_is_stopped_and_pictures_of_compose_are_not(
    actions: CompareActions, page: ComparePage, studio: Studio
) -> None:
    updates = actions.compare(VISITOR, *form(page, *ROWS, steps=60))
    for update in updates:
        if update.get(page.comparison, {}).get("cells", [[None]])[0][0]:
            break
    assert {job.owner for job in studio.queue} == {"ann compares"}
    assert actions.stop(VISITOR)["interactive"] is False
    whole = last(updates)
    assert whole[page.pace]["title"] == "Stopped" and whole[page.comparison]["over"]


def test_a_model_that_cannot_be_loaded_says_so(
    tmp_path: Path, pages: tuple[Page, ComparePage]
) -> None:
    studio = Studio(tmp_path / "no model", [tmp_path / "nowhere"], tmp_path / "outputs")
    actions = CompareActions(studio, pages[1], pages[0])
    page = pages[1]
    opened = actions.open([], "", None, *composed(actions))
    assert opened[page.picker]["cards"] == []
    update = last(actions.compare(VISITOR, *form(page, *ROWS)))
    assert update[page.pace]["phase"] == "failed" and "no model" in update[page.pace]["detail"]
