"""Pictures with learned gates: made, switched, made again; and what is refused before any work."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from studio_pictures import finished, paint, pixels, ready
from tiny_gates import write_gates
from tiny_loras import write_lora

from composer.diffusion.load import load_model
from composer.diffusion.parameters import to_parameters
from composer.diffusion.png import read_png
from composer.diffusion.request import Request
from composer.diffusion.sample import Picture, generate
from composer.errors import ComposerError
from composer.experts import ModuleNames, read_expert
from composer.fusions import Gates, LoraRow, Regions, Sum
from composer.fusions.gate_file import read_gates
from composer.mixture import attach
from composer.studio import (
    ComposeRequest,
    Progress,
    Started,
    Studio,
)
from composer.studio.history import History

REQUEST = Request(prompt="a fox", seed=7, steps=4, cfg_scale=3.0, width=16, height=16)
WEIGHTED = ComposeRequest(
    request=REQUEST, rows=(LoraRow(name="zibo", weight=0.8), LoraRow(name="neon", weight=0.6))
)
GATED = ComposeRequest(request=REQUEST, recipe=Gates(file="pair"))


@pytest.fixture(scope="module")
def folder(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three LoRAs, gates for two of them, for all three, for a whole network, for each matrix; and
    unusable ones."""
    folder = tmp_path_factory.mktemp("gated") / "loras"
    names = ("zibo", "neon", "moon")
    loras = {
        name: write_lora(folder / f"{name}.safetensors", seed=i) for i, name in enumerate(names)
    }
    pair = {name: loras[name] for name in ("zibo", "neon")}
    gates = folder / "gates"
    write_gates(gates / "pair.safetensors", tiny_sd, pair)
    write_gates(gates / "whole.safetensors", tiny_sd, pair, granularity="network", seed=1)
    write_gates(gates / "three.safetensors", tiny_sd, loras, seed=2)
    write_gates(gates / "fine.safetensors", tiny_sd, pair, granularity="matrix", seed=3)
    write_gates(gates / "alien.safetensors", tiny_sd, pair, model_hash="0" * 64)
    other = write_lora(folder.parent / "neon.safetensors", seed=9)
    write_gates(gates / "stale.safetensors", tiny_sd, pair | {"neon": other})
    gone = write_lora(folder.parent / "gone.safetensors", seed=8)
    write_gates(gates / "lacking.safetensors", tiny_sd, pair | {"gone": gone})
    (gates / "cut.safetensors").write_bytes((gates / "pair.safetensors").read_bytes()[:-9])
    (gates / "lora.safetensors").write_bytes(loras["moon"].read_bytes())
    return folder


