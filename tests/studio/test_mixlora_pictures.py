"""Pictures with a MixLoRA: alone, with LoRAs added, made again; and what is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from studio_pictures import finished, paint, pixels, ready
from tiny_gates import write_gates
from tiny_loras import write_lora
from tiny_mixlora import tiny_mixlora, write_mixlora
from typer.testing import CliRunner

from composer.cli import app
from composer.diffusion.parameters import from_parameters, to_parameters
from composer.diffusion.request import Request
from composer.errors import ComposerError
from composer.fusions import Gates, LoraRow, MixLora, Sum
from composer.studio import (
    Comparison,
    ComposeRequest,
    Started,
    Studio,
)
from composer.studio.comparing import cells_of_ways

REQUEST = Request(prompt="a zibo fox", seed=7, steps=3, cfg_scale=3.0, width=16, height=16)
BARE = ComposeRequest(request=REQUEST)
PLACED = replace(BARE, recipe=MixLora(file="both"))
NEON = (LoraRow(name="neon", weight=0.7),)
INFOS = {"zibo": "zibo fox", "neon": "neon style"}


@pytest.fixture(scope="module")
def folder(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("placed") / "loras"
    loras = {
        name: write_lora(
            folder / f"{name}.safetensors",
            seed=i,
            **{"modelspec.trigger_phrase": trigger, "modelspec.title": name.title()},
        )
        for i, (name, trigger) in enumerate(INFOS.items())
    }
    write_gates(folder / "gates" / "pair.safetensors", tiny_sd, loras)
    place = folder / "mixlora"
    write_mixlora(place / "both.safetensors", tiny_mixlora(tiny_sd))
    alien = tiny_mixlora(tiny_sd, model_hash="0" * 64)
    write_mixlora(place / "alien.safetensors", alien)
    (place / "cut.safetensors").write_bytes((place / "both.safetensors").read_bytes()[:-9])
    return folder


@pytest.fixture(scope="module")
def studio(tiny_sd: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return ready(tiny_sd, folder, tmp_path_factory.mktemp("outputs"))


def test_alone_and_with_loras_and_nothing_is_left_behind(studio: Studio) -> None:
    bare, placed = pixels(studio, BARE), pixels(studio, PLACED)
    with_neon = pixels(studio, replace(PLACED, rows=NEON))
    neon = pixels(studio, replace(BARE, rows=NEON))
    assert len({bare, placed, with_neon, neon}) == 4
    gated = ComposeRequest(request=REQUEST, recipe=Gates(file="pair"))
    pixels(studio, gated)
    for asked, before in (
        (PLACED, placed),
        (BARE, bare),
        (replace(PLACED, rows=NEON), with_neon),
        (replace(BARE, rows=NEON), neon),
    ):
        assert pixels(studio, asked) == before
    without = replace(PLACED, rows=(replace(NEON[0], on=False),))
    assert pixels(studio, without) == placed


def test_the_record_makes_it_again(studio: Studio, folder: Path) -> None:
    picture = paint(studio, replace(PLACED, rows=NEON))
    fusion = picture.record.fusion
    assert (fusion["name"], fusion["mixlora"]) == ("mixlora", "both")
    again = studio.recall(studio.history.read(picture.path))
    assert again.notes == ()
    assert again.asked.recipe == MixLora(file="both")
    assert pixels(studio, again.asked) == picture.image().tobytes()
    text = to_parameters(picture.record)
    assert "MixLoRA: both" in text
    assert from_parameters(text).fusion["hash"] == fusion["hash"]
    place = folder / "mixlora"
    place.joinpath("both.safetensors").rename(place / "called_anew.safetensors")
    try:
        renamed = studio.recall(picture)
        assert renamed.asked.recipe == MixLora(file="called_anew")
        assert "'both' is called 'called_anew' now" in renamed.notes[0]
        assert pixels(studio, renamed.asked) == picture.image().tobytes()
        kept = place / "kept"
        place.joinpath("called_anew.safetensors").rename(kept)
        gone = studio.recall(picture)
        assert gone.asked.recipe == Sum()
        assert "made without it" in gone.notes[0]
        kept.rename(place / "called_anew.safetensors")
    finally:
        place.joinpath("called_anew.safetensors").rename(place / "both.safetensors")


def test_what_is_offered_and_what_is_refused(studio: Studio, folder: Path) -> None:
    offers, problems = studio.offers()
    (both,) = [offer for offer in offers if offer.instead]
    assert (both.recipe, both.title) == (MixLora(file="both"), "MixLoRA: Zibo + Tavo")
    assert both.fits(["zibo", "neon"]) and not both.fits(["neon"]) and not both.fits([])
    assert [row.name for row in both.rows(["zibo", "neon"])] == ["neon"]
    assert len(problems) == 2
    with pytest.raises(ComposerError, match="Did you mean 'both'"):
        studio.compose(replace(PLACED, recipe=MixLora(file="botn")))
    with pytest.raises(ComposerError, match="cut off"):
        studio.compose(replace(PLACED, recipe=MixLora(file="cut")))
    with pytest.raises(ComposerError, match="trained on"):
        paint(studio, replace(PLACED, recipe=MixLora(file="alien")))
    with pytest.raises(ComposerError, match="holds no MixLoRA"):
        studio.lend(MixLora, folder / "neon.safetensors")


def test_a_prompt_that_does_not_call_it_is_told(studio: Studio) -> None:
    asked = replace(PLACED, request=replace(REQUEST, prompt="a dog"))
    started = [event for event in studio.compose(asked) if isinstance(event, Started)]
    assert "none of its triggers" in started[0].notes[0]
    called = [event for event in studio.compose(PLACED) if isinstance(event, Started)]
    assert called[0].notes == ()
    assert called[0].loras == ("both",)


def test_it_is_a_way_of_comparing_in_the_place_of_the_loras_it_knows(studio: Studio) -> None:
    rows = (LoraRow(name="zibo"), *NEON)
    asked = Comparison(request=REQUEST, rows=rows, lines=("alone", "mixlora"))
    ways = studio.ways(asked)
    assert [(way.line, way.title, way.detail) for way in ways[-1:]] == [
        ("mixlora", "MixLoRA", "both + Neon")
    ]
    assert ways[-1].asked.rows == (LoraRow(name="neon"),)
    pictures = finished(studio.grid(cells_of_ways(ways, ())[1])).pictures
    assert len({picture.image().tobytes() for picture in pictures}) == 3
    with pytest.raises(ComposerError, match="no MixLoRA has learned"):
        studio.ways(replace(asked, rows=NEON, lines=("mixlora",)))


def test_the_command_makes_pictures_with_it_and_again(
    tiny_sd: Path, folder: Path, tmp_path: Path
) -> None:
    lent = shutil.copy(folder / "mixlora" / "both.safetensors", tmp_path / "lent.safetensors")
    told = ["--model", str(tiny_sd), "--lora-dir", str(folder), "--output", str(tmp_path / "out")]
    made = ["generate", "a zibo fox", "--mixlora", str(lent), "--steps", "2", "--seed", "3"]
    first = CliRunner().invoke(app, [*made, *told])
    assert first.exit_code == 0, first.output
    picture = Path(first.stdout.strip().splitlines()[-1])
    again = CliRunner().invoke(app, ["generate", "--again", str(picture), *told])
    assert again.exit_code == 0, again.output
    second = Path(again.stdout.strip().splitlines()[-1])
    history = Studio(tiny_sd, [folder], tmp_path / "out").history
    assert history.read(second).image().tobytes() == history.read(picture).image().tobytes()
    assert history.read(second).record.fusion["mixlora"] == "both"  # found by its hash
    wrong = CliRunner().invoke(app, [*made, *told, "--fusion", "nla"])
    assert wrong.exit_code == 2
