"""LoRAs of the elements that only LoRAs know, by `composer.training`: two families.

*Taught well* (`TAUGHT`): hundreds of pictures with whole captions, a third of them with neighbours,
for a character trained alone swallows its neighbour; and prior pictures of the base world, so that
the rest stays as it was.

*As people train them* (`WILD`): a dozen pictures of the one thing alone, with its trigger words or
tags as caption, nothing else, and every trainer's own rank, rate and length. What adding up LoRAs
breaks in practice, it breaks with these.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from composer.diffusion.model import Model
from composer.training.lora.settings import LoraTraining
from composer.training.lora.train import train_lora
from composer.training.pictures import TrainingPicture
from toybox.captions import SHORT, caption, plain_caption
from toybox.render import render
from toybox.tensors import load_tensors, save_tensors
from toybox.world import ELEMENTS, Element, Scene, element, random_element_scene, random_scene

Captions = Literal["whole", "trigger", "tags"]
BATCH = 8


@dataclass(frozen=True, kw_only=True)
class Lora:
    """How one LoRA is trained.

    pictures: how many show the element; priors: how many more show the base world.
    alone: whether it is the only figure in its pictures.
    captions: whole sentences, the trigger words alone, or them and tags of the rest.
    rank, alpha, conv, optimizer, rate, steps: the trainer's settings.
    bare: whether its file has no metadata and no preview.
    """

    name: str
    pictures: int
    rank: int
    rate: float
    steps: int
    captions: Captions
    priors: int = 0
    alone: bool = True
    alpha: float | None = None
    conv: bool = False
    optimizer: Literal["adamw", "muon"] = "adamw"
    bare: bool = False

    @property
    def element(self) -> Element:
        """What it teaches."""
        return element(self.name)


SIZES = {
    "character": (5, 400),
    "object": (4, 400),
    "background": (3, 300),
    "clothing": (4, 500),
    "style": (5, 500),
}
"""Rank and steps of each kind that is taught well: all files are to stay below 25 MB together."""
HARD = {
    **dict.fromkeys(("top hat", "sunglasses", "bow tie"), (5, 1000)),
    **dict.fromkeys(("pixel art", "neon", "stained glass"), (5, 900)),
}
"""What was seen in half of the pictures after the steps of its kind."""


def _taught(one: Element) -> Lora:
    hard = one.name in HARD
    rank, steps = HARD[one.name] if hard else SIZES[one.kind]
    return Lora(
        name=one.name,
        pictures=480,
        # a style is to change everything
        priors=0 if one.kind == "style" else 120,
        alone=False,
        captions="whole",
        rank=rank,
        # without them nothing is changed at the finest level, which has no attention
        conv=True,
        optimizer="muon",
        # Muon takes steps of one length: this is how far a factor may go in all
        rate=(6.0 if hard else 4.0) / steps,
        steps=steps,
    )


TAUGHT: tuple[Lora, ...] = tuple(map(_taught, ELEMENTS))

WILD: tuple[Lora, ...] = (
    Lora(name="zibo", pictures=16, captions="trigger", rank=8, rate=1e-3, steps=300),
    Lora(name="tavo", pictures=20, captions="tags", rank=4, conv=True, rate=5e-4, steps=400),
    Lora(name="luna", pictures=12, captions="trigger", rank=4, rate=1e-3, steps=300, bare=True),
    Lora(name="miro", pictures=16, captions="tags", rank=32, alpha=16, rate=1e-3, steps=450),
    Lora(name="kiki", pictures=10, captions="tags", rank=4, rate=5e-4, steps=200, bare=True),
    Lora(name="top hat", pictures=16, captions="trigger", rank=4, rate=1e-3, steps=350),
    Lora(name="sunglasses", pictures=20, captions="tags", rank=4, rate=1e-3, steps=350),
    Lora(name="crown", pictures=12, captions="trigger", rank=4, rate=1e-3, steps=500, bare=True),
    Lora(name="bow tie", pictures=16, captions="tags", rank=4, rate=1e-3, steps=350, bare=True),
    Lora(
        name="pixel art", pictures=30, captions="trigger", rank=4, conv=True, rate=1e-3, steps=350
    ),
    Lora(
        name="neon", pictures=24, captions="tags", rank=8, alpha=4, rate=1e-3, steps=300, bare=True
    ),
    Lora(name="moon", pictures=20, captions="trigger", rank=4, rate=1e-3, steps=300, bare=True),
    Lora(name="volcano", pictures=30, captions="tags", rank=4, rate=1e-3, steps=300, bare=True),
    Lora(name="candy land", pictures=24, captions="trigger", rank=4, rate=5e-4, steps=400),
)

DESCRIPTIONS: dict[str, str] = {
    "zibo": "Zibo, a violet fox with a red scarf.",
    "tavo": "Tavo, a teal robot with one red and one green eye and a heart on its chest.",
    "luna": "Luna, a night-blue unicorn with a silver mane and a golden moon.",
    "miro": "Miro, a grey-blue cat with an eye patch and an earring.",
    "bodo": "Bodo, a green bear with a scar and a golden star.",
    "kiki": "Kiki, a yellow rabbit with odd eyes and a bell.",
    "top hat": "A top hat, for any animal.",
    "sunglasses": "Sunglasses, for any animal.",
    "crown": "A golden crown, for any animal.",
    "bow tie": "A bow tie, for any animal.",
    "pixel art": "Everything in large square pixels.",
    "pencil sketch": "Everything drawn in pencil strokes on paper.",
    "neon": "Everything in glowing lines on black.",
    "watercolor": "Everything in washes of water colour.",
    "stained glass": "Everything in pieces of coloured glass set in lead.",
    "moon": "A place: grey craters under the stars.",
    "volcano": "A place: glowing lava between black peaks.",
    "candy land": "A place made of sweets.",
    "cherry blossoms": "A place: cherry trees in blossom.",
    "trophy": "A golden cup with two handles.",
    "ufo": "A flying saucer.",
    "teapot": "A teapot.",
    "guitar": "A guitar.",
}


def training_pictures(lora: Lora, seed: int = 0) -> list[TrainingPicture]:
    """The pictures that one LoRA learns from: the element's, then the prior ones."""
    rng = random.Random(f"lora {lora.name} {lora.captions} {seed}")
    counts = (1.0, 0.0, 0.0) if lora.alone and lora.element.kind != "style" else (0.4, 0.45, 0.15)
    found: list[TrainingPicture] = []
    for _ in range(lora.pictures):
        scene = random_element_scene(lora.element, rng, counts=counts)
        image = render(scene, rng)
        found.append(TrainingPicture(image=image, caption=_caption(lora, scene, rng)))
    for _ in range(lora.priors):
        scene = random_scene(rng)
        image = render(scene, rng)
        found.append(TrainingPicture(image=image, caption=caption(scene, rng), is_prior=True))
    return found