@pytest.fixture(scope="module")
def studio(tiny_sd: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return ready(tiny_sd, folder, tmp_path_factory.mktemp("outputs"))


def off(*names: str) -> tuple[LoraRow, ...]:
    return tuple(LoraRow(name=name, on=False) for name in names)


def test_a_weighted_picture_after_a_gated_one_is_the_same_bit_for_bit(studio: Studio) -> None:
    weighted, gated = pixels(studio, WEIGHTED), pixels(studio, GATED)
    assert weighted != gated
    for gates in ("pair", "whole", "three"):
        pixels(studio, replace(GATED, recipe=Gates(file=gates), gate_map=True))
        assert pixels(studio, WEIGHTED) == weighted
    assert pixels(studio, GATED) == gated


def test_a_switch_takes_one_lora_out_and_nothing_is_attached_anew(studio: Studio) -> None:
    engine = studio._engine  # pyright: ignore[reportPrivateUsage]
    assert engine is not None
    both = pixels(studio, GATED)
    mixture, file = engine.mixture, engine.fitted
    alone = pixels(studio, replace(GATED, rows=off("neon")))
    none = pixels(studio, replace(GATED, rows=off("neon", "zibo")))
    assert len({both, alone, none}) == 3
    assert pixels(studio, GATED) == both
    assert engine.mixture is mixture and engine.fitted is file
    assert none == pixels(studio, ComposeRequest(request=REQUEST))
    assert pixels(studio, replace(GATED, rows=(LoraRow(name="neon", weight=0.0),))) == alone


def test_a_switch_may_hold_for_a_part_of_the_steps(studio: Studio) -> None:
    early = replace(GATED, rows=(LoraRow(name="neon", steps=(0.0, 0.5)),))
    late = replace(GATED, rows=(LoraRow(name="neon", steps=(0.5, 1.0)),))
    both = pixels(studio, GATED)
    pictures = [pixels(studio, asked) for asked in (early, late)]
    assert len({both, *pictures, pixels(studio, replace(GATED, rows=off("neon")))}) == 4
    assert [pixels(studio, asked) for asked in (early, late, GATED)] == [*pictures, both]
    with pytest.raises(ComposerError, match="from 0 to 1"):
        LoraRow(name="neon", steps=(0.5, 0.5))


def by_hand(tiny_sd: Path, folder: Path, **limits: tuple[float, float]) -> bytes:
    """A picture by the fine gates, with the library alone; neon is off but within these limits."""
    model = load_model(tiny_sd)
    modules = ModuleNames.of(model.models, model=model.name)
    paths = {name: folder / f"{name}.safetensors" for name in ("neon", "zibo")}
    sites = {name: read_expert(path, modules, name=name).sites for name, path in paths.items()}
    with attach(model.models, sites, granularity="matrix") as mixture:
        read_gates(folder / "gates" / "fine.safetensors").fit(mixture)
        unet = [name for name in mixture.units if name.startswith("unet.")]
        mixture.toggle("neon", False, units=unet)
        mixture.toggle("neon", True, units=unet, **limits)
        *_, picture = generate(model, REQUEST, before_step=mixture.at_step)
        assert isinstance(picture, Picture)
        return picture.image.tobytes()


def test_a_lora_may_act_in_a_part_of_the_depth(studio: Studio, tiny_sd: Path, folder: Path) -> None:
    fine = replace(
        GATED, recipe=Gates(file="fine")
    )  # three matrices, at 1/6, 1/2 and 5/6 of the depth
    first = replace(fine, rows=(LoraRow(name="neon", depth=(0.0, 0.4)),))
    rest = replace(fine, rows=(LoraRow(name="neon", depth=(0.4, 1.0)),))
    inside = replace(fine, rows=(LoraRow(name="neon", steps=(0.5, 1.0), depth=(0.4, 0.6)),))
    late = replace(fine, rows=(LoraRow(name="neon", steps=(0.5, 1.0)),))
    pictures = [pixels(studio, asked) for asked in (fine, first, rest, inside, late)]
    assert len({*pictures, pixels(studio, replace(fine, rows=off("neon")))}) == 6
    assert pictures[1:] == [
        by_hand(tiny_sd, folder, depth=(0.0, 0.4)),
        by_hand(tiny_sd, folder, depth=(0.4, 1.0)),
        by_hand(tiny_sd, folder, depth=(0.4, 0.6), steps=(0.5, 1.0)),
        by_hand(tiny_sd, folder, steps=(0.5, 1.0)),
    ]
    assert pixels(studio, fine) == pictures[0], "it holds for one picture"
    with pytest.raises(ComposerError, match=r"from 1 to 0 of the depth: .* from 0 to 1"):
        LoraRow(name="neon", depth=(1.0, 0.0))


def test_a_picture_limited_in_depth_is_made_again_and_its_map_kept(studio: Studio) -> None:
    rows = (LoraRow(name="zibo", on=False), LoraRow(name="neon", steps=(0.5, 1.0), depth=(0.4, 1)))
    first = paint(studio, replace(GATED, recipe=Gates(file="fine"), rows=rows, gate_map=True))
    assert first.record.fusion["steps"] == {"neon": [0.5, 1.0]}
    assert first.record.fusion["depth"] == {"neon": [0.4, 1.0]}
    recalled = studio.recall(first)
    assert recalled.notes == () and set(recalled.asked.rows) == set(rows)
    assert pixels(studio, recalled.asked) == first.image().tobytes()
    record = first.gate_record()
    assert record is not None
    assert record.with_prompt.shape == (2, 2, 2)  # steps and units in which some LoRA was active
    assert pixels(studio, recalled.asked.with_recipe(Sum()))


def test_what_a_picture_says_of_its_limits_is_no_limit_if_it_is_none(
    studio: Studio, tmp_path: Path
) -> None:
    made = paint(studio, GATED)
    spans: list[Any] = [
        3, None, "deep", [0.5], [0, 1, 2], [1, 0], [-1, 1], [0, 10**299], {"a": 1}, [[], 1],
    ]  # fmt: skip
    for part, rubbish in product(("steps", "depth"), spans):
        for told in (rubbish, {"neon": rubbish, "zibo": [0.5, 1]}):
            record = replace(made.record, fusion={**made.record.fusion, part: told})
            saved = History(tmp_path).save(made.image(), record)
            recalled = {row.name: row for row in studio.recall(saved).asked.rows}
            kept = {} if told is rubbish else {part: (0.5, 1.0)}
            assert recalled == {"neon": LoraRow(name="neon"), "zibo": LoraRow(name="zibo", **kept)}


def test_the_text_encoders_weight_of_a_sum_does_not_matter(studio: Studio) -> None:
    asked = replace(GATED, rows=(LoraRow(name="neon", text_encoder=0.3),))
    events = list(studio.compose(asked))
    (started,) = [event for event in events if isinstance(event, Started)]
    assert started.loras == ("neon", "zibo")
    (picture,) = finished(events).pictures
    assert picture.image().tobytes() == pixels(studio, GATED)
    assert {lora.unet for lora in picture.record.loras} == {1.0}


def test_a_lora_can_be_louder_than_its_gates_say(studio: Studio) -> None:
    stronger = paint(studio, replace(GATED, rows=(LoraRow(name="neon", weight=1.5),)))
    as_said = pixels(studio, GATED)
    assert stronger.image().tobytes() != as_said
    assert stronger.record.fusion["strengths"] == {"neon": 1.5}
    assert {lora.name: lora.unet for lora in stronger.record.loras} == {"neon": 1.5, "zibo": 1.0}
    recalled = studio.recall(stronger)
    assert recalled.notes == () and pixels(studio, recalled.asked) == stronger.image().tobytes()
    tagged = replace(GATED, request=replace(REQUEST, prompt=f"{REQUEST.prompt} <lora:neon:1.5>"))
    assert pixels(studio, tagged) == stronger.image().tobytes()
    assert pixels(studio, GATED) == as_said, "it holds for one picture"
    none = replace(GATED, rows=(LoraRow(name="neon", weight=0.0),))
    assert pixels(studio, none) == pixels(studio, replace(GATED, rows=off("neon")))
    with pytest.raises(ComposerError, match="weight of the LoRA 'neon' is nan"):
        LoraRow(name="neon", weight=math.nan)


def test_tags_in_the_prompt_are_switches(studio: Studio) -> None:
    tagged = replace(GATED, request=replace(REQUEST, prompt="a fox <lora:neon:0>"))
    assert pixels(studio, tagged) == pixels(studio, replace(GATED, rows=off("neon")))


def test_a_gated_picture_is_made_again_from_its_file(studio: Studio, tmp_path: Path) -> None:
    rows = (LoraRow(name="zibo", steps=(0.25, 1.0)), LoraRow(name="neon", on=False))
    first = paint(studio, replace(GATED, recipe=Gates(file="three"), rows=rows))
    fusion = first.record.fusion
    assert (fusion["name"], fusion["gates"]) == ("gates", "three")
    assert fusion["switches"] == {"zibo": True, "neon": False, "moon": True}
    assert fusion["steps"] == {"zibo": [0.25, 1.0]}
    elsewhere = tmp_path / "renamed.png"
    elsewhere.write_bytes(first.path.read_bytes())
    recalled = studio.recall(studio.history.read(elsewhere))
    assert recalled.notes == () and recalled.asked.recipe == Gates(file="three")
    again = paint(studio, recalled.asked)
    assert again.path.read_bytes() == first.path.read_bytes()


def test_the_text_for_other_programs_brings_gates_and_switches_back(studio: Studio) -> None:
    first = paint(studio, replace(GATED, rows=off("neon")))
    text = to_parameters(first.record)
    assert "<lora:zibo:1>" in text and "neon" not in text
    assert "Fusion: gates" in text and "Gates: pair" in text
    from composer.diffusion.parameters import from_parameters
    from composer.studio.recall import recall

    found = recall(from_parameters(text), studio.libraries)
    assert found.notes == ()
    assert pixels(studio, found.asked) == first.image().tobytes()


@pytest.mark.parametrize(
    ("gates", "rows", "told"),
    [
        ("pear", (), "Did you mean 'pair'"),
        ("../pair", (), "there are no such gates"),
        ("alien", (), r"trained on .* \(0000000000\)"),
        ("stale", (), "'neon' is another file"),
        ("lacking", (), "'gone', which is not here"),
        ("cut", (), "damaged or cut off"),
        ("lora", (), "holds no gates"),
        ("pair", (LoraRow(name="moon"),), "do not know the LoRA 'moon'; they are for"),
        ("pair", (LoraRow(name="moom", on=False),), "Did you mean 'moon'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_and_the_next_picture_unharmed(
    studio: Studio, gates: str, rows: tuple[LoraRow, ...], told: str
) -> None:
    before = pixels(studio, GATED), pixels(studio, WEIGHTED)
    with pytest.raises(ComposerError, match=told) as caught:
        finished(studio.compose(replace(GATED, recipe=Gates(file=gates), rows=rows)))
    assert "\n" not in str(caught.value)
    assert pixels(studio, GATED) == before[0]
    assert pixels(studio, WEIGHTED) == before[1]


def test_gates_that_fit_no_unit_here_leave_nothing_behind(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = pixels(studio, WEIGHTED)
    with monkeypatch.context() as patch:

        def refuse(*_: object) -> None:
            raise ComposerError("no such unit")

        patch.setattr("composer.fusions.gate_file.GateFile.fit", refuse)
        with pytest.raises(ComposerError, match="no such unit"):
            finished(studio.compose(replace(GATED, recipe=Gates(file="three"))))
    assert pixels(studio, WEIGHTED) == before
    assert paint(studio, replace(GATED, recipe=Gates(file="three"))).path.is_file()


def test_only_gates_that_fit_are_offered_and_the_rest_are_problems(studio: Studio) -> None:
    offers, problems = studio.offers()
    assert {offer.recipe.file: offer.loras for offer in offers} == {
        "pair": ("zibo", "neon"),
        "whole": ("zibo", "neon"),
        "three": ("zibo", "neon", "moon"),
        "fine": ("zibo", "neon"),
    }
    told = " ".join(problems)
    assert len(problems) == 5
    for name in ("alien", "stale", "lacking", "cut", "lora"):
        assert f"{name}.safetensors" in told
    cards = {card.name: card.error for card in studio.cards(refresh=True)}
    assert cards == dict.fromkeys(("moon", "neon", "zibo"))


def test_a_renamed_lora_is_found_by_its_hash(tiny_sd: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "gates").mkdir()
    for name in ("zibo", "neon", "gates/pair"):
        (tmp_path / f"{name}.safetensors").write_bytes(
            (folder / f"{name}.safetensors").read_bytes()
        )
    studio = Studio(tiny_sd, [tmp_path], tmp_path / "outputs")
    studio.wait()
    first = paint(studio, replace(GATED, rows=off("zibo")))
    (tmp_path / "zibo.safetensors").rename(tmp_path / "fox.safetensors")
    (tmp_path / "gates" / "pair.safetensors").rename(tmp_path / "gates" / "duo.safetensors")
    studio.cards(refresh=True)
    recalled = studio.recall(first)
    assert recalled.notes == ("The gates 'pair' are called 'duo' now.",)
    assert {row.name: row.on for row in recalled.asked.rows} == {"fox": False, "neon": True}
    assert pixels(studio, recalled.asked) == first.image().tobytes()
    write_gates(
        tmp_path / "gates" / "pair.safetensors",
        tiny_sd,
        {"fox": tmp_path / "fox.safetensors", "neon": tmp_path / "neon.safetensors"},
        seed=4,
    )
    (tmp_path / "gates" / "duo.safetensors").unlink()
    (note,) = studio.recall(first).notes
    assert "'pair' have changed since" in note
    (tmp_path / "gates" / "pair.safetensors").unlink()
    recalled = studio.recall(first)
    assert "no such gates" in recalled.notes[0] and "weighted sum is used" in recalled.notes[0]
    assert recalled.asked.recipe == Sum()


def test_the_gate_map_lies_beside_the_picture(studio: Studio) -> None:
    assert paint(studio, GATED).gate_record() is None
    assert paint(studio, replace(WEIGHTED, gate_map=True)).gate_record() is None
    observed = pixels(studio, replace(GATED, gate_map=True))
    assert observed == pixels(studio, GATED)
    asked = replace(GATED, request=replace(REQUEST, count=10), gate_map=True)
    pictures = finished(studio.compose(asked)).pictures
    records = [picture.gate_record() for picture in pictures]
    shapes = set()
    for record in records:
        assert record is not None and record.without is not None
        shapes.add((record.with_prompt.shape, record.without.shape))
        assert record.experts == ("neon", "zibo")
    assert shapes == {((4, 1, 2), (4, 1, 2))}
    assert len(studio.history.recent(3)) == 3 and studio.history.recent(1)[0] == pictures[-1]
    first, second = records[:2]
    assert first is not None and second is not None
    assert not np.allclose(first.with_prompt, second.with_prompt)
    pictures[0].gates_path.write_bytes(b"no map")
    with pytest.raises(ComposerError, match="gate map is damaged"):
        pictures[0].gate_record()


def test_a_map_of_a_picture_that_was_stopped_or_had_no_active_lora(studio: Studio) -> None:
    before = pixels(studio, GATED)
    limited = (LoraRow(name="neon", on=False), LoraRow(name="zibo", steps=(0.5, 1.0)))
    record = paint(studio, replace(GATED, rows=limited, gate_map=True)).gate_record()
    # steps in which some LoRA was active
    assert record is not None and len(record.with_prompt) == 2
    long = replace(GATED, request=replace(REQUEST, steps=400), gate_map=True)
    events = studio.compose(long, owner="ann")
    next(event for event in events if isinstance(event, Progress))
    studio.interrupt("ann")
    assert finished(events).cancelled
    assert pixels(studio, GATED) == before
    engine = studio._engine  # pyright: ignore[reportPrivateUsage]
    assert engine is not None and engine.mixture is not None  # pyright: ignore[reportPrivateUsage]
    watches = engine.mixture._watches.values()  # pyright: ignore[reportPrivateUsage]
    assert all(watch.tape is None for watch in watches)


def test_the_record_says_nothing_of_gates_in_a_weighted_picture(studio: Studio) -> None:
    assert read_png(paint(studio, WEIGHTED).path).fusion == {"name": "weighted"}


def test_trigger_regions_are_a_fusion_like_any_other(studio: Studio) -> None:
    """Another picture than the sum, the same again; one LoRA alone is itself; toggles count."""
    regions = replace(WEIGHTED, recipe=Regions())
    first, again = paint(studio, regions), paint(studio, regions)
    assert first.image().tobytes() == again.image().tobytes()
    assert first.record.fusion == {"name": "regions"}
    assert studio.recall(first).asked.recipe == Regions()
    summed = paint(studio, WEIGHTED)
    one = (LoraRow(name="zibo", weight=0.8), LoraRow(name="neon", on=False))
    alone = [paint(studio, replace(asked, rows=one)) for asked in (regions, WEIGHTED)]
    pixels = [np.asarray(p.image()).astype(int) for p in alone]
    assert np.abs(pixels[0] - pixels[1]).max() <= 2
    assert summed.image().tobytes() == paint(studio, WEIGHTED).image().tobytes()


@pytest.mark.parametrize(
    "asked", [GATED, replace(WEIGHTED, recipe=Regions())], ids=["learned", "regions"]
)
def test_gates_read_the_text_of_each_step(studio: Studio, asked: ComposeRequest) -> None:
    def drawn(prompt: str, **more: Any) -> bytes:
        request = replace(REQUEST, prompt=prompt, **more)
        return pixels(studio, replace(asked, request=request))

    owl = drawn("an owl")
    assert drawn("[a fox:an owl:0]") == owl
    changing = drawn("[a fox|an owl]")
    assert changing not in (owl, drawn("a fox"))
    # the second pass alone reads the other text
    assert drawn("[a fox:an owl:1.0]", hires=1.5) != drawn("a fox", hires=1.5)
