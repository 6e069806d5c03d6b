"""Learned gates on the first page, without a browser: what components get, what is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from PIL import Image
from tiny_gates import write_gates
from tiny_loras import write_lora

from composer.diffusion.record import LoraRecord, PictureRecord
from composer.diffusion.request import Request
from composer.errors import ComposerError
from composer.fusions import PLAIN, Gates, LoraRow, Offer, Sum, read_recipe
from composer.studio import History, SavedPicture, Studio
from composer.ui import gate_views, views
from composer.ui.actions import Actions
from composer.ui.examples import gate_example
from composer.ui.layout import Page, lay_out

PAIR = "gates:pair"
CARDS = {
    "zibo": {"modelspec.title": "Zibo", "composer.role": "character"},
    "neon": {"modelspec.title": "Neon", "composer.role": "style"},
    "moon": {"modelspec.title": "Moon", "composer.role": "background"},
}


@pytest.fixture(scope="module")
def studio(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    folder = tmp_path_factory.mktemp("compose") / "loras"
    loras = {
        name: write_lora(
            folder / f"{name}.safetensors",
            seed=seed,
            **told,
            **{"modelspec.trigger_phrase": f"{name} here"},
        )
        for seed, (name, told) in enumerate(CARDS.items())
    }
    pair = {name: loras[name] for name in ("zibo", "neon")}
    write_gates(folder / "gates" / "pair.safetensors", tiny_sd, pair)
    (folder / "gates" / "bad.safetensors").write_bytes(b"bad")
    studio = Studio(tiny_sd, [folder], folder.parent / "outputs")
    assert studio.wait(120).state == "ready"
    return studio


@pytest.fixture
def page() -> Page:
    with gr.Blocks():
        return lay_out()


@pytest.fixture
def actions(studio: Studio, page: Page) -> Actions:
    return Actions(studio, page)


def mixer(*rows: LoraRow) -> list[Any]:
    return [views.row_view(row, None, Sum()) for row in rows]


def names(lines: list[Any]) -> dict[str, bool]:
    return {line["name"]: line["on"] for line in lines}


def visitor() -> Any:
    return SimpleNamespace(session_hash="ann")


def last(updates: Iterator[dict[Any, Any]]) -> dict[Any, Any]:
    whole: dict[Any, Any] = {}
    for update in updates:
        whole |= update
    return whole


def test_a_model_that_is_not_there_yet_has_no_gates(tmp_path: Path, page: Page) -> None:
    idle = Studio(tmp_path / "model", [tmp_path], tmp_path / "outputs")
    assert idle.offers() == ((), ())
    update = Actions(idle, page).gates.follow("weighted", [])
    assert update[page.gates] == {"offers": [], "chosen": None}


def test_gates_are_among_the_fusions_and_bad_ones_are_problems(
    actions: Actions, page: Page
) -> None:
    update = actions.refresh("weighted")
    choices = update[page.fusion]["choices"]
    assert choices[3] == ("Learned gates: Zibo + Neon", PAIR)
    assert "value" not in update[page.fusion]
    assert any("bad.safetensors" in problem for problem in update[page.library]["problems"])
    offers = update[page.gates]["offers"]
    assert offers == [
        {"id": PAIR, "name": "pair", "title": "Zibo + Neon", "names": ["zibo", "neon"]}
    ]


def test_choosing_gates_fills_the_mixer_and_keeps_its_switches(
    actions: Actions, page: Page
) -> None:
    rows = (LoraRow(name="moon"), LoraRow(name="neon", on=False, weight=0.4))
    update = actions.gates.follow(PAIR, mixer(*rows))
    assert names(update[page.mixer]) == {"zibo": True, "neon": False}
    assert update[page.mixer][1]["weight"] == 0.4  # for when weights are back
    assert update[page.gates]["chosen"] == PAIR
    # rows that are right already are not put back: meanwhile one may have been added
    for known in (update[page.mixer], update[page.mixer][::-1]):
        assert page.mixer not in actions.gates.follow(PAIR, known)
    back = actions.gates.follow("nla", update[page.mixer])
    assert page.mixer not in back and back[page.gates]["chosen"] is None
    assert names(actions.gates.follow(PAIR, "rubbish")[page.mixer]) == {"zibo": True, "neon": True}


def test_a_lora_that_the_gates_do_not_know_brings_weights_back(
    actions: Actions, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(gr, "Info", lambda message, **_: told.append(message))
    added: Any = SimpleNamespace(name="moon")
    assert actions.gates.grown(PAIR, added)["value"] == "weighted"
    assert told == ["The gates know Zibo + Neon alone, so weights are used now."]
    known: Any = SimpleNamespace(name="zibo")
    assert "value" not in actions.gates.grown(PAIR, known)
    assert "value" not in actions.gates.grown("weighted", added)


def test_a_form_still_untouched_gets_the_pair_with_gates(actions: Actions, page: Page) -> None:
    whole = last(actions.greet())
    update = actions.greet_gates()
    assert not {page.mixer, page.prompt, page.pins} & update.keys()  # the page decides
    assert "value" not in update[page.fusion]
    before, form = update[page.proposal]["before"], update[page.proposal]["form"]
    assert before == {
        "names": [line["name"] for line in whole[page.mixer]],
        "prompt": whole[page.prompt],
    }
    mixer, *rest = form
    assert names(mixer) == {"zibo": True, "neon": True}
    assert rest == [PAIR, "zibo here in the snow, neon here", ""]
    assert update[page.gate_examples[0]]["visible"]
    filled = actions.gate_example(0)()
    assert filled[page.fusion]["value"] == PAIR
    assert actions.example(0)()[page.fusion]["value"] == "weighted"


def test_a_picture_is_made_with_gates_without_and_with_again(
    actions: Actions, page: Page, studio: Studio
) -> None:
    form = {
        "mixer": mixer(LoraRow(name="zibo", weight=0.0), LoraRow(name="neon", on=False)),
        "fusion": PAIR, "prompt": "a fox", "negative": "", "steps": 2, "cfg_scale": 2.0,
        "sampler": "Euler", "count": 1, "width": 16, "height": 16, "clip_skip": 1, "seed": 5,
        "new_seed": False, "pins": "", "schedule": "Karras", "hires": 1, "strength": 0.7,
        "start": None,
    }  # fmt: skip

    def paint(**changes: Any) -> tuple[dict[Any, Any], SavedPicture]:
        values = {**form, **changes}
        shown = last(actions.generate(visitor(), *(values[name] for name in page.form)))
        return shown, studio.history.find(shown[page.current])

    shown, gated = paint()
    assert gated.record.fusion["switches"] == {"zibo": True, "neon": False}
    assert shown[page.gate_map] == {"id": gated.id}
    assert shown[page.other_way]["value"] == "Same by weights"
    assert "Neon off" in shown[page.recipe]["value"]

    shown = last(actions.remake(visitor(), gated.id))
    assert shown[page.fusion]["value"] == "weighted" and page.seed not in shown
    weighted = studio.history.find(shown[page.current])
    assert [lora.name for lora in weighted.record.loras] == ["zibo"]
    assert shown[page.gate_map] is None
    assert not shown[page.other_way]["visible"]  # gates know two, and it has one

    _, both = paint(fusion="weighted", mixer=mixer(LoraRow(name="zibo"), LoraRow(name="neon")))
    shown = last(actions.remake(visitor(), both.id))
    again = studio.history.find(shown[page.current]).record
    assert again.fusion["name"] == "gates" and again.request == both.record.request

    # limits stay when the fusion changes; pins do not, whose units may be called otherwise
    early, pins = LoraRow(name="zibo", steps=(0.0, 0.5)), "*: zibo=1, neon=0.5"
    limited = mixer(early, LoraRow(name="neon"))
    for fusion, other in ((PAIR, "weighted"), ("weighted", "gates")):
        _, first = paint(fusion=fusion, mixer=limited, pins=pins)
        shown = last(actions.remake(visitor(), first.id))
        told = studio.history.find(shown[page.current]).record.fusion
        assert (told["name"], told["steps"]) == (other, {"zibo": [0.0, 0.5]}) and "pins" not in told
        assert shown[page.pins] == "" and not shown[page.pinning]["open"]
        used = actions.use(first.id)
        assert used[page.pins] == pins and used[page.pinning]["open"]
        assert "zibo=1, neon=0.5" in views.recipe(first, {})
    assert actions.gate_example(0)()[page.pins] == ""

    restored = actions.use(gated.id)
    assert restored[page.fusion]["value"] == PAIR
    assert names(restored[page.mixer]) == {"zibo": True, "neon": False}


def test_the_map_is_made_when_somebody_looks(
    actions: Actions, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    (picture,) = [saved for saved in studio.history.recent(9) if saved.gated][:1]
    event: Any = SimpleNamespace(id=picture.id)
    view = actions.gates.look(event)
    record = picture.gate_record()
    assert record is not None
    assert [expert["title"] for expert in view["experts"]] == ["Neon", "Zibo"]
    assert [unit["stage"] for unit in view["units"]] == ["down"]
    assert [row["label"] for row in view["rows"]] == ["With the prompt", "Without it"]
    shares = view["rows"][0]["steps"]
    assert len(shares) == 2 and len(shares[0]) == len(record.with_prompt)
    assert abs(shares[0][0][0] + shares[1][0][0] - 100) <= 1
    assert view["rows"][0]["png"].startswith("data:image/png;base64,")
    told: list[str] = []
    monkeypatch.setattr(gr, "Warning", lambda message, **_: told.append(message))
    picture.gates_path.write_bytes(b"spoilt")
    assert actions.gates.look(event) is None and "damaged" in told[0]
    picture.gates_path.unlink()
    assert actions.gates.look(event) is None and "is gone" in told[1]


def test_rows_with_gates_heed_switches_limits_and_strengths_alone() -> None:
    lines = mixer(
        LoraRow(name="zibo", weight=0.0, text_encoder=0.3, steps=(0.0, 0.5), depth=(0.2, 1.0)),
        LoraRow(name="neon", on=False),
    )
    lines[0]["strength"] = 1.2
    gated = views.read_rows(lines, PAIR)
    assert [(r.on, r.weight, r.text_encoder, r.steps, r.depth) for r in gated] == [
        (True, 1.2, None, (0.0, 0.5), (0.2, 1.0)), (False, 1.0, None, (0.0, 1.0), (0.0, 1.0)),
    ]  # fmt: skip
    summed = views.read_rows(lines, "weighted")[0]
    assert (summed.weight, summed.text_encoder) == (0.0, 0.3)
    assert (summed.steps, summed.depth) == ((0.0, 0.5), (0.2, 1.0))
    for part in ("steps", "depth"):
        before, lines[0][part] = lines[0][part], [0.5, 0.5]
        with pytest.raises(ComposerError, match=f"of the {part}: .* from 0 to 1"):
            views.read_rows(lines, PAIR)
        for rubbish in (None, [], [1], ["a", "b"]):
            lines[0][part] = rubbish
            with pytest.raises(ComposerError, match="Reload the page"):
                views.read_rows(lines, PAIR)
        lines[0][part] = before


def test_gates_that_do_not_fit_stay_in_the_list_while_they_are_chosen() -> None:
    offers = tuple(
        Offer(recipe=Gates(file=name), loras=("x", "y"), titles=("x", "y"), description="")
        for name in ("a", "b")
    )
    values = [value for _, value in gate_views.fusion_choices(offers, "gates:gone")]
    plain = [recipe.key for recipe in sorted(PLAIN, key=lambda recipe: not recipe.usual)]
    assert values == [*plain[:3], "gates:a", "gates:b", *plain[3:], "gates:gone"]
    # a fusion with parameters stands in its own place
    values = [value for _, value in gate_views.fusion_choices((), "ties:density=0.3")]
    assert values == ["ties:density=0.3" if key == "ties" else key for key in plain]
    titles = [title for title, _ in gate_views.fusion_choices(offers)]
    assert titles[3:5] == ["Learned gates: x + y (a)", "Learned gates: x + y (b)"]


def test_parameters_are_set_and_a_bad_one_is_put_back(
    actions: Actions, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(gr, "Warning", lambda message, **_: told.append(message))
    usual = gate_views.parameters_view(read_recipe("ties"))
    assert [view.get("value") for view in usual] == [0.5, 0, None, "largest"]
    update = actions.gates.set_parameters("ties", 0.3, 0, None, "largest")
    assert set(update) == {page.fusion} and update[page.fusion]["value"] == "ties:density=0.3"
    update = actions.gates.set_parameters("ties:density=0.3", 7, 0, None, "largest")
    assert update[page.parameters[0]]["value"] == 0.3 and page.fusion not in update
    assert len(told) == 1 and "density is 7" in told[0]
    shown = actions.gates.follow("ties:density=0.3", [])
    assert [shown[field].get("value") for field in page.parameters] == [0.3, 0, None, "largest"]
    assert not any(actions.gates.follow("nla", [])[field]["visible"] for field in page.parameters)


def test_what_strangers_wrote_into_a_gated_picture_is_text(tmp_path: Path) -> None:
    from PIL import Image

    evil = "<img src=x onerror=alert(1)>"
    fusion = {"name": "gates", "gates": evil, "switches": {evil: False}}
    record = PictureRecord(request=Request(seed=1), loras=(LoraRecord(name=evil),), fusion=fusion)
    saved = History(tmp_path).save(Image.new("RGB", (16, 16)), record)
    assert "<img" not in views.recipe(saved, {})
    odd = replace(record, fusion={"name": "gates", "switches": 3})
    assert "recipe" in views.recipe(History(tmp_path).save(Image.new("RGB", (16, 16)), odd), {})


def test_prompts_for_gates(studio: Studio) -> None:
    cards = {card.name: card for card in studio.cards()}
    example = gate_example([cards["neon"], cards["moon"]])
    assert example is not None and example.prompt == "a panda moon here, neon here"
    assert example.loras == ("neon", "moon")
    info = replace(cards["moon"].info, role="clothing", trigger="wearing a hat")
    worn = replace(cards["moon"], facts=info)
    beside = gate_example([cards["zibo"], worn])
    assert beside is not None
    assert beside.prompt == "zibo here and a panda wearing a hat in the snow"
    assert gate_example([]) is None


def test_a_picture_begins_from_the_one_that_is_shown_and_stays_where_nothing_was_painted(
    actions: Actions, page: Page, studio: Studio
) -> None:
    form = dict.fromkeys(page.form) | {
        "mixer": [], "fusion": "weighted", "prompt": "a fox", "steps": 2, "cfg_scale": 2.0,
        "sampler": "Euler", "schedule": "Automatic", "count": 1, "clip_skip": 1, "hires": 1.0,
        "strength": 0.5, "seed": "5", "new_seed": False,
    }  # fmt: skip

    def paint(**changes: Any) -> SavedPicture:
        values = {**form, **changes}
        shown = last(actions.generate(visitor(), *(values[name] for name in page.form)))
        return studio.history.find(shown[page.current])

    first = paint()
    assert page.start not in actions.begin(None)
    begun = actions.begin(first.id)[page.start]
    held = begun["value"]
    assert begun["brush"].default_size == 1  # a tenth of 16 pixels
    with Image.open(held["background"]) as image:
        background = image.convert("RGBA")
    layer = Image.new("RGBA", background.size)
    again = paint(start={"background": background, "layers": [layer], "composite": None})
    assert again.record.start and again.record.request.strength == 0.5
    layer.paste((255, 64, 64, 140), (0, 0, background.width // 2, background.height))
    part = paint(start={"background": background, "layers": [layer], "composite": None})
    assert part.record.start not in ("", again.record.start)
    right = (background.width // 2, 0, background.width, background.height)
    with Image.open(part.path) as image:
        assert image.crop(right).tobytes() == background.convert("RGB").crop(right).tobytes()
