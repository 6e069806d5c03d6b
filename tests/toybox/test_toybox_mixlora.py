"""The MixLoRA of the characters: how it is trained, and the file that ships."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.fusions.mixlora_file import read_mixlora
from composer.mixlora import attach_mixlora
from toybox.stage_mixlora import settings, train_characters
from toybox.world import ELEMENTS

CHARACTERS = [one for one in ELEMENTS if one.kind == "character"]
ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "loras" / "mixlora" / "characters.safetensors"


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(ROOT / "assets" / "toybox")


def test_its_sets_are_the_characters_and_it_is_small(model: Model) -> None:
    config = settings(Path("loras"), CHARACTERS)
    assert [one.trigger for one in config.sets] == [one.trigger for one in CHARACTERS]
    with attach_mixlora(model.unet, {"characters": config.adapter}, seed=0) as mixlora:
        size = sum(parameter.numel() for _, parameter in mixlora.named_parameters("characters"))
    assert 2 * size < 2e6  # bytes, in float16


def test_a_finished_one_is_not_trained_again(tmp_path: Path) -> None:
    config = settings(tmp_path, CHARACTERS)
    output = config.output
    output.parent.mkdir()
    output.write_bytes(b"here")
    train_characters(tmp_path / "no model", config, CHARACTERS, lambda _: [])
    assert output.read_bytes() == b"here"


@pytest.mark.skipif(not SHIPPED.exists(), reason="it is made by `python -m toybox build`")
def test_the_shipped_one_fits_the_shipped_model(model: Model) -> None:
    file = read_mixlora(SHIPPED)
    file.check_model(model.name, model.hash)
    assert [one.name for one in file.sets] == [one.name.title() for one in CHARACTERS]
    loras = [SHIPPED.parents[1] / f"{one.file}.safetensors" for one in CHARACTERS]
    assert SHIPPED.stat().st_size < sum(path.stat().st_size for path in loras)
    side = model.unet.config.sample_size
    noisy = torch.zeros(1, model.latent_channels, side, side)
    text = torch.zeros(1, 4, model.cross_attention_dim)
    with torch.no_grad():
        bare = model.unet(noisy, 500, text).sample
        with file.attach(model.unet, str(SHIPPED)):
            assert not torch.equal(model.unet(noisy, 500, text).sample, bare)
        assert torch.equal(model.unet(noisy, 500, text).sample, bare)
