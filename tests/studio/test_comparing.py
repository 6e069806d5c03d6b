"""Comparisons: which ways there are, that their pictures are those of Compose, one job for all."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from studio_pictures import finished
from tiny_gates import write_gates
from tiny_loras import write_lora
from tiny_weights import write_weights

from composer.diffusion.request import Request
from composer.errors import ComposerError
from composer.fusions import LoraRow
from composer.studio import (
    Comparison,
    ComposeRequest,
    Event,
    Finished,
    PictureSaved,
    Progress,
    Studio,
    Way,
)
from composer.studio.comparing import USUAL, ways_of
from composer.studio.comparison_sheet import comparison_sheet

REQUEST = Request(prompt="a fox", seed=7, steps=3, cfg_scale=3.0, width=16, height=16)
ROWS = (LoraRow(name="zibo", weight=0.8), LoraRow(name="neon", weight=0.6, text_encoder=0.2))
BOTH = Comparison(request=REQUEST, rows=ROWS)


@pytest.fixture(scope="module")
def studio(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    folder = tmp_path_factory.mktemp("compared") / "loras"
    titles = {"zibo": "Zibo", "neon": "Neon", "moon": ""}
    loras = {
        name: write_lora(folder / f"{name}.safetensors", seed=i, **{"modelspec.title": title})
        for i, (name, title) in enumerate(titles.items())
    }
    write_lora(folder / "foreign.safetensors", seed=4, width=768)
    pair = {name: loras[name] for name in ("zibo", "neon")}
    write_gates(folder / "gates" / "pair.safetensors", tiny_sd, pair)
    write_gates(folder / "gates" / "three.safetensors", tiny_sd, loras, seed=2)
    write_gates(folder / "gates" / "alien.safetensors", tiny_sd, pair, model_hash="0" * 64)
    studio = Studio(tiny_sd, [folder], tmp_path_factory.mktemp("outputs"))
    assert studio.wait(120).state == "ready", studio.status
    return studio


def alone(studio: Studio, asked: ComposeRequest) -> list[bytes]:
    return [picture.image().tobytes() for picture in finished(studio.compose(asked)).pictures]


def told(ways: Iterable[Way]) -> list[tuple[str, str]]:
    return [(way.title, way.detail) for way in ways]


def test_all_ways_of_two_loras(studio: Studio) -> None:
    assert told(studio.ways(BOTH)) == [
        ("Without LoRAs", "the model by itself"),
        ("Zibo alone", "weight 1"),
        ("Neon alone", "weight 1"),
        ("Your weights", "Zibo 0.8 + Neon 0.6 (text 0.2)"),
        ("Weights of 1", "each in full, added up"),
        ("Average (NLA)", "each at 1/2"),
        ("Trigger regions", "each where its words act"),
        ("Learned gates", "pair"),
    ]
    some = studio.ways(replace(BOTH, lines=("gates", "bare")))
    assert [way.line for way in some] == ["bare", "gates"]


def test_pictures_are_those_that_compose_makes_and_come_in_order(studio: Studio) -> None:
    ways = studio.ways(replace(BOTH, request=replace(REQUEST, count=2)))
    events = list(studio.compare(ways))
    saved = [event.saved for event in events if isinstance(event, PictureSaved)]
    assert finished(events).pictures == tuple(saved) and len(saved) == 16
    pixels = [picture.image().tobytes() for picture in saved]
    # LoRAs that name no trigger act everywhere: their regions are weights of 1
    assert len(set(pixels)) == 14
    assert pixels == [pixel for way in ways for pixel in alone(studio, way.asked)]
    assert [picture.record.request.seed for picture in saved] == [7, 8] * 8
    assert [picture.gated for picture in saved] == [False] * 14 + [True] * 2
    assert saved[-1].gate_record() is not None
    assert {picture.id for picture in saved} <= {p.id for p in studio.history.recent(40)}


def test_progress_counts_over_the_whole_job(studio: Studio) -> None:
    ways = studio.ways(replace(BOTH, lines=("bare", "alone")))
    steps = [event for event in studio.compare(ways) if isinstance(event, Progress)]
    assert [event.step for event in steps] == list(range(1, 10))
    assert {event.steps for event in steps} == {9} and {event.count for event in steps} == {3}
    assert [event.pictures.start for event in steps] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert all(event.seconds_left > 0 for event in steps[:-1]) and steps[-1].seconds_left == 0


def test_one_lora_is_compared_without_doing_the_same_twice(studio: Studio) -> None:
    one = Comparison(request=REQUEST, rows=(LoraRow(name="moon"),))
    same = "weight 1, the same as your weights, weights of 1, average (NLA)"
    assert told(studio.ways(one)) == [
        ("Without LoRAs", "the model by itself"),
        ("moon alone", same),
    ]
    assert len(finished(studio.compare(studio.ways(one))).pictures) == 2
    half = replace(one, rows=(LoraRow(name="moon", weight=0.5),))
    assert [way.line for way in studio.ways(half)] == ["bare", "alone", "yours"]


def test_tags_are_loras_and_what_is_off_takes_no_part(studio: Studio) -> None:
    tagged = replace(REQUEST, prompt="a fox <lora:moon:0.5>")
    rows = (LoraRow(name="zibo"), LoraRow(name="neon", on=False))
    ways = studio.ways(Comparison(request=tagged, rows=rows))
    assert {way.asked.request.prompt for way in ways} == {"a fox"}
    assert [way.title for way in ways if way.line == "alone"] == ["Zibo alone", "moon alone"]
    assert [way.detail for way in ways if way.line == "yours"] == ["Zibo 1 + moon 0.5"]
    assert not [way for way in ways if way.line == "gates"]


def test_a_seed_is_drawn_once_for_all_ways(studio: Studio) -> None:
    ways = studio.ways(replace(BOTH, request=replace(REQUEST, seed=-1)))
    (seed,) = {way.asked.request.seed for way in ways}
    assert seed >= 0


def test_a_comparison_stops_within_a_step_and_keeps_what_is_done(studio: Studio) -> None:
    ways = studio.ways(replace(BOTH, request=replace(REQUEST, steps=60)))
    saved: list[PictureSaved] = []
    over: Event | None = None
    for over in studio.compare(ways, owner="ann"):
        if isinstance(over, PictureSaved):
            saved.append(over)
            studio.interrupt("ann")
    assert isinstance(over, Finished) and over.cancelled
    assert 1 <= len(over.pictures) == len(saved) < len(ways)


def test_what_cannot_be_is_told_before_any_picture(studio: Studio) -> None:
    with pytest.raises(ComposerError, match="No LoRA is chosen"):
        studio.ways(replace(BOTH, rows=(LoraRow(name="zibo", on=False),)))
    with pytest.raises(ComposerError, match="Did you mean 'zibo'"):
        studio.ways(replace(BOTH, rows=(LoraRow(name="zobi"),)))
    with pytest.raises(ComposerError, match="Train some"):
        studio.ways(replace(BOTH, rows=ROWS[:1], lines=("gates",)))
    with pytest.raises(ComposerError, match="choose 1 to 4"):
        replace(BOTH, request=replace(REQUEST, count=5))
    with pytest.raises(ComposerError, match="one way or more"):
        replace(BOTH, lines=())
    with pytest.raises(ComposerError, match="no way 'magic'"):
        replace(BOTH, lines=("magic",))  # pyright: ignore[reportArgumentType]
    before = studio.history.recent(1)
    ways = studio.ways(replace(BOTH, rows=(*ROWS, LoraRow(name="foreign"))))
    with pytest.raises(ComposerError, match="foreign"):
        finished(studio.compare(ways))
    assert studio.history.recent(1) == before
    assert len(finished(studio.compare(studio.ways(BOTH))).pictures) == 8


def test_gates_of_other_loras_or_another_model_are_not_among_the_ways(studio: Studio) -> None:
    gates = [way.asked.recipe.file for way in studio.ways(BOTH) if way.line == "gates"]
    assert gates == ["pair"]
    three = replace(BOTH, rows=(*ROWS, LoraRow(name="moon")))
    assert [way.detail for way in studio.ways(three) if way.line == "gates"] == ["three"]
    assert ways_of(BOTH.asked, USUAL, (), str)[-1].line == "regions"


def test_the_best_known_weights_are_a_way_that_says_how_they_were_found(
    studio: Studio, tiny_sd: Path
) -> None:
    folder = studio.card("zibo").path.parent
    before = studio.offers()
    assert studio.offers(tuned=True) == before
    loras = {name: studio.card(name).path for name in ("neon", "zibo", "moon", "foreign")}
    pair = {"neon": 1.2, "renamed": 0.8}  # one is found by its tensors
    files = {"neon": loras["neon"], "renamed": loras["zibo"]}
    try:
        path = write_weights(folder / "weights" / "pair.json", tiny_sd, files, pair)
        trio = {"zibo": 1.0, "neon": 1.4, "moon": 0.8}
        write_weights(folder / "weights" / "trio.json", tiny_sd, loras, trio)
        write_weights(folder / "weights" / "z.json", tiny_sd, files, {"neon": 9.0, "renamed": 9.0})
        write_weights(folder / "weights" / "a.json", tiny_sd, loras, trio, model_hash="0" * 64)
        (folder / "weights" / "broken.json").write_text("{}")
        known, problems = (
            new[len(old) :] for new, old in zip(studio.offers(tuned=True), before, strict=True)
        )
        assert [offer.weights for offer in known] == [{"neon": 1.2, "zibo": 0.8}, trio]
        assert len(problems) == 1 and "broken.json" in problems[0]
        (best,) = studio.ways(replace(BOTH, lines=("best",)))
        assert best.title == "Best known weights"
        assert best.detail == "Zibo 0.8 + Neon 1.2, best of 16 by CLIP"
        assert best.asked.rows == (
            LoraRow(name="zibo", weight=0.8),
            LoraRow(name="neon", weight=1.2),
        )
        assert [way.line for way in studio.ways(BOTH)][3:5] == ["yours", "best"]
        three = replace(BOTH, rows=(*ROWS, LoraRow(name="moon")), lines=("best",))
        assert studio.ways(three)[0].detail.startswith("Zibo 1 + Neon 1.4 + moon 0.8")
        mine = replace(BOTH, rows=best.asked.rows)
        (same,) = [way for way in studio.ways(mine) if way.line == "yours"]
        assert same.detail.endswith("the same as best known weights")
        path.unlink()
        (other,) = studio.ways(replace(BOTH, lines=("best",)))
        assert "9" in other.detail
    finally:
        shutil.rmtree(folder / "weights")
    with pytest.raises(ComposerError, match="composer tune-weights"):
        studio.ways(replace(BOTH, lines=("best",)))


def test_the_sheet_has_a_place_for_each_picture(studio: Studio) -> None:
    ways = studio.ways(replace(BOTH, request=replace(REQUEST, count=2), lines=("bare", "alone")))
    pictures = finished(studio.compare(ways)).pictures
    places = {divmod(number, 2): picture for number, picture in enumerate(pictures)}
    whole = comparison_sheet(ways, places)
    assert whole.width == 8 + 3 * 264 and whole.height > 2 * 256
    del places[2, 1]
    assert comparison_sheet(ways, places).size == whole.size
    long = replace(
        ways[0], asked=replace(ways[0].asked, request=replace(REQUEST, prompt="a " * 99))
    )
    assert comparison_sheet((long,), {}).width == 8 + 264
