"""Pictures whose prompts name embeddings: from the folder, from LoRAs, and what is recorded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from studio_pictures import paint, pixels, ready
from tiny_loras import write_lora

from composer.diffusion.parameters import from_parameters
from composer.diffusion.png import read_png
from composer.diffusion.request import Request
from composer.errors import ComposerError
from composer.experts.hashes import file_hash_of
from composer.fusions import LoraRow
from composer.fusions.libraries import Libraries
from composer.studio import ComposeRequest, Studio
from composer.studio.recall import recall

SETTINGS = "Steps: 2, Sampler: Euler, CFG scale: 3, Seed: 5, Size: 16x16"


def write_embedding(path: Path, seed: int = 0, width: int = 32) -> Path:
    vectors = torch.randn(2, width, generator=torch.Generator().manual_seed(seed))
    path.parent.mkdir(exist_ok=True)
    save_file({"emb_params": vectors}, path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loras")
    for seed, name in enumerate(("zibo", "neon")):
        path = write_lora(folder / f"{name}.safetensors", seed=seed)
        own = {"bundle_emb.hat.string_to_param.*": torch.full((2, 32), seed + 0.5)}
        save_file(load_file(path) | own, path)
    write_embedding(folder / "embeddings" / "Worst-Quality.safetensors", 1)
    write_embedding(folder / "embeddings" / "wide.safetensors", 2, width=768)
    (folder / "embeddings" / "old.pt").write_bytes(b"PK\x03\x04")
    return folder


@pytest.fixture(scope="module")
def studio(
    tiny_sd: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Studio]:
    yield ready(tiny_sd, folder, tmp_path_factory.mktemp("outputs"))


def asked(prompt: str, *loras: str, negative: str = "") -> ComposeRequest:
    request = Request(prompt=prompt, negative_prompt=negative, steps=2, seed=5, cfg_scale=3)
    return ComposeRequest(request=request, rows=tuple(LoraRow(name=name) for name in loras))


def test_what_was_used_is_recorded_and_comes_back(studio: Studio, folder: Path) -> None:
    picture = paint(studio, asked("a fox", negative="(worst-quality:1.2), bad"))
    assert picture.image().tobytes() != pixels(studio, asked("a fox", negative="bad"))
    path = folder / "embeddings" / "Worst-Quality.safetensors"
    record = read_png(picture.path)
    assert record.embeddings == {"Worst-Quality": file_hash_of(path)}
    with Image.open(picture.path) as image:
        said = image.info["parameters"]
    assert f'TI hashes: "Worst-Quality: {file_hash_of(path)[:12]}"' in said
    assert from_parameters(said).embeddings == {"Worst-Quality": file_hash_of(path)[:12]}
    recalled = studio.recall(picture)
    assert recalled.notes == ()
    assert pixels(studio, recalled.asked) == picture.image().tobytes()


def test_a_lora_brings_its_own(studio: Studio) -> None:
    picture = paint(studio, asked("a fox, hat", "zibo"))
    assert read_png(picture.path).embeddings == {}  # the LoRA's own hash says which it was
    assert picture.image().tobytes() == pixels(studio, asked("a fox, <embedding:hat>", "zibo"))
    with pytest.raises(ComposerError, match=r"'hat', an embedding of each of .* 'zibo' and 'neon'"):
        paint(studio, asked("a fox, hat", "zibo", "neon"))
    paint(studio, asked("a fox", "zibo", "neon"))
    with pytest.raises(ComposerError, match=r"Embedding 'hat': there is no such embedding"):
        studio.compose(asked("a fox, <embedding:hat>"))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a fox, embedding:worst", r"there is no such embedding. Did you mean 'Worst-Quality'"),
        ("old fox", r"old\.pt: is a pickle by its name.*composer convert"),
        ("a wide fox", r"wide\.safetensors: the vectors .* have 768 numbers, and those .* have 32"),
    ],
)
def test_what_cannot_be_used_is_refused(studio: Studio, prompt: str, message: str) -> None:
    with pytest.raises(ComposerError, match=message):
        paint(studio, asked(prompt))


def test_pictures_say_which_embeddings_are_not_as_they_were(studio: Studio, folder: Path) -> None:
    libraries = Libraries([folder])
    path = folder / "embeddings" / "Worst-Quality.safetensors"

    def notes(prompt: str, hashes: str) -> str:
        record = from_parameters(f'{prompt}\n{SETTINGS}, TI hashes: "{hashes}"')
        return " ".join(recall(record, libraries).notes)

    found = f"Worst-Quality: {file_hash_of(path)[:12]}"
    assert notes("worst-quality", found) == ""
    missing = notes("fox", "gone: 0123456789ab")
    assert "Embedding 'gone': there is no such embedding" in missing
    assert "made with the file whose hash begins 0123456789ab" in missing
    assert "'Worst-Quality' has changed since" in notes("x", "Worst-Quality: 0123456789ab")
    renamed = notes("x", f"worse: {file_hash_of(path)[:10]}")
    assert "'worse' is called 'Worst-Quality' now" in renamed
    # ComfyUI writes no hashes
    assert "Embedding 'lost'" in notes("embedding:lost, <embed:worst-quality>, hat", found)
    record = studio.history.read(paint(studio, asked("a fox")).path).record
    assert recall(replace(record, embeddings={}), libraries).notes == ()
