"""The oracle at 128 pixels: what it is asked, and where it must call a figure unclear."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from composer.errors import ComposerError
from toybox.degrade import bent, blended, blurred, degraded, legibility, noisy, shuffled
from toybox.networks import seed_torch
from toybox.oracle import (
    HEADS,
    SLOTS,
    UNCLEAR,
    Oracle,
    OracleNet,
    Verdict,
    judgeable,
    score,
    truth,
)
from toybox.render import SIZE, render
from toybox.stage_oracle import KEPT, LOST, targets
from toybox.stage_vae import new_vae, to_tensor
from toybox.world import Figure, Scene, random_any_scene

CAT, CAR = Figure(name="cat"), Figure(name="car")
RED_CAR, HAT = Figure(name="car", colour="red"), Figure(name="dog", wears="top hat")
ONE = Scene(figures=(CAT,), background="meadow")
ALWAYS = {"first", "second", "third", "background", "style"}


def _drawn(count: int) -> tuple[list[Scene], torch.Tensor]:
    rng = random.Random(6)
    scenes = [random_any_scene(rng) for _ in range(count)]
    return scenes, to_tensor([render(scene, rng) for scene in scenes])


@pytest.mark.parametrize("kind", [blurred, noisy, bent, blended, shuffled])
def test_figures_are_less_legible_the_stronger_a_picture_is_degraded(
    kind: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    seed_torch(0)
    scenes, x = _drawn(12)
    left = [
        float(legibility(scenes, x, kind(x, torch.full((12, 1, 1, 1), s)))[:, :3].nanmean())
        for s in (0.0, 0.3, 1.0)
    ]
    assert left[0] == pytest.approx(1, abs=0.02)
    assert left[0] > left[1] > left[2]
    assert left[2] < KEPT


@torch.no_grad()
def test_answers_are_mixed_over_the_numbers_of_figures() -> None:
    seed_torch(0)
    net = OracleNet().eval()
    _, x = _drawn(3)
    found = net(x)
    assert {name: given.shape for name, given in found.items()} == {
        name: (3, len(answers)) for name, answers in HEADS.items()
    }
    for given in found.values():
        torch.testing.assert_close(given.exp().sum(1), torch.ones(3))
    # of one figure alone there is no second one, and the first is what stands in the middle
    for number in range(3):
        net.count.bias.copy_(torch.tensor([-50.0, -50.0, -50.0]))
        net.count.bias[number] = 50.0
        found = net(x)
        for index, slot in enumerate(SLOTS):
            none = found[slot].exp()[:, 0]
            torch.testing.assert_close(none, torch.full((3,), float(index > number)))
            assert bool((found[f"{slot}_colour"].exp()[:, 0] == 1).all()) == (index > number)
    # one classifier reads all places: where the same is looked at, it says the same
    net.boxes[0, 3] = net.boxes[0, 0]  # the left one of three is looked for in the middle
    of_three = net(x)["first"]
    net.count.bias.copy_(torch.tensor([50.0, -50.0, -50.0]))
    torch.testing.assert_close(net(x)["first"], of_three, rtol=1e-4, atol=1e-4)


def test_a_lost_figure_is_to_be_called_unclear_and_a_doubtful_one_is_not_asked() -> None:
    for clear, wanted in (
        (KEPT + 0.01, HEADS["first"].index("cat")),
        ((LOST + KEPT) / 2, -100),
        (LOST - 0.01, HEADS["first"].index(UNCLEAR)),
    ):
        left = torch.tensor([[clear, float("nan"), float("nan"), 1.0]])
        found = targets([ONE], left)
        assert int(found["first"]) == wanted
        assert int(found["background"]) == HEADS["background"].index("meadow")
        assert int(found["second"]) == HEADS["second"].index(None)


def test_unclear_is_right_for_no_prompt() -> None:
    for scene in _drawn(30)[0]:
        assert UNCLEAR not in truth(scene).values()


@pytest.mark.parametrize(
    ("figures", "background", "style", "asked"),
    [
        ((CAT,), "beach", None, ALWAYS),
        ((CAT, CAR, HAT), "plain red", None, ALWAYS | {f"{n}_wears" for n in SLOTS}),
        ((CAT, RED_CAR), "beach", "pixel art", ALWAYS | {"second_colour"}),
        ((RED_CAR,), "plain blue", "pencil sketch", ALWAYS - {"background"}),
        ((CAT,), "plain blue", "neon", ALWAYS - {"background"}),
        ((CAT,), "plain blue", "stained glass", ALWAYS),
        ((CAT, CAR, RED_CAR), "moon", "neon", ALWAYS | {"third_colour"}),
        ((HAT,), "beach", None, ALWAYS | {"first_wears"}),
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
    nothing = dict.fromkeys(HEADS)
    assert right == nothing | {
        "first": "car",
        "second": "dog",
        "first_colour": "red",
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
        "third": True,
    }


def test_every_right_answer_can_be_given_and_none_is_asked_of_who_is_not_there() -> None:
    rng = random.Random(0)
    for _ in range(500):
        for head, answer in truth(random_any_scene(rng)).items():
            assert answer in HEADS[head]
    left = torch.full((1, 4), LOST - 0.1)  # no one is made out, and who is not there is still not
    assert int(targets([ONE], left)["second"]) == -100


def test_a_colour_left_unsaid_is_not_taught() -> None:
    scenes = [
        Scene(figures=(CAR, RED_CAR, CAT), background="beach"),
        Scene(figures=(CAT,), background="beach"),
        Scene(figures=(RED_CAR, CAT), background="plain red", style="pencil sketch"),
    ]
    found = {head: values.tolist() for head, values in targets(scenes).items()}
    red, none = HEADS["first_colour"].index("red"), HEADS["first_colour"].index(None)
    assert found["first_colour"] == [-100, none, -100]
    assert found["second_colour"] == [red, none, -100]
    assert found["third_colour"] == [none, none, -100]
    assert found["background"][2] == -100
    assert found["second"][1] == HEADS["second"].index(None)
    assert min(found["first"] + found["style"] + found["first_wears"]) >= 0


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    seed_torch(1)
    return Oracle(OracleNet())


def _images(count: int) -> list[Image.Image]:
    rng = random.Random(1)
    return [render(random_any_scene(rng), rng) for _ in range(count)]


def test_it_judges_the_same_when_saved_and_loaded(oracle: Oracle, tmp_path: Path) -> None:
    oracle.save(tmp_path / "oracle")
    loaded = Oracle.load(tmp_path / "oracle")
    for key, value in oracle.net.state_dict().items():
        assert torch.equal(loaded.net.state_dict()[key], value.half().to(value.dtype)), key
    some = _images(3)
    verdicts = loaded.judge(some * 22)  # more than one batch
    assert len(verdicts) == 66
    assert all(set(verdict.answers) == set(HEADS) for verdict in verdicts)
    assert loaded.judge(some) == verdicts[:3] == verdicts[-3:]


def test_pictures_of_other_sizes_are_reduced(oracle: Oracle) -> None:
    images = _images(3)
    larger = [i.resize((3 * SIZE, 3 * SIZE), Image.Resampling.NEAREST) for i in images]
    with_alpha = [image.convert("RGBA") for image in larger]
    assert oracle.judge(images) == oracle.judge(larger) == oracle.judge(with_alpha)
    assert oracle.judge([]) == []


def test_an_oracle_of_another_world_is_refused(oracle: Oracle, tmp_path: Path) -> None:
    oracle.save(tmp_path)
    listed = tmp_path / "oracle.json"
    listed.write_text(json.dumps({**HEADS, "style": [None, "cubist"]}))
    with pytest.raises(ComposerError, match=r"another world .* train it again"):
        Oracle.load(tmp_path)


def test_a_missing_oracle_is_named_with_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(ComposerError, match=r"holds no oracle: train it with .*stage oracle"):
        Oracle.load(tmp_path / "nowhere")


def test_degraded_pictures_stay_pictures() -> None:
    seed_torch(2)
    x = _drawn(8)[1]
    worse = degraded(x, new_vae(), None)
    assert worse.shape == x.shape and float(worse.abs().max()) <= 1
    assert (worse - x).abs().flatten(1).mean(1).max() > 0.02
