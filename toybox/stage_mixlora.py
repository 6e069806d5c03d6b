"""Characters that only LoRAs know as one MixLoRA, by `composer.training.mixlora`.

Each is its own image set, of the very pictures its LoRA learned from: no picture shows two of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from composer.diffusion import load_model
from composer.mixlora import LoraSettings, MixLoraSettings, RouterSettings
from composer.training.mixlora import ImageSet, PictureMixLoraTraining, train_picture_mixlora
from composer.training.pictures import TrainingPicture

STEPS = 600


class Taught(Protocol):
    """An element of a world."""

    @property
    def name(self) -> str: ...

    @property
    def trigger(self) -> str: ...


Character = TypeVar("Character", bound=Taught)


def settings(
    folder: Path,
    characters: Sequence[Taught],
    *,
    steps: int = STEPS,
    rank: int = 6,
    router: RouterSettings | None = None,
    per_layer: bool = False,
) -> PictureMixLoraTraining:
    """How it is trained; with fewer numbers than the characters' LoRAs together.

    router: how many experts each feed-forward has, and the coefficient of their balance; four, of
        which each token gets two, if not given.
    per_layer: balance the experts of each feed-forward. Over all together, as MixLoRA's authors
        do, five of seven feed-forwards ended with two experts that got 95 % of all choices.
    """
    plain = LoraSettings(rank=8, alpha=8.0, dropout=0.0)
    names = [one.name.title() for one in characters]
    return PictureMixLoraTraining(
        output=folder / "mixlora" / "characters.safetensors",
        title="Characters",
        description=f"{', '.join(names[:-1])} and {names[-1]}, trained together.",
        sets=tuple(ImageSet(trigger=one.trigger, title=one.name.title()) for one in characters),
        adapter=MixLoraSettings(
            experts=LoraSettings(rank=rank, alpha=float(rank), dropout=0.0),
            attention=plain,
            # the finest level has no attention, and so no feed-forward: all that is new would stay
            # a blur without them
            convolutions=plain,
            router=router or RouterSettings(experts=4, top_k=2, balance=1e-2),
        ),
        balance_over="layer" if per_layer else "all",
        steps=steps,
        batch_size=12,
        optimizer="muon",
        learning_rate=6.0 / max(steps, 200),
        precision="auto",
        # as for the LoRAs: at zero terminal SNR min-SNR's weight of the first step is zero
        min_snr_gamma=None,
        prior_share=0.25,
        checkpoint_every=50,
        resume=True,
    )


def train_characters(
    model_folder: Path,
    config: PictureMixLoraTraining,
    characters: Sequence[Character],
    pictures: Callable[[Character], list[TrainingPicture]],
) -> None:
    """Train it unless its file is there already; `pictures` draws those of one character."""
    if config.output.exists() and not config.checkpoint.exists():
        return
    model = load_model(str(model_folder))
    drawn = {one.trigger: pictures(one) for one in characters}
    for progress in train_picture_mixlora(model, config, pictures=drawn):
        if progress.step % 20 == 0:
            print(f"mixlora: {progress}", flush=True)
