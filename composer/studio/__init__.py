"""The engine, the jobs, the library and the history: all state there is.

Importing this loads neither PyTorch nor a model: the page is up before they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from composer.studio.events import Event, Finished, PictureSaved, Progress, Queued, Started
from composer.studio.gating import GateOffer
from composer.studio.history import History, SavedPicture
from composer.studio.jobs import Waiting
from composer.studio.recall import Recalled
from composer.studio.requests import ComposeRequest, LoraRow
from composer.studio.studio import Status, Studio

if TYPE_CHECKING:
    from composer.experts.card import Card

__all__ = [
    "Card",
    "ComposeRequest",
    "Event",
    "Finished",
    "GateOffer",
    "History",
    "LoraRow",
    "PictureSaved",
    "Progress",
    "Queued",
    "Recalled",
    "SavedPicture",
    "Started",
    "Status",
    "Studio",
    "Waiting",
]
