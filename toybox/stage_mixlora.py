"""The three characters that only LoRAs know, as one MixLoRA, by `composer.training.mixlora`.

Each is its own image set, of the very pictures its LoRA learned from: no picture shows two of them.
"""

from __future__ import annotations

from pathlib import Path

from composer.diffusion import load_model
from composer.mixlora import LoraSettings, MixLoraSettings, RouterSettings
from composer.training.mixlora import ImageSet, PictureMixLoraTraining, train_picture_mixlora
from toybox.loop import multiplies_bfloat16
from toybox.stage_loras import training_pictures
from toybox.world import ELEMENTS

STEPS = 600
CHARACTERS = tuple(element for element in ELEMENTS if element.kind == "character")


def settings(folder: Path, *, steps: int = STEPS) -> PictureMixLoraTraining:
    """How it is trained; with fewer numbers than the three LoRAs together."""
    plain = LoraSettings(rank=8, alpha=8.0, dropout=0.0)
    return PictureMixLoraTraining(
        output=folder / "mixlora" / "characters.safetensors",
        title="Characters",
        description="Zibo the fox, Tavo the robot and Luna the unicorn, trained together.",
        sets=tuple(ImageSet(trigger=one.trigger, title=one.name.title()) for one in CHARACTERS),
        adapter=MixLoraSettings(
            experts=LoraSettings(rank=6, alpha=6.0, dropout=0.0),
            attention=plain,
            # the finest level has no attention, and so no feed-forward: all that is new would stay
            # a blur without them
            convolutions=plain,
            router=RouterSettings(experts=4, top_k=2, balance=1e-2),
        ),
        steps=steps,
        batch_size=12,
        optimizer="muon",
        learning_rate=6.0 / max(steps, 200),
        precision="bfloat16" if multiplies_bfloat16() else "float32",
        # as for the LoRAs: at zero terminal SNR min-SNR's weight of the first step is zero
        min_snr_gamma=None,
        prior_share=0.25,
        checkpoint_every=50,
        resume=True,
    )


def train_characters(model_folder: Path, folder: Path, *, scale: float = 1.0) -> None:
    """Train it unless `folder` holds it already."""
    config = settings(folder, steps=max(round(STEPS * scale), 2))
    if config.output.exists() and not config.checkpoint.exists():
        return
    model = load_model(str(model_folder))
    pictures = {one.trigger: training_pictures(one) for one in CHARACTERS}
    for progress in train_picture_mixlora(model, config, pictures=pictures):
        if progress.step % 20 == 0:
            print(f"mixlora: {progress}", flush=True)
