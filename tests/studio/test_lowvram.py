"""With little memory pictures stay the same, and one network is on the device at a time.

The networks are told to come and go though no other device than the CPU is there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from studio_pictures import pixels
from tiny_gates import write_gates
from tiny_loras import write_lora

from composer.diffusion import load
from composer.diffusion.load import load_model
from composer.diffusion.lowvram import offload
from composer.diffusion.request import Request
from composer.diffusion.sample import Picture, generate
from composer.errors import ComposerError
from composer.fusions import Gates, LoraRow, Regions
from composer.studio import ComposeRequest, Studio
from composer.studio.lending import copy_for_training
from composer.training.gates.settings import GateTraining
from composer.training.gates.train import train_gates

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
TOYBOX = ROOT / "assets" / "toybox"
TILED, TILED_LATENTS = 6.0, 0.1
REQUEST = Request(prompt="a fox", seed=7, steps=3, cfg_scale=3.0, width=16, height=16)
ROWS = (LoraRow(name="zibo", weight=0.8), LoraRow(name="neon", weight=0.6))
ASKED = (
    ComposeRequest(request=REQUEST, rows=ROWS),
    ComposeRequest(request=REQUEST, rows=ROWS, recipe=Regions()),
    ComposeRequest(request=REQUEST, recipe=Gates(file="pair")),
    ComposeRequest(request=REQUEST),
)


@pytest.mark.parametrize("kind", ["tiny_sd", "tiny_sdxl"])
def test_pictures_of_every_fusion_are_the_same(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(kind)
    asked = ASKED
    files = {n: tmp_path / "loras" / f"{n}.safetensors" for n in ("zibo", "neon")}
    for seed, path in enumerate(files.values()):
        write_lora(path, seed=seed)
    if kind == "tiny_sd":
        write_gates(tmp_path / "loras" / "gates" / "pair.safetensors", folder, files)
    else:
        asked = (ComposeRequest(request=REQUEST),)
    monkeypatch.setattr(load, "with_low_memory", offload)

    def drawn(lowvram: bool) -> list[bytes]:
        place = tmp_path / f"outputs{lowvram}"
        studio = Studio(folder, [tmp_path / "loras"], place, lowvram=lowvram)
        assert studio.wait(120).state == "ready"
        engine: Any = studio._engine  # pyright: ignore[reportPrivateUsage]
        assert engine.model.is_offloaded == lowvram
        return [pixels(studio, each) for each in (*asked, *asked)]

    assert drawn(True) == drawn(False)


def test_networks_take_turns(tiny_sdxl: Path) -> None:
    model = offload(load_model(tiny_sdxl), CPU)
    turns: list[tuple[str, str]] = []
    for name, network in {**model.models, "vae": model.vae}.items():
        own = network.to

        def to(place: Any, name: str = name, own: Any = own) -> Any:
            turns.append((name, "off" if isinstance(place, str) else "on"))
            return own(place)

        network.to = to
    for _ in generate(model, REQUEST):
        pass
    changes = [turn for turn, after in zip(turns, [*turns[1:], None], strict=True) if turn != after]
    there = ""
    for name, what in changes:  # one leaves before the next one comes
        assert (what == "off") == (name == there)
        there = name if what == "on" else ""
    come = [name for name, what in changes if what == "on"]
    first = come.index("unet")
    assert set(come[:first]) == {"text_encoder", "text_encoder_2"}
    assert come[first:] == ["unet", "vae"]


def test_up_to_the_size_of_the_training_a_picture_is_the_same(tiny_sd: Path) -> None:
    plain, tiled = load_model(tiny_sd), load_model(tiny_sd, lowvram=True)
    assert not tiled.is_offloaded  # there is nowhere else to be
    first, second = (
        [each.image.tobytes() for each in generate(m, REQUEST) if isinstance(each, Picture)]
        for m in (plain, tiled)
    )
    assert first == second


def test_larger_ones_are_put_together_of_tiles() -> None:
    """Each tile has its own means, and edges are blended: by the shipped model's VAE, at twice the
    size, pictures differ by less than TILED of 255 on average."""
    plain, tiled = load_model(TOYBOX), load_model(TOYBOX, lowvram=True)
    side = 2 * plain.size
    image = Image.open(next((ROOT / "loras").glob("*.png"))).convert("RGB").resize((side, side))
    pixels = torch.tensor(np.asarray(image) / 255, dtype=torch.float32).permute(2, 0, 1)[None]
    latents = plain.to_latents(pixels)
    whole, pieces = plain.to_images(latents), tiled.to_images(latents)
    difference = 255 * (whole - pieces).abs().mean()
    assert 0 < difference < TILED
    assert (tiled.to_latents(pixels) - latents).abs().mean() < TILED_LATENTS * latents.std()


def test_nothing_is_trained_on_networks_that_come_and_go(tiny_sd: Path, tmp_path: Path) -> None:
    model = offload(load_model(tiny_sd), CPU)
    with pytest.raises(ComposerError, match="was loaded with --lowvram, and nothing is trained"):
        copy_for_training(model)
    config = GateTraining(output=tmp_path / "gates.safetensors", prompts=("a",))
    with pytest.raises(ComposerError, match="was loaded with --lowvram"):
        list(train_gates(model, [None], config))  # type: ignore[list-item]
    copy_for_training(load_model(tiny_sd, lowvram=True))
