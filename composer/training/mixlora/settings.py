"""What a training of a MixLoRA on pictures is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from composer.errors import ComposerError
from composer.mixlora.router import RouterSettings
from composer.mixlora.router_losses import Over
from composer.mixlora.settings import LoraSettings, MixLoraSettings
from composer.settings import Settings, setting
from composer.training.picture_settings import PictureTraining


@dataclass(frozen=True, kw_only=True)
class ImageSet(Settings):
    """Pictures of one thing, and the words that call it.

    trigger: also the caption of every picture that has none.
    pictures: their folder; None where they are given in memory.
    title: what people call it; the trigger if empty.
    """

    noun: ClassVar[str] = "settings of an image set"

    trigger: str
    pictures: Path | None = None
    title: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.trigger.strip():
            raise ComposerError(
                "An image set has no trigger: give each the words that are to call it, such as"
                ' "zibo fox".'
            )


_PLAIN = LoraSettings(rank=8, alpha=8.0, dropout=0.0)
SMALL = MixLoraSettings(
    experts=_PLAIN,
    attention=_PLAIN,
    convolutions=None,
    router=RouterSettings(experts=4, top_k=2, balance=1e-2),
)
"""For small image sets: on a few dozen pictures, dropout and an alpha of twice the rank do not
help."""


@dataclass(frozen=True, kw_only=True)
class PictureMixLoraTraining(PictureTraining):
    """Every setting of one training; serialises to JSON and is kept in the file it makes.

    sets: at least one; each has the same share of the batches, however many pictures it has.
    adapter: the experts, the routers, and the plain LoRA beside them.
    balance_over: over what the balance loss balances experts: "all" feed-forwards together, as
        the paper's authors do, which lets each keep to the same few; or each "layer".
    """

    sets: tuple[ImageSet, ...]
    adapter: MixLoraSettings = SMALL
    balance_over: Over = "all"
    preview_prompt: str = setting(
        "", help="What the previews show; two of the triggers if not given."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sets:
            raise ComposerError("There is no image set: give one or more.")
        triggers = [one.trigger.strip().casefold() for one in self.sets]
        if twice := next((t for t in triggers if triggers.count(t) > 1), None):
            raise ComposerError(
                f"Two image sets have the trigger {twice!r}: give each its own, or put their"
                " pictures into one folder."
            )

    @property
    def shown_prompt(self) -> str:
        return self.preview_prompt or " and ".join(one.trigger for one in self.sets[:2])
