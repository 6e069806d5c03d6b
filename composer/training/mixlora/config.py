"""What a training of a MixLoRA on pictures is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from composer.errors import ComposerError
from composer.mixture.lora_settings import LoraSettings
from composer.mixture.mixlora_settings import MixLoraSettings
from composer.mixture.routers import RouterSettings
from composer.training.picture_config import PictureTraining


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Pictures of one thing, and the words that call it.

    trigger: also the caption of every picture that has none.
    pictures: their folder; None where they are given in memory.
    title: what people call it; the trigger if empty.
    """

    trigger: str
    pictures: Path | None = None
    title: str = ""

    def __post_init__(self) -> None:
        if not self.trigger.strip():
            raise ComposerError(
                "An image set has no trigger: give each the words that are to call it, such as"
                ' "zibo fox".'
            )

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ImageSet:
        """What `PictureTraining.to_json` made of it."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ComposerError(f"Unknown settings of an image set: {', '.join(unknown)}.")
        read = dict(values)
        if read.get("pictures") is not None:
            read["pictures"] = Path(read["pictures"])
        return cls(**read)


def _small() -> MixLoraSettings:
    """Experts for small image sets: on a few dozen pictures, dropout and an alpha of twice the rank
    do not help."""
    plain = LoraSettings(rank=8, alpha=8.0, dropout=0.0)
    return MixLoraSettings(
        experts=plain,
        attention=plain,
        convolutions=None,
        router=RouterSettings(experts=4, top_k=2, balance=1e-2),
    )


@dataclass(frozen=True, kw_only=True)
class PictureMixLoraTraining(PictureTraining):
    """Every setting of one training; serialises to JSON and is kept in the file it makes.

    sets: at least one; each has the same share of the batches, however many pictures it has.
    adapter: the experts, the routers, and the plain LoRA beside them.
    """

    paths: ClassVar[tuple[str, ...]] = PictureTraining.paths

    sets: tuple[ImageSet, ...]
    adapter: MixLoraSettings = field(default_factory=_small)

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

    @classmethod
    def read_values(cls, values: dict[str, Any]) -> dict[str, Any]:
        values = super().read_values(values)
        if "sets" in values:
            values["sets"] = tuple(
                one if isinstance(one, ImageSet) else ImageSet.from_json(one)
                for one in values["sets"]
            )
        if isinstance(values.get("adapter"), dict):
            values["adapter"] = MixLoraSettings.from_json(values["adapter"])
        return values
