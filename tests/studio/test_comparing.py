"""Comparisons: which ways there are, that their pictures are those of Compose, one job for all."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from composer.studio.axes import Axis, read_axis
from composer.studio.comparing import USUAL, cells_of_ways, ways_of
from composer.studio.grid import Filled

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


def compared(
    studio: Studio, ways: Sequence[Way], axes: Sequence[Axis] = (), owner: str = ""
) -> Iterator[Any]:
    return studio.grid(cells_of_ways(ways, axes)[1], owner=owner)


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
    events = list(compared(studio, ways))
    saved = [event.saved for event in events if isinstance(event, PictureSaved)]
    assert finished(events).pictures == tuple(saved) and len(saved) == 16
    pixels = [picture.image().tobytes() for picture in saved]
    # LoRAs that name no trigger act everywhere: their regions are weights of 1
    assert len(set(pixels)) == 14
    assert pixels == [pixel for way in ways for pixel in alone(studio, way.asked)]
    assert [picture.record.request.seed for picture in saved] == [7, 8] * 8
    assert [picture.gated for picture in saved] == [False] * 14 + [True] * 2
    assert saved[-1].gate_record() is not None
    assert {picture.id for picture in saved} <= {p.id for p in studio.history.recent(60)}
    # asked for again nothing is painted; what was deleted is
    assert finished(compared(studio, ways)).pictures == ()
    saved[3].path.unlink()
    assert len(finished(compared(studio, ways)).pictures) == 1


def test_progress_counts_over_the_whole_job(studio: Studio) -> None:
    new = replace(REQUEST, seed=70)  # the studio paints nothing twice
    ways = studio.ways(replace(BOTH, request=new, lines=("bare", "alone")))
    steps = [event for event in compared(studio, ways) if isinstance(event, Progress)]
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
    new = replace(one, request=replace(REQUEST, seed=71))
    assert len(finished(compared(studio, studio.ways(new))).pictures) == 2
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
    for over in compared(studio, ways, owner="ann"):
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
        finished(compared(studio, ways))
    assert studio.history.recent(1) == before
    new = replace(BOTH, request=replace(REQUEST, seed=72))
    assert len(finished(compared(studio, studio.ways(new))).pictures) == 8


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


def test_rows_are_what_else_varies_with_every_seed(studio: Studio) -> None:
    asked = replace(
        BOTH,
        request=replace(REQUEST, count=2),
        lines=("bare", "alone", "weighted", "ties"),
        axes=tuple(map(read_axis, ("cfg=2,4", "lora:moon=0,0.5", "density=0.3,0.6"))),
    )
    ways = studio.ways(asked)
    assert [way.key for way in ways] == [
        "bare", "alone:zibo", "alone:neon", "alone:moon", "weighted", "ties",
    ]  # fmt: skip
    axes, cells = cells_of_ways(ways, asked.axes)
    assert [axis.name for axis in axes] == ["cfg", "lora:moon", "density", "seed", "way"]
    assert len(cells) == 16 * 6 and {cell.way for cell in cells} == {4}
    assert [cell.labels for cell in cells[1::6]][:3] == [
        ("2", "0", "0.3", "7", "alone:zibo"),
        ("2", "0", "0.3", "8", "alone:zibo"),
        ("2", "0", "0.6", "7", "alone:zibo"),
    ]
    assert axes[-1].titled("alone:zibo") == "Zibo alone\nweight 1"
    assert axes[0].titled("2") == "cfg 2"
    summed = cells[4 * 6 + 4].asked  # the fifth row of the fifth way
    assert {row.name: row.weight for row in summed.rows if row.active} == {
        "zibo": 1.0, "neon": 1.0, "moon": 0.5,
    }  # fmt: skip
    assert (summed.request.cfg_scale, summed.request.seed, summed.request.count) == (2.0, 7, 1)
    assert cells[-1].asked.recipe.key == "ties:density=0.6"
    # a LoRA alone has no row of another's, and the bare model none
    assert {len(cell.asked.rows) for cell in cells[::6]} == {0}
    seeds = cells_of_ways(ways, [read_axis("seed=3,4,5")])[1]
    assert [cell.asked.request.seed for cell in seeds[::6]] == [3, 4, 5]
    with pytest.raises(ComposerError, match="ways are chosen by name"):
        replace(BOTH, axes=(read_axis("way=bare"),))
    with pytest.raises(ComposerError, match="no axis 'magic'"):
        cells_of_ways(ways, [read_axis("magic=1")])


def test_a_comparison_gives_each_cell_its_picture_and_scores(studio: Studio) -> None:
    ways = studio.ways(replace(BOTH, lines=("bare", "alone", "weighted")))
    _, cells = cells_of_ways(ways, ())
    events = list(studio.grid(cells, scored=True))
    scores = {e.cell: e.scores for e in events if isinstance(e, Filled) and e.scores}
    assert list(scores) == [0, 1, 2, 3]
    assert scores[0].unlike_bare == 0 and not scores[0].judged
    assert set(scores[1].judged) == {"zibo"} and set(scores[3].judged) == {"neon", "zibo"}
    looked = [event for event in events if isinstance(event, Progress) and event.scoring]
    assert [event.pictures.start for event in looked] == [0, 1, 2, 3]