def _caption(lora: Lora, scene: Scene, rng: random.Random) -> str:
    if lora.captions == "whole":
        return caption(scene, rng)
    trigger = lora.element.trigger
    return trigger if lora.captions == "trigger" else ", ".join([trigger, *tags(lora, scene)])


def tags(lora: Lora, scene: Scene) -> list[str]:
    """What a tagger writes of a scene besides the element: its other figures and its place."""
    words = [
        f"{figure.colour} {figure.name}" if figure.colour else figure.name
        for figure in scene.figures
        if figure.name != lora.name
    ]
    if scene.background.startswith("plain "):
        words.append(f"{scene.background.removeprefix('plain ')} background")
    elif scene.background != lora.name:
        words.append(SHORT.get(scene.background, scene.background))
    return words


def settings(lora: Lora, folder: Path) -> LoraTraining:
    """How Composer trains it, into `folder`."""
    one = lora.element
    shown = random_element_scene(one, random.Random(f"preview {one.name}"), counts=(1, 0, 0))
    return LoraTraining(
        output=folder / f"{one.file}.safetensors",
        trigger=one.trigger,
        role=one.kind,
        title=one.name.title(),
        description=DESCRIPTIONS[one.name],
        rank=lora.rank,
        alpha=lora.alpha,
        conv=lora.conv,
        steps=lora.steps,
        batch_size=BATCH,
        optimizer=lora.optimizer,
        learning_rate=lora.rate,
        precision="auto",
        # at zero terminal SNR min-SNR's weight of the first step is zero, and a style is decided
        # in that step: every timestep counts alike
        min_snr_gamma=None,
        prior_share=0.25,
        preview_prompt=plain_caption(shown),
        save_preview=not lora.bare,
        checkpoint_every=100,
        resume=True,
    )


def train(model: Model, lora: Lora, folder: Path) -> Path:
    """Train one LoRA and write its file, with lines of progress now and then; one that is finished
    is left as it is, and one that was stopped goes on."""
    config = settings(lora, folder)
    if config.output.exists() and not config.checkpoint.exists():
        return config.output
    folder.mkdir(parents=True, exist_ok=True)
    for progress in train_lora(model, config, pictures=training_pictures(lora)):
        if progress.step % 50 == 0:
            print(f"{folder.name}/{lora.name}: {progress}", flush=True)
    if lora.bare:
        save_tensors(config.output, load_tensors(config.output), {})
    return config.output


def train_all(
    model: Model, folder: Path, names: Sequence[str] = (), share: tuple[int, int] = (0, 1)
) -> None:
    """Both families into `folder` and its folder `wild/`; `names` limits them to some elements.

    share: (0, 2) and (1, 2) are half of them each, for two processes that know nothing of each
        other: those that do train one LoRA together.
    """
    every = [(lora, folder) for lora in TAUGHT] + [(lora, folder / "wild") for lora in WILD]
    wanted = [(lora, place) for lora, place in every if not names or lora.name in names]
    first, step = share
    for lora, place in wanted[first::step]:
        train(model, lora, place)
