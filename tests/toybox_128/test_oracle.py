"""The oracle at 128 pixels: what it is asked, and where it must call a figure unclear."""

from __future__ import annotations

import random

import pytest
import torch

from composer.errors import ComposerError
from toybox.networks import seed_torch
from toybox_128.degrade import bent, blended, blurred, degraded, legibility, noisy, shuffled
from toybox_128.oracle import HEADS, SLOTS, UNCLEAR, Oracle, OracleNet, score, truth
from toybox_128.render import render
from toybox_128.stage_oracle import KEPT, LOST, targets
from toybox_128.stage_vae import new_vae, to_tensor
from toybox_128.world import Figure, Scene, random_any_scene

ONE = Scene(figures=(Figure(name="cat"),), background="meadow")


def _drawn(count: int) -> tuple[list[Scene], torch.Tensor]:
    rng = random.Random(6)
    scenes = [random_any_scene(rng) for _ in range(count)]
    return scenes, to_tensor([render(scene, rng) for scene in scenes])


@pytest.mark.parametrize("kind", [blurred, noisy, bent, blended, shuffled])
def test_figures_are_less_legible_the_stronger_a_picture_is_degraded(kind) -> None:
    seed_torch(0)
    scenes, x = _drawn(12)
    left = [
        float(legibility(scenes, x, kind(x, torch.full((12, 1, 1, 1), s)))[:, :3].nanmean())
        for s in (0.0, 0.3, 1.0)
    ]
    assert left[0] == pytest.approx(1, abs=0.02)
    assert left[0] > left[1] > left[2]
    assert left[2] < KEPT


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


def test_an_oracle_is_saved_and_read_back(tmp_path) -> None:
    seed_torch(1)
    oracle = Oracle(OracleNet())
    oracle.save(tmp_path)
    again = Oracle.load(tmp_path)
    image = render(ONE, random.Random(0))
    assert set(again.judge([image])[0].answers) == set(HEADS)
    (tmp_path / "oracle.json").write_text("{}")
    with pytest.raises(ComposerError, match="another world"):
        Oracle.load(tmp_path)


def test_a_verdict_is_scored_by_the_heads_that_the_scene_is_asked() -> None:
    from toybox_128.oracle import Verdict

    right = truth(ONE)
    assert all(score(ONE, Verdict(right)).values())
    wrong = score(ONE, Verdict(right | {"second": "dog"}))
    assert not wrong["second"] and wrong["first"]
    assert set(SLOTS) <= set(wrong)


def test_degraded_pictures_stay_pictures() -> None:
    seed_torch(2)
    x = _drawn(8)[1]
    worse = degraded(x, new_vae(), None)
    assert worse.shape == x.shape and float(worse.abs().max()) <= 1
    assert (worse - x).abs().flatten(1).mean(1).max() > 0.02
