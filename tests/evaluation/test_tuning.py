"""Tuning weights: the grid, its judge, and that the best point is the best picture's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_clip import write_clip
from tiny_loras import write_lora
from typer.testing import CliRunner, Result

from composer.cli import app
from composer.diffusion.clip import Clip
from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.errors import ComposerError
from composer.evaluation.sampling import Sampling, Shot, sample
from composer.evaluation.tuning import (
    GRID,
    Judge,
    Tried,
    Tuning,
    best_of,
    clip_judge,
    points_of,
    prompts_without,
    tune_weights,
)
from composer.experts import Expert, ModuleNames, read_expert
from composer.fusions.tuned_weights import read_tuned_weights
from composer.mixture import attach

TUNING = Tuning(prompts=("zibo in neon", "neon"), grid=(0.5, 1.0), sampling=Sampling(steps=2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned") / "loras"
    for seed, name in enumerate(("zibo", "neon", "moon")):
        told = {"modelspec.trigger_phrase": name}
        write_lora(folder / f"{name}.safetensors", seed=seed, **told)
    return folder


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> Model:
    return load_model(tiny_sd)


@pytest.fixture(scope="module")
def clip(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("judge") / "clip", tiny_sd)


def experts(model: Model, folder: Path, *names: str) -> list[Expert]:
    modules = ModuleNames.of(model.models, model=model.name)
    return [read_expert(folder / f"{name}.safetensors", modules, name=name) for name in names]


def brightness(pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
    assert len(pictures) == len(prompts)
    return [float(np.asarray(picture).mean()) for picture in pictures]


BRIGHT = Judge(name="brightness", score=brightness)


def last(reports: Iterator[Tried]) -> tuple[dict[tuple[float, ...], float], Tried]:
    made = list(reports)
    assert [report.step for report in made] == list(range(1, len(made) + 1))
    assert {report.total for report in made} == {len(made)}
    assert all(report.found is None for report in made[:-1])
    return {report.weights: report.score for report in made}, made[-1]


def test_two_loras_have_every_point_and_more_have_one_apart() -> None:
    assert set(points_of(GRID, 2)) == set(product(GRID, repeat=2))
    three = points_of((0.8, 1.0), 3)
    assert set(three) == set(product((0.8, 1.0), repeat=3))  # of two weights one is always apart
    four = points_of(GRID, 4)
    assert len(set(four)) == len(four) == 4 + 4 * 3 * 4
    assert all(len(set(w)) <= 2 and max(map(w.count, w)) >= 3 for w in four)


def test_the_best_of_equals_is_nearest_to_one() -> None:
    flat = {(0.8, 0.8): [1.0], (1.0, 0.8): [1.0], (1.4, 1.4): [1.0], (1.0, 1.0): [0.5]}
    assert best_of(flat) == (1.0, 0.8)
    assert best_of(flat | {(1.4, 1.4): [1.1]}) == (1.4, 1.4)


def test_chance_does_not_move_the_weights_away_from_one() -> None:
    noise = np.random.default_rng(0).normal(size=16)
    ones, far = list(noise), list(noise + 0.01 + np.random.default_rng(1).normal(size=16))
    assert best_of({(1.0, 1.0): ones, (1.4, 1.4): far}) == (1.0, 1.0)
    # by a third of a standard deviation, but at every picture
    sure = list(noise + 0.3 + 0.01 * np.random.default_rng(2).normal(size=16))
    assert best_of({(1.0, 1.0): ones, (1.4, 1.4): sure}) == (1.4, 1.4)


def test_the_words_of_one_lora_at_a_time_are_left_out() -> None:
    triggers = ["zibo fox", "wearing a top hat", "", "in neon style"]
    assert prompts_without("Zibo  fox and a cat wearing a top hat, at night", triggers) == [
        "and a cat wearing a top hat, at night",
        "Zibo fox and a cat, at night",
    ]
    assert prompts_without("a car, in neon style", triggers) == ["a car"]
    with pytest.raises(ComposerError, match="the trigger words of none"):
        prompts_without("a zibo foxes", triggers)


def test_each_point_is_judged_by_its_own_pictures(model: Model, folder: Path) -> None:
    pair = experts(model, folder, "zibo", "neon")
    before = {k: v.clone() for k, v in model.unet.state_dict().items()}
    scores, end = last(tune_weights(model, pair, BRIGHT, TUNING))
    each: dict[tuple[float, ...], list[float]] = {}
    shots = [Shot(prompt=prompt, seed=seed) for seed, prompt in enumerate(TUNING.prompts)]
    for weights, score in scores.items():
        with attach(model.models, {e.name: e.sites for e in pair}) as mixture:
            mixture.set_weights(dict(zip(("zibo", "neon"), weights, strict=True)))
            pictures = list(sample(model, shots, TUNING.sampling))
        each[weights] = brightness(pictures, TUNING.prompts)
        assert sum(each[weights]) / 2 == pytest.approx(score)
    assert set(scores) == set(product((0.5, 1.0), repeat=2)) and len(set(scores.values())) > 1
    found = end.found
    assert found is not None and found.points == 4 and found.pictures == 2
    best = best_of(each)
    assert tuple(found.weights().values()) == best
    assert (found.score, found.score_of_ones) == (scores[best], scores[1.0, 1.0])
    assert [lora.tensor_hash for lora in found.loras] == [e.tensor_hash for e in pair]
    assert (found.model, found.model_hash) == (model.name, model.hash)
    after = model.unet.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_ones_are_tried_even_outside_the_grid(model: Model, folder: Path) -> None:
    pair = experts(model, folder, "zibo", "neon")
    scores, end = last(tune_weights(model, pair, BRIGHT, replace(TUNING, grid=(0.5, 0.7))))
    assert len(scores) == 5 and end.found is not None
    assert end.found.score_of_ones == scores[1.0, 1.0]


def test_a_search_that_is_left_gives_the_model_back(model: Model, folder: Path) -> None:
    keys = list(model.unet.state_dict())
    search = tune_weights(model, experts(model, folder, "zibo", "neon"), BRIGHT, TUNING)
    next(search)
    search.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert list(model.unet.state_dict()) == keys


def test_clip_scores_a_picture_by_its_own_prompt(model: Model, clip: Path) -> None:
    loaded = Clip.load(str(clip), model)
    generator = np.random.default_rng(0)
    pictures = [
        Image.fromarray(generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)) for _ in range(3)
    ]
    prompts = ["a fox in neon", "zibo on the moon", "a zibo in neon"]
    judge = clip_judge(loaded, ["zibo", "in neon"])
    scores = judge.score(pictures, prompts)
    rest = [["a fox"], ["on the moon"], ["a in neon", "a zibo"]]
    for picture, prompt, others, score in zip(pictures, prompts, rest, scores, strict=True):
        cosines = [
            float(loaded.text([words])[0] @ loaded.look([picture])[0])
            for words in (prompt, *others)
        ]
        powers = np.exp(10 * np.array(cosines))
        assert score == pytest.approx(powers[0] / powers.sum(), abs=1e-4)
    assert len(set(scores)) == 3 and judge.name == str(clip)


def test_what_cannot_be_tuned_is_refused(model: Model, folder: Path) -> None:
    with pytest.raises(ComposerError, match="choose 2 to 16"):
        next(tune_weights(model, experts(model, folder, "zibo"), BRIGHT, TUNING))
    with pytest.raises(ComposerError, match="no prompt"):
        replace(TUNING, prompts=())
    for grid in ((1.0,), (1.0, 1.0), (0.0, 1.0), (1.0, float("nan")), (1.0, 99.0)):
        with pytest.raises(ComposerError, match="two weights or more"):
            replace(TUNING, grid=grid)


def tune(tiny_sd: Path, folder: Path, *arguments: str) -> Result:
    fixed = ["--model", str(tiny_sd), "--lora-dir", str(folder), "--steps", "1", "--pictures", "2"]
    return CliRunner().invoke(app, ["tune-weights", *fixed, *arguments])


def test_the_command_writes_what_compare_reads(
    tiny_sd: Path, folder: Path, clip: Path, tmp_path: Path
) -> None:
    judge = ("--clip", str(clip), "--grid", "0.8,1.2")
    done = tune(tiny_sd, folder, "zibo", "neon", *judge)
    assert done.exit_code == 0, done.output
    path = folder / "weights" / "neon+zibo.json"
    line, told = done.stdout.strip().splitlines()
    assert told == str(path) and line.startswith("zibo ") and " + neon " in line
    found = read_tuned_weights(path)
    assert found.judge == str(clip) and found.points == 5
    again = tune(tiny_sd, folder, "neon", "zibo", *judge)
    assert again.exit_code == 2 and "--replace" in again.stderr
    assert tune(tiny_sd, folder, "neon", "zibo", "--replace", *judge).exit_code == 0
    elsewhere = tmp_path / "other" / "mine.json"
    more = ("--output", str(elsewhere), "--prompt", "zibo with neon")
    assert tune(tiny_sd, folder, "zibo", "neon", *judge, *more).exit_code == 0
    assert elsewhere.is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("zibo", "neon"), "has no CLIP beside it"),
        (("zibo", "nobody"), "there is no such LoRA"),
        (("zibo", "neon", "--clip", "nowhere/none"), "cannot be used"),
        (("zibo", "neon", "--output", "weights.txt"), "ends in .json"),
        (("zibo", "moon", "--clip", "CLIP", "--grid", "1,x"), "no list of numbers"),
        (("zibo", "moon", "--clip", "CLIP", "--grid", "1"), "two weights or more"),
        (("zibo", "--clip", "CLIP"), "choose 2 to 16"),
        (("zibo", "Zibo"), "'Zibo' is named twice"),
        (("zibo", "neon", "--steps", "5000"), "5000 steps are more than the 999"),
        (("zibo", "moon", "--clip", "CLIP", "--prompt", "a cat"), "trigger words of none"),
    ],
)
def test_what_the_command_cannot_use_it_says(
    tiny_sd: Path, folder: Path, clip: Path, tmp_path: Path, arguments: Sequence[str], message: str
) -> None:
    given = [str(clip) if word == "CLIP" else word for word in arguments]
    if "--output" not in given:
        given += ["--output", str(tmp_path / "none.json")]
    done = tune(tiny_sd, folder, *given)
    assert done.exit_code == 2 and message in done.stderr, done.output
    assert not (tmp_path / "none.json").exists()
