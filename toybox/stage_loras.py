"""The last stage: one LoRA for each element that only LoRAs know, by `composer.training`.

Two thirds of an element's pictures hold a second figure: a character trained alone swallows its
neighbour. Prior pictures are renderings of the base world, so that the rest stays as it was; a
style has none, for it is to change everything.
"""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch

from composer.diffusion import load_model
from composer.training.lora.settings import LoraTraining
from composer.training.lora.train import train_lora
from composer.training.pictures import TrainingPicture
from toybox.captions import caption, plain_caption
from toybox.render import render
from toybox.world import ELEMENTS, Element, random_element_scene, random_scene

PICTURES, PRIORS = 480, 120
STEPS = 400
LONGER: dict[str, float] = {
    "clothing": 1.75,
    "style": 1.75,
    "sunglasses": 3.5,
    "pencil sketch": 2.75,
}
"""How much longer the kinds and elements that are harder to learn are trained."""
RANKS: dict[str, int] = {"clothing": 8, "style": 10, "pencil sketch": 12}
"""Of those that need more than RANK; all files together may take 15 MB."""
RANK = 5

_DESCRIPTIONS = {
    "zibo": "Zibo, a violet fox with a pink bow.",
    "tavo": "Tavo, a grey robot with red ears.",
    "luna": "Luna, a white unicorn with a pink mane.",
    "top hat": "A magenta top hat with a golden band, for any animal.",
    "sunglasses": "Dark sunglasses with a white rim, for any animal.",
    "pixel art": "Everything in large square pixels.",
    "pencil sketch": "Everything drawn in faded pencils on paper.",
    "neon": "Everything in glowing lines on black.",
    "moon": "A place: grey craters, stars, the Earth in the sky.",
    "volcano": "A place: glowing lava between black peaks.",
    "trophy": "A golden cup with two handles.",
    "ufo": "A flying saucer with a green dome.",
}


def training_pictures(taught: Element, seed: int = 0) -> list[TrainingPicture]:
    """The pictures one LoRA learns from: the element's, then the prior ones."""
    rng = random.Random(f"lora {taught.name} {seed}")
    found: list[TrainingPicture] = []
    for _ in range(PICTURES):
        scene = random_element_scene(taught, rng, counts=(0.35, 0.65))
        found.append(TrainingPicture(image=render(scene, rng), caption=caption(scene, rng)))
    for _ in range(0 if taught.kind == "style" else PRIORS):
        scene = random_scene(rng)
        found.append(
            TrainingPicture(image=render(scene, rng), caption=caption(scene, rng), is_prior=True)
        )
    return found


def _of(values: dict[str, float], taught: Element, default: float) -> float:
    """What is said of the element, or else of its kind."""
    return values.get(taught.name, values.get(taught.kind, default))


def settings(taught: Element, folder: Path, *, steps: int = STEPS) -> LoraTraining:
    """How one of the shipped LoRAs is trained."""
    rng = random.Random(f"preview {taught.name}")
    shown = random_element_scene(taught, rng, counts=(1, 0))
    length = max(round(steps * _of(LONGER, taught, 1.0)), 2)
    return LoraTraining(
        output=folder / f"{taught.file}.safetensors",
        trigger=taught.trigger,
        role=taught.kind,
        title=taught.name.title(),
        description=_DESCRIPTIONS[taught.name],
        rank=round(_of({**RANKS}, taught, RANK)),
        steps=length,
        batch_size=10,
        optimizer="muon",
        # Muon takes steps of one length: this is how far a factor may go in all
        learning_rate=(6.0 if length > 1000 else 4.0) / max(length, 200),
        # without them nothing is changed at the finest level, which has no attention, and all that
        # is new stays a blur
        conv=True,
        precision="auto",
        # at zero terminal SNR min-SNR's weight of the first step is zero, and a style is decided
        # in that step: every timestep counts alike
        min_snr_gamma=None,
        # a style is there without words too, or guidance would exaggerate it
        caption_dropout=0.15 if taught.name == "pencil sketch" else 0.0,
        prior_share=0.25,
        preview_prompt=plain_caption(shown),
        save_preview=True,
        checkpoint_every=100,
        resume=True,
        naming="kohya",
    )


def train_all(
    model_folder: Path,
    folder: Path,
    *,
    scale: float = 1.0,
    names: Sequence[str] = (),
    processes: int = 1,
) -> None:
    """Train every LoRA that `folder` does not hold yet; `names` limits it to some.

    Several processes train one LoRA each, with one thread.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [
        taught
        for taught in ELEMENTS
        if (not names or taught.name in names) and not _finished(settings(taught, folder))
    ]
    # the longest first, so that no process is left alone with one at the end
    wanted.sort(key=lambda taught: -_of(LONGER, taught, 1.0))
    train = partial(_train, model_folder, folder, max(round(STEPS * scale), 2))
    if processes == 1:
        for taught in wanted:
            train(taught)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        processes, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        for _ in pool.map(train, wanted):
            pass


def _finished(config: LoraTraining) -> bool:
    return config.output.exists() and not config.checkpoint.exists()


def _train(model_folder: Path, folder: Path, steps: int, taught: Element) -> None:
    """One LoRA, with a line of progress now and then."""
    config = settings(taught, folder, steps=steps)
    model = load_model(str(model_folder))
    for progress in train_lora(model, config, pictures=training_pictures(taught)):
        if progress.step % 20 == 0:
            print(f"{taught.name}: {progress}", flush=True)
