"""The two families of LoRAs of the world at 128 pixels."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from composer.diffusion import load_model
from toybox import stage_loras
from toybox.stage_loras import DESCRIPTIONS, TAUGHT, WILD, Lora, train, training_pictures
from toybox.tensors import load_metadata, load_tensors
from toybox.world import CHARACTERS, ELEMENTS


def test_every_element_is_taught_well_and_described() -> None:
    assert [lora.name for lora in TAUGHT] == [one.name for one in ELEMENTS] == list(DESCRIPTIONS)


def test_people_train_theirs_on_few_pictures_with_few_words() -> None:
    kinds = [lora.element.kind for lora in WILD]
    assert kinds.count("character") >= 4
    assert min(map(kinds.count, ("clothing", "style", "background"))) >= 2
    assert len({lora.name for lora in WILD}) == len(WILD)
    for lora in WILD:
        few = lora.element.kind in ("character", "clothing", "object")
        assert lora.pictures in (range(8, 21) if few else range(20, 41))
        assert lora.priors == 0
        assert lora.alone
        assert 4 <= lora.rank <= 32
        pictures = training_pictures(lora)
        assert len(pictures) == lora.pictures
        for picture in pictures:
            words = picture.caption.split(", ")
            assert words[0] == lora.element.trigger
            assert (len(words) == 1) == (lora.captions == "trigger")
            others = [name for name in CHARACTERS if name != lora.name]
            assert not any(name in picture.caption for name in others)
    assert 0.4 <= sum(lora.bare for lora in WILD) / len(WILD) <= 0.6


def test_pictures_follow_from_the_lora_alone() -> None:
    lora = dataclasses.replace(TAUGHT[0], pictures=3, priors=2)
    first, again = training_pictures(lora), training_pictures(lora)
    assert [p.caption for p in first] == [p.caption for p in again]
    assert all(a.image.tobytes() == b.image.tobytes() for a, b in zip(first, again, strict=True))
    assert [p.is_prior for p in first] == [False] * 3 + [True] * 2


def test_two_processes_train_each_of_them_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[str, Path]] = []
    monkeypatch.setattr(
        stage_loras, "train", lambda _, one, place: trained.append((one.name, place))
    )
    every = [(one.name, tmp_path) for one in TAUGHT]
    every += [(one.name, tmp_path / "wild") for one in WILD]
    for first in (0, 1):
        stage_loras.train_all(Any, tmp_path, share=(first, 2))  # type: ignore[arg-type]
        assert abs(len(trained) - len(every) * (first + 1) / 2) <= 1
    assert sorted(trained) == sorted(every)
    stage_loras.train_all(Any, tmp_path, ["zibo"])  # type: ignore[arg-type]
    assert trained[len(every) :] == [("zibo", tmp_path), ("zibo", tmp_path / "wild")]


@pytest.mark.parametrize("bare", [False, True])
def test_one_is_trained_with_metadata_and_preview_or_without(
    bare: bool, tiny_sd: Path, tmp_path: Path
) -> None:
    lora = Lora(name="zibo", pictures=3, captions="tags", rank=2, rate=1e-3, steps=2, bare=bare)
    path = train(load_model(str(tiny_sd)), lora, tmp_path)
    assert any(name.endswith("lora_up.weight") for name in load_tensors(path))
    assert bool(load_metadata(path)) == (not bare)
    assert path.with_suffix(".png").exists() == (not bare)
    written = path.stat().st_mtime_ns
    assert train(load_model(str(tiny_sd)), lora, tmp_path).stat().st_mtime_ns == written
