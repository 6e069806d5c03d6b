"""The events of a running job, in the order they happen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

    from composer.studio.history import SavedPicture


@dataclass(frozen=True, kw_only=True)
class Queued:
    """The job waits for `ahead` others; 0: its turn comes when the model is loaded."""

    ahead: int


@dataclass(frozen=True, kw_only=True)
class Started:
    """The job has the model now."""

    loras: tuple[str, ...]  # those that are active
    notes: tuple[str, ...] = ()  # what the user should know, e.g. parts of a file that fit nowhere


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One pass of the model is done: `step` of `steps` in the whole job; or, `scoring`, one picture
    is looked at."""

    step: int
    steps: int
    pictures: range  # those being made now, from 0
    count: int
    seconds_left: float | None
    preview: Image | None = None
    scoring: bool = False


@dataclass(frozen=True, kw_only=True)
class PictureSaved:
    """One picture is finished and on the disk."""

    saved: SavedPicture


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The job is over; nothing follows."""

    pictures: tuple[SavedPicture, ...] = ()
    cancelled: bool = False
    seconds: float = field(default=0.0, compare=False)


Event = Queued | Started | Progress | PictureSaved | Finished
