"""CLIPs and DINOs that a user names: vectors are transformers' own, and what is none is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_clip import write_clip, write_dino
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer, Dinov2Model

from composer.diffusion.clip import CLIP, DINO, Encoder, check_encoder
from composer.errors import ComposerError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def clip(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("encoders") / "clip", tiny_sd)


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dino(tmp_path_factory.mktemp("encoders") / "dino")


def noise(width: int = 31, height: int = 20) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@torch.no_grad()
def test_a_clips_vectors_are_those_of_transformers(clip: Path) -> None:
    encoder = Encoder.load(CLIP, str(clip), CPU)
    model: Any = cast(Any, CLIPModel).from_pretrained(clip)
    pictures: Any = cast(Any, CLIPImageProcessor).from_pretrained(clip)
    words: Any = cast(Any, CLIPTokenizer).from_pretrained(clip)
    text = "a zibo fox in neon style, " * 9  # longer than it reads
    inputs = words([text], truncation=True, max_length=32, return_tensors="pt")
    found = model(**inputs, **pictures(images=noise(), return_tensors="pt"))
    picture, read = encoder.look(noise()), encoder.read(text)
    torch.testing.assert_close(picture, found.image_embeds[0])
    torch.testing.assert_close(read, found.text_embeds[0])
    assert picture.shape == read.shape == (encoder.width,)
    scale = float(model.logit_scale.exp())
    assert scale * float(picture @ read) == pytest.approx(float(found.logits_per_image), abs=1e-4)


@torch.no_grad()
def test_a_dinos_vector_is_its_class_token(dino: Path) -> None:
    """The picture is prepared by hand: its shorter side 10 px, the middle 8 of both."""
    encoder = Encoder.load(DINO, str(dino), CPU)
    told = json.loads((dino / "preprocessor_config.json").read_text())
    small = noise(40, 20).resize((20, 10), Image.Resampling.BICUBIC).crop((6, 1, 14, 9))
    pixels = torch.tensor(np.asarray(small)).double() / 255
    pixels = (pixels - torch.tensor(told["image_mean"])) / torch.tensor(told["image_std"])
    model: Any = cast(Any, Dinov2Model).from_pretrained(dino)
    token = model.double().eval()(pixels.permute(2, 0, 1)[None]).last_hidden_state[0, 0]
    found = encoder.look(noise(40, 20))
    torch.testing.assert_close(found, (token / token.norm()).float(), atol=1e-4, rtol=1e-4)
    assert found.shape == (encoder.width,)


def test_another_encoder_has_another_hash(dino: Path, tmp_path: Path) -> None:
    hashes = {Encoder.load(DINO, str(dino), CPU).hash}
    other = Path(shutil.copytree(dino, tmp_path / "weights"))
    tensors = load_file(other / "model.safetensors")
    tensors["layernorm.bias"][0] += 1
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    hashes.add(Encoder.load(DINO, str(other), CPU).hash)
    other = Path(shutil.copytree(dino, tmp_path / "pictures"))
    told = json.loads((other / "preprocessor_config.json").read_text())
    (other / "preprocessor_config.json").write_text(json.dumps({**told, "image_std": [1, 1, 1]}))
    hashes.add(Encoder.load(DINO, str(other), CPU).hash)
    assert len(hashes) == 3
    again = Path(shutil.copytree(dino, tmp_path / "again"))
    assert Encoder.load(DINO, str(again), CPU).hash in hashes


def test_what_is_no_dino_is_refused(clip: Path, dino: Path, tmp_path: Path) -> None:
    check_encoder(DINO, str(dino))
    pickled = Path(shutil.copytree(dino, tmp_path / "pickled"))
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    blind = Path(shutil.copytree(dino, tmp_path / "blind"))
    (blind / "preprocessor_config.json").unlink()
    for folder, reason in {
        clip: "a model of the kind 'clip'",
        pickled: "no weights in safetensors",
        blind: "image processor",
        tmp_path / "nowhere": "no such folder",
    }.items():
        with pytest.raises(ComposerError, match=r"The DINO .* cannot be used") as error:
            check_encoder(DINO, str(folder))
        assert reason in str(error.value) and DINO.example in str(error.value)
    halved = Path(shutil.copytree(dino, tmp_path / "halved"))
    tensors = load_file(halved / "model.safetensors")
    del tensors["layernorm.bias"]
    save_file(tensors, halved / "model.safetensors", {"format": "pt"})
    with pytest.raises(ComposerError, match=r"lacks the weights layernorm\.bias"):
        Encoder.load(DINO, str(halved), CPU)
