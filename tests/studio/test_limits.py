"""Where and when LoRAs act, whatever fuses them: parts of steps and depth, units pinned."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from studio_pictures import paint, pixels, ready
from tiny_gates import write_gates
from tiny_loras import write_lora

from composer.diffusion.load import load_model
from composer.diffusion.request import Request
from composer.diffusion.sample import Picture, generate
from composer.errors import ComposerError
from composer.experts import ModuleNames, read_expert
from composer.fusions import Gates, LoraRow, Pin, Plan, Regions, Sum, read_pins, read_recipe
from composer.mixture import Mixture, attach
from composer.studio import ComposeRequest, Studio
from composer.studio.history import History

REQUEST = Request(prompt="a fox", seed=7, steps=4, cfg_scale=3.0, width=16, height=16)
ZIBO, NEON = LoraRow(name="zibo", weight=0.8), LoraRow(name="neon", weight=0.6)
WEIGHTED = ComposeRequest(request=REQUEST, rows=(NEON, ZIBO))
GATED = ComposeRequest(request=REQUEST, recipe=Gates(file="pair"))


@pytest.fixture(scope="module")
def folder(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("limits") / "loras"
    names = ("zibo", "neon")
    loras = {n: write_lora(folder / f"{n}.safetensors", seed=i) for i, n in enumerate(names)}
    write_gates(folder / "gates" / "pair.safetensors", tiny_sd, loras)
    return folder


@pytest.fixture(scope="module")
def studio(tiny_sd: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return ready(tiny_sd, folder, tmp_path_factory.mktemp("outputs"))


@pytest.fixture(scope="module")
def units(tiny_sd: Path, folder: Path) -> tuple[str, ...]:
    with mixed(tiny_sd, folder)[1] as mixture:
        return tuple(mixture.units)


def mixed(tiny_sd: Path, folder: Path) -> tuple[Any, Mixture]:
    """The weighted sum, with the library alone."""
    model = load_model(tiny_sd)
    modules = ModuleNames.of(model.models, model=model.name)
    paths = {name: folder / f"{name}.safetensors" for name in ("neon", "zibo")}
    sites = {name: read_expert(path, modules, name=name).sites for name, path in paths.items()}
    mixture = attach(model.models, sites, granularity="block")
    mixture.set_weights({"neon": 0.6, "zibo": 0.8})
    return model, mixture


def drawn(model: Any, mixture: Mixture) -> bytes:
    with mixture:
        *_, picture = generate(model, REQUEST, before_step=mixture.at_step)
    assert isinstance(picture, Picture)
    return picture.image.tobytes()


def test_a_sum_is_limited_to_steps_and_to_depth(
    studio: Studio, tiny_sd: Path, folder: Path
) -> None:
    whole = pixels(studio, WEIGHTED)
    found = {whole}
    for part, span in (("steps", (0.0, 0.5)), ("depth", (0.0, 0.4))):
        model, mixture = mixed(tiny_sd, folder)
        rest: dict[str, Any] = {part: (span[1], 1.0)}
        unet = [
            name for name in mixture.units if name.startswith("unet.")
        ]  # words are read in full
        mixture.toggle("neon", False, units=unet, **rest)
        limits: dict[str, Any] = {part: span}
        limited = pixels(studio, replace(WEIGHTED, rows=(replace(NEON, **limits), ZIBO)))
        assert limited == drawn(model, mixture)
        found.add(limited)
    assert len(found) == 3
    assert pixels(studio, WEIGHTED) == whole, "it holds for one picture"


def test_bins_of_steps_that_are_alike_are_the_sum(studio: Studio, folder: Path) -> None:
    """What `export-gates --bins` writes is played so: each file in its own part of the steps."""
    for name in ("first", "second"):
        (folder / f"{name}.safetensors").write_bytes((folder / "neon.safetensors").read_bytes())
    studio.cards(refresh=True)
    bins = [
        LoraRow(name=name, weight=0.6, text_encoder=0.3, steps=span)
        for name, span in (("first", (0.0, 0.5)), ("second", (0.5, 1.0)))
    ]
    alone = pixels(studio, replace(WEIGHTED, rows=(NEON,)))
    assert pixels(studio, replace(WEIGHTED, rows=tuple(bins))) == alone
    assert pixels(studio, replace(WEIGHTED, rows=tuple(bins[:1]))) != alone


@pytest.mark.parametrize("fusion", ["nla", "regions"])
def test_other_fusions_heed_limits(studio: Studio, fusion: str) -> None:
    asked = replace(WEIGHTED, recipe=read_recipe(fusion))
    early, late = (replace(NEON, steps=span) for span in ((0.0, 0.5), (0.5, 1.0)))
    rows = ((NEON, ZIBO), (early, ZIBO), (late, ZIBO))
    assert len({pixels(studio, replace(asked, rows=some)) for some in rows}) == 3


def test_a_pin_holds_in_its_unit_alone(
    studio: Studio, tiny_sd: Path, folder: Path, units: tuple[str, ...]
) -> None:
    whole, unit = pixels(studio, WEIGHTED), units[0]
    model, mixture = mixed(tiny_sd, folder)
    mixture.pin(unit, {"zibo": -1.0})
    pinned = pixels(studio, replace(WEIGHTED, pins=(Pin(unit, {"zibo": -1.0}),)))
    assert pinned == drawn(model, mixture) != whole
    as_they_are = Pin("*", {"neon": 0.6, "zibo": 0.8})
    assert pixels(studio, replace(WEIGHTED, pins=(as_they_are,))) == whole
    later = (Pin("*", {"zibo": 3.0}), as_they_are)
    assert pixels(studio, replace(WEIGHTED, pins=later)) == whole, "the later one holds"
    assert pixels(studio, WEIGHTED) == whole, "it holds for one picture"


def test_pins_overrule_gates_and_heed_switches(studio: Studio) -> None:
    gated = pixels(studio, GATED)
    ones = replace(GATED, pins=(Pin("*", {"neon": 1.0, "zibo": 1.0}),))
    full = tuple(LoraRow(name=name) for name in ("neon", "zibo"))
    assert pixels(studio, ones) == pixels(studio, replace(WEIGHTED, rows=full)) != gated
    without = replace(ones, rows=(LoraRow(name="neon", on=False),))
    assert pixels(studio, without) == pixels(studio, replace(WEIGHTED, rows=full[1:]))
    assert pixels(studio, GATED) == gated, "it holds for one picture"


@pytest.mark.parametrize("asked", [WEIGHTED, GATED, replace(WEIGHTED, recipe=Regions())])
def test_limits_are_in_the_picture_and_come_back(studio: Studio, asked: ComposeRequest) -> None:
    rows = (replace(NEON, steps=(0.0, 0.5), depth=(0.2, 1.0)), ZIBO)
    pins = (Pin("*", {"neon": 0.25}), Pin("unet.*", {"zibo": 1.0, "neon": -0.5}))
    made = paint(studio, replace(asked, rows=rows, pins=pins))
    assert made.record.fusion["pins"] == ["*: neon=0.25", "unet.*: zibo=1, neon=-0.5"]
    recalled = studio.recall(made)
    assert recalled.notes == () and recalled.asked.pins == pins
    assert {(row.name, row.steps, row.depth) for row in recalled.asked.rows} == {
        ("neon", (0.0, 0.5), (0.2, 1.0)),
        ("zibo", (0.0, 1.0), (0.0, 1.0)),
    }
    assert pixels(studio, recalled.asked) == made.image().tobytes()


def test_pins_that_are_none_in_a_record_are_left_out(studio: Studio, tmp_path: Path) -> None:
    made = paint(studio, WEIGHTED)
    fine = "unet.*: zibo=1"
    for rubbish in (
        3,
        "x: a=1",
        [None, 3, "x", "x:", ": a=1", "x: =1", "x: a=inf", "x: a=99"],
    ):
        pins = [*rubbish, fine] if isinstance(rubbish, list) else rubbish
        record = replace(made.record, fusion={**made.record.fusion, "pins": pins})
        saved = History(tmp_path).save(made.image(), record)
        said = tuple(map(str, studio.recall(saved).asked.pins))
        assert said == ((fine,) if isinstance(rubbish, list) else ())


def test_pins_are_read_from_lines_and_written_as_read() -> None:
    text = "unet.mid_block.attentions.0: zibo=1, neon=-0.5\n\n  *up*:a b=0.25\n"
    pins = read_pins(text)
    assert pins == (
        Pin("unet.mid_block.attentions.0", {"zibo": 1.0, "neon": -0.5}),
        Pin("*up*", {"a b": 0.25}),
    )
    assert tuple(Pin.read(str(pin)) for pin in pins) == pins
    odd = Pin("*", {"a, b=c": 0.12345678, "d": 1e-7, "e, f": -3.0})
    assert Pin.read(str(odd)) == odd
    assert pins[0].means("unet.mid_block.attentions.0") and not pins[0].means("unet.mid_block")
    assert Pin("mid_block.*", {"a": 1}).means("unet.mid_block.attentions.0")
    with pytest.raises(ComposerError, match="257 pins"):
        read_pins("*: a=1\n" * 257)


@pytest.mark.parametrize("text", ["unet", "unet:", ": a=1", "unet: a", "unet: a=b", "unet: =1"])
def test_a_line_that_is_no_pin_is_told(text: str) -> None:
    with pytest.raises(ComposerError, match=r"zibo=1, neon=0\.5"):
        Pin.read(text)


def test_pins_that_fit_nothing_are_told_before_any_work(studio: Studio) -> None:
    before = pixels(studio, GATED)
    for asked in (WEIGHTED, GATED):
        with pytest.raises(ComposerError, match=r"for no unit of this picture's \d"):
            paint(studio, replace(asked, pins=(Pin("mid", {"zibo": 1.0}),)))
        with pytest.raises(ComposerError, match="moon"):
            paint(studio, replace(asked, pins=(Pin("*", {"moon": 1.0}),)))
    absent = replace(WEIGHTED, rows=(NEON,), pins=(Pin("*", {"zibo": 1.0}),))
    with pytest.raises(ComposerError, match="'zibo', which is not chosen"):
        paint(studio, absent)
    with pytest.raises(ComposerError, match="is nan"):
        Pin("*", {"zibo": float("nan")})
    tagged = replace(WEIGHTED, request=replace(REQUEST, prompt="<lora:neon:1:lbw=SDXL-OUTALL>"))
    with pytest.raises(ComposerError, match=r"of 12 numbers, and those of a model .* 17 or 26"):
        paint(studio, tagged)
    assert pixels(studio, GATED) == before


def test_a_pin_alone_lets_a_lora_act_and_a_switch_turns_it_off(
    studio: Studio, units: tuple[str, ...]
) -> None:
    zero = replace(ZIBO, weight=0.0)
    pins = (Pin(units[0], {"zibo": 1.0, "neon": 0.6}),)
    here = replace(WEIGHTED, rows=(NEON, zero), pins=pins)
    made = paint(studio, here)
    nowhere = pixels(studio, replace(WEIGHTED, rows=(NEON,)))
    assert made.image().tobytes() != nowhere
    assert pixels(studio, studio.recall(made).asked) == made.image().tobytes()
    short = replace(here, rows=(NEON, replace(zero, name="Zibo")))
    assert pixels(studio, short) == made.image().tobytes()
    off = paint(studio, replace(here, rows=(NEON, replace(zero, on=False))))
    assert off.image().tobytes() == nowhere
    assert off.record.fusion["pins"] == [f"{units[0]}: neon=0.6"]
    alone = replace(here, rows=(NEON, replace(zero, on=False)), pins=(Pin("*", {"zibo": 1.0}),))
    assert pixels(studio, alone) == pixels(studio, ComposeRequest(request=REQUEST))


def test_a_tag_keeps_the_limits_of_its_row(studio: Studio) -> None:
    rows = (replace(NEON, steps=(0.0, 0.5), depth=(0.2, 1.0)), ZIBO)
    tagged = replace(REQUEST, prompt="a fox <lora:neon:0.6>")
    for asked in (WEIGHTED, GATED):
        made = paint(studio, replace(asked, request=tagged, rows=rows))
        assert made.record.fusion["steps"] == {"neon": [0.0, 0.5]}
        assert made.record.fusion["depth"] == {"neon": [0.2, 1.0]}


def test_a_renamed_lora_acts_under_gates_and_in_sums_in_turn(
    tiny_sd: Path, folder: Path, tmp_path: Path
) -> None:
    loras = tmp_path / "loras"
    shutil.copytree(folder, loras)
    (loras / "neon.safetensors").rename(loras / "light, v2.safetensors")
    studio = ready(tiny_sd, loras, tmp_path / "outputs")
    summed = replace(WEIGHTED, rows=(replace(NEON, name="light, v2"), ZIBO))
    gated, weighted = pixels(studio, GATED), pixels(studio, summed)
    assert (pixels(studio, GATED), pixels(studio, summed)) == (gated, weighted)
    made = paint(studio, replace(summed, pins=(Pin("*", {"light, v2": 0.3, "zibo": 1.2}),)))
    assert studio.recall(made).asked.pins == (Pin("*", {"light, v2": 0.3, "zibo": 1.2}),)


def test_limits_say_what_they_need() -> None:
    def by_unit(*rows: LoraRow, pins: tuple[Pin, ...] = ()) -> bool:
        return Plan(recipe=Sum(), rows={r.name: r for r in rows}, paths={}, pins=pins).by_unit

    assert not by_unit(NEON, replace(ZIBO, steps=(0.0, 0.5)))
    assert by_unit(replace(ZIBO, depth=(0.0, 0.5)))
    assert by_unit(pins=(Pin("*", {"a": 1}),))
