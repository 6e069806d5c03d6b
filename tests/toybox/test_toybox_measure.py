"""A finished model is assembled, loads, and is judged beside what is asked for."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest
from PIL import Image

from composer.diffusion.load import load_model
from composer.errors import ComposerError
from toybox import measure as measuring
from toybox.assemble import assemble
from toybox.measure import BARS, NAMES, Case, Judged, answers, cases, crispness, measure
from toybox.networks import seed_torch
from toybox.oracle import Oracle, OracleNet, Verdict, truth
from toybox.render import SIZE, render
from toybox.stage_clip import new_clip
from toybox.stage_unet import new_unet
from toybox.stage_vae import new_vae
from toybox.tokens import MAX_LENGTH, build_tokenizer
from toybox.understand import understand


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    seed_torch(0)
    folder, tokenizer = tmp_path_factory.mktemp("model"), build_tokenizer()
    clip = new_clip(tokenizer)
    assemble(folder, vae=new_vae(), unet=new_unet(), clip=clip, tokenizer=tokenizer)
    return folder


def judged(some: list[Case], **changed: str) -> list[Judged]:
    """Renderings, with verdicts that are right but for what is `changed`."""
    return [
        Judged(
            case=case,
            image=render(case.scene, random.Random(f"measure {case.seed}")),
            verdict=Verdict(truth(case.scene) | changed),
        )
        for case in some
    ]


def test_prompts_are_unseen_wordings_of_their_scenes_and_name_the_place() -> None:
    some = cases(12)
    assert some == cases(12)
    assert [len(case.scene.figures) for case in some] == [1] * 12 + [2] * 12 + [3] * 12
    assert len({case.seed for case in some}) == len(some)
    for case in some:
        found = understand(case.prompt)
        assert found is not None
        assert found.scene == case.scene


def test_every_answer_must_be_right_and_each_colour_word_counts() -> None:
    some = cases(20)
    right = answers(judged(some))
    assert set(right) == set(BARS)
    assert all(all(given) for given in right.values())
    assert [len(right[NAMES[n]]) for n in (1, 2, 3)] == [20] * 3
    colours = [figure.colour for case in some for figure in case.scene.figures if figure.colour]
    assert len(right["colour words"]) == len(colours) > 0
    wrong = answers(judged(some, third="crab"))
    assert not any(wrong[NAMES[1]])
    assert all(wrong["colour words"])


def test_renderings_are_as_crisp_as_renderings_and_grey_is_not() -> None:
    some = cases(2)
    assert crispness(judged(some)) == pytest.approx(1)
    grey = Image.new("RGB", (SIZE, SIZE), "grey")
    assert crispness([dataclasses.replace(one, image=grey) for one in judged(some)]) == 0


def test_an_untrained_model_misses_its_bars(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ComposerError, match="holds no oracle"):
        measure(folder, count=1)
    Oracle(OracleNet()).save(tmp_path / "oracle")
    (tmp_path / "oracle").rename(folder / "oracle")
    quick = dataclasses.replace(measuring.SAMPLING, steps=1, batch_size=2)
    monkeypatch.setattr(measuring, "SAMPLING", quick)
    lines = measure(folder, count=2, sheet=tmp_path / "sheet.webp")
    assert lines[0].startswith("one thing in a place: 0.0% of 2 (at least 98%): MISSED")
    assert [line.split(":")[0] for line in lines[:3]] == [NAMES[n] for n in (1, 2, 3)]
    with Image.open(tmp_path / "sheet.webp") as sheet:
        assert sheet.width > 6 * SIZE


def test_the_assembled_model_has_the_sizes_of_its_stages(folder: Path) -> None:
    model = load_model(str(folder))
    assert (model.size, model.multiple, model.latent_channels) == (SIZE, 8, 16)
    assert (model.token_limit, model.cross_attention_dim) == (MAX_LENGTH, 128)
