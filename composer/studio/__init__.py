"""The engine, the jobs, the library and the history: all state there is.

Importing this loads neither PyTorch nor a model: the page is up before they are.
"""

from __future__ import annotations

from composer.studio.comparing import Comparison, Way
from composer.studio.events import Event, Finished, PictureSaved, Progress, Queued, Started
from composer.studio.history import History, SavedPicture
from composer.studio.jobs import Waiting
from composer.studio.recall import Recalled
from composer.studio.requests import ComposeRequest
from composer.studio.studio import Status, Studio
from composer.studio.training_request import TrainingRequest
from composer.studio.training_state import Point, Preview, Training
from composer.studio.trainings import Trainings
from composer.studio.wording import Wording

__all__ = [
    "Comparison",
    "ComposeRequest",
    "Event",
    "Finished",
    "History",
    "PictureSaved",
    "Point",
    "Preview",
    "Progress",
    "Queued",
    "Recalled",
    "SavedPicture",
    "Started",
    "Status",
    "Studio",
    "Training",
    "TrainingRequest",
    "Trainings",
    "Waiting",
    "Way",
    "Wording",
]
