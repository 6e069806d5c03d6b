"""The oracle: what it may be asked, what is right, and that it is stored whole."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from PIL import Image

from composer.errors import ComposerError
from toybox.oracle import HEADS, Oracle, OracleNet, Verdict, judgeable, score, truth
from toybox.render import render
from toybox.world import Figure, Scene, random_any_scene

ALWAYS = {"first", "second", "background", "style"}
CAT, RED_CAR, CAR = Figure(name="cat"), Figure(name="car", colour="red"), Figure(name="car")
HAT = Figure(name="dog", wears="top hat")


@pytest.mark.parametrize(
    ("figures", "background", "style", "asked"),
    [
        ((CAT,), "beach", None, ALWAYS),
        ((CAT, CAR), "plain red", None, ALWAYS),
        ((RED_CAR,), "beach", None, ALWAYS | {"first_colour"}),
        ((CAT, RED_CAR), "beach", "pixel art", ALWAYS | {"second_colour"}),
        ((RED_CAR,), "beach", "pencil sketch", ALWAYS),
        ((RED_CAR,), "plain blue", "pencil sketch", ALWAYS - {"background"}),
        ((CAT,), "plain blue", "neon", ALWAYS - {"background"}),
        ((CAT,), "plain blue", "pixel art", ALWAYS),
        ((RED_CAR,), "moon", "neon", ALWAYS | {"first_colour"}),
        ((HAT,), "beach", None, ALWAYS | {"first_wears"}),
        ((HAT, CAT), "beach", None, ALWAYS | {"first_wears", "second_wears"}),
        ((CAT, HAT), "beach", None, ALWAYS | {"first_wears", "second_wears"}),
    ],
)
def test_what_a_scene_can_be_asked(
    figures: tuple[Figure, ...], background: str, style: str | None, asked: set[str]
) -> None:
    assert judgeable(Scene(figures=figures, background=background, style=style)) == asked


def test_truth_and_score() -> None:
    scene = Scene(figures=(RED_CAR, HAT), background="moon", style="neon")
    right = truth(scene)
    assert right == {
        "first": "car",
        "second": "dog",
        "first_colour": "red",
        "second_colour": None,
        "first_wears": None,
        "second_wears": "top hat",
        "background": "moon",
        "style": "neon",
    }
    assert all(score(scene, Verdict(right)).values())
    wrong = Verdict(right | {"first_colour": "blue", "second_colour": "green", "second": "cat"})
    assert score(scene, wrong) == {
        "background": True,
        "first": True,
        "first_colour": False,
        "first_wears": True,
        "second": False,
        "second_wears": True,
        "style": True,
    }


def test_every_right_answer_can_be_given() -> None:
    rng = random.Random(0)
    for _ in range(500):
        for head, answer in truth(random_any_scene(rng)).items():
            assert answer in HEADS[head]


def test_a_colour_left_unsaid_is_not_taught() -> None:
    from toybox.stage_oracle import _targets

    sketch = Scene(figures=(RED_CAR, CAT), background="plain red", style="pencil sketch")
    scenes = [
        Scene(figures=(CAR, RED_CAR), background="beach"),
        Scene(figures=(CAT,), background="beach"),
        sketch,
    ]
    targets = {head: values.tolist() for head, values in _targets(scenes).items()}
    colours = HEADS["first_colour"]
    assert targets["first_colour"] == [-100, colours.index(None), -100]
    assert targets["second_colour"] == [colours.index("red"), colours.index(None), -100]
    assert targets["background"][2] == -100
    assert targets["second"][1] == HEADS["second"].index(None)
    assert min(targets["first"] + targets["style"] + targets["first_wears"]) >= 0


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    torch.manual_seed(0)
    return Oracle(OracleNet())


def drawn(count: int) -> list[Image.Image]:
    rng = random.Random(1)
    return [render(random_any_scene(rng), rng) for _ in range(count)]


def test_it_judges_the_same_when_saved_and_loaded(oracle: Oracle, tmp_path: Path) -> None:
    oracle.save(tmp_path / "oracle")
    loaded = Oracle.load(tmp_path / "oracle")
    for key, value in oracle.net.state_dict().items():
        assert torch.equal(loaded.net.state_dict()[key], value.half().to(value.dtype)), key
    verdicts = loaded.judge(drawn(70))  # more than one batch
    assert len(verdicts) == 70
    assert all(set(verdict.answers) == set(HEADS) for verdict in verdicts)
    assert loaded.judge(drawn(3)) == verdicts[:3]


def test_pictures_of_other_sizes_are_reduced(oracle: Oracle) -> None:
    images = drawn(4)
    larger = [image.resize((192, 192), Image.Resampling.NEAREST) for image in images]
    with_alpha = [image.convert("RGBA") for image in larger]
    assert oracle.judge(images) == oracle.judge(larger) == oracle.judge(with_alpha)
    assert oracle.judge([]) == []


def test_an_oracle_of_another_world_is_refused(oracle: Oracle, tmp_path: Path) -> None:
    oracle.save(tmp_path)
    listed = tmp_path / "oracle.json"
    listed.write_text(json.dumps({**HEADS, "style": [None, "cubist"]}))
    with pytest.raises(ComposerError, match=r"another world .* build it again"):
        Oracle.load(tmp_path)


def test_a_missing_oracle_is_named_with_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(ComposerError, match=r"holds no oracle: .*python -m toybox build"):
        Oracle.load(tmp_path / "nowhere")
