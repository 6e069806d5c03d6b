"""Places in a picture: read, drawn, told apart from what is none."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from composer.commands.generate import read_row
from composer.errors import ComposerError
from composer.fusions import LoraRow
from composer.fusions.passes import InPlaces
from composer.fusions.places import SIDE, Place
from composer.fusions.rows import places_to_record, recorded_places


def test_a_place_comes_back_from_its_text() -> None:
    rng = random.Random(1)
    for _ in range(5):
        cells = [rng.random() < 0.5 for _ in range(SIDE * SIDE)]
        place = Place.of_cells(cells)
        assert Place.read(str(place)) == place
        assert place.cells().flatten().tolist() == list(map(float, cells))


def test_a_rectangle_and_a_drawing_of_it_are_the_same_place() -> None:
    half = Place.rectangle(0.5, 0.0, 1.0, 0.25)
    image = Image.new("L", (256, 64))
    ImageDraw.Draw(image).rectangle((128, 0, 255, 15), fill=255)
    assert Place.drawn(image) == half
    wanted = torch.zeros(SIDE, SIDE)
    wanted[: SIDE // 4, SIDE // 2 :] = 1
    assert torch.equal(half.cells(), wanted)


def test_what_is_no_place_is_refused() -> None:
    for text in ("", "left", "AAAA", str(Place.rectangle(0, 0, 1, 1)) + "AAAA", "é" * 172):
        with pytest.raises(ComposerError, match=r"place|Place"):
            Place.read(text)
    with pytest.raises(ComposerError, match="empty"):
        Place.drawn(Image.new("RGB", (64, 64)))
    for sides in ((0.5, 0, 0.5, 1), (0, 0, 2, 1), (0, float("nan"), 1, 1)):
        with pytest.raises(ComposerError, match=r"0:0:0\.5:1"):
            Place.rectangle(*sides)


def test_a_drawing_of_another_shape_than_the_picture_is_refused() -> None:
    place = Place.drawn(Image.new("L", (512, 768), 255))
    place.check_shape("zibo", 64, 96)
    with pytest.raises(ComposerError, match=r"'zibo' was drawn on 512 x 768 .* has 64 x 64"):
        place.check_shape("zibo", 64, 64)
    Place.rectangle(0, 0, 1, 0.5).check_shape("zibo", 64, 96)


def test_places_of_rows_come_back_from_the_record() -> None:
    rows = {
        "zibo": LoraRow(name="zibo", place=Place.rectangle(0, 0, 0.5, 1)),
        "neon": LoraRow(name="neon"),
    }
    record = places_to_record(rows)
    assert recorded_places(record) == {"zibo": rows["zibo"].place}
    assert places_to_record({"neon": rows["neon"]}) == {}
    for rubbish in (None, 7, ["zibo"], {"zibo": None}, {"zibo": "left"}, {"zibo": 10**400}):
        assert recorded_places({"places": rubbish}) == {}


def test_a_row_of_the_command_line_has_its_place(tmp_path: Path) -> None:
    half = Place.rectangle(0, 0, 0.5, 1)
    image = Image.new("L", (64, 64))
    image.paste(255, (0, 0, 32, 64))
    image.save(tmp_path / "a=b.png")
    assert read_row("zibo=1#0:0:0.5:1") == LoraRow(name="zibo", place=half)
    row = read_row(f"a#b=0.5,0.2@0:0.5#{tmp_path / 'a=b.png'}")
    assert row == LoraRow(name="a#b", weight=0.5, text_encoder=0.2, steps=(0.0, 0.5), place=half)
    assert read_row("a#b=0.5") == LoraRow(name="a#b", weight=0.5)
    for text, told in (
        ("zibo=1#left", "left cannot be read"),
        ("zibo=1#0:0:0:1", "not understood"),
    ):
        with pytest.raises(ComposerError, match=told):
            read_row(text)


def test_predictions_are_put_together_place_by_place() -> None:
    """At a step of as many cells as the place has, by a loop over cells."""
    generator = torch.Generator().manual_seed(0)
    places = [None, Place.rectangle(0, 0, 0.5, 1).cells(), Place.rectangle(0.25, 0, 1, 0.5).cells()]
    passes = InPlaces(
        weights=torch.tensor([0.5, 0.8, 1.5]),
        triggers=("", "", ""),
        characters=(False, True, True),
        steady=(True, False, False),
        places=places,
    )
    without, with_prompt = passes.rows(0, 10)
    assert without is with_prompt
    assert without.flatten(1).allclose(
        torch.tensor([[0.5, 0.0, 0.0], [0.5, 0.8, 0.0], [0.5, 0.0, 1.5]])
    )
    predictions = torch.randn(3, 2, 4, SIDE, SIDE, generator=generator)
    got, again = passes.mix(predictions, predictions)
    assert torch.equal(got, again)
    for y in range(SIDE):
        for x in range(SIDE):
            wanted = predictions[0, :, :, y, x].clone()
            for number, place in enumerate(places[1:], 1):
                assert place is not None
                if place[y, x]:
                    wanted += predictions[number, :, :, y, x] - predictions[0, :, :, y, x]
            torch.testing.assert_close(got[:, :, y, x], wanted)


@pytest.mark.parametrize("size", [(8, 8), (16, 24), (64, 64)])
def test_at_other_sizes_a_place_keeps_its_share(size: tuple[int, int]) -> None:
    passes = InPlaces(
        weights=torch.ones(1),
        triggers=("",),
        characters=(True,),
        steady=(False,),
        places=[Place.rectangle(0, 0, 0.5, 1).cells()],
    )
    predictions = torch.stack([torch.zeros(1, 1, *size), torch.ones(1, 1, *size)])
    got, _ = passes.mix(predictions, predictions)
    assert float(got.mean()) == pytest.approx(0.5, abs=1e-3)
    quarter = size[1] // 4  # the border is soft, by a cell
    torch.testing.assert_close(got[..., :quarter], torch.ones(1, 1, size[0], quarter))
    torch.testing.assert_close(got[..., -quarter:], torch.zeros(1, 1, size[0], quarter))
