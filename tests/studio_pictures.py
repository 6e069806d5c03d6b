"""Pictures of a studio, made at once and waited for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from composer.studio import ComposeRequest, Event, Finished, SavedPicture, Studio


def finished(events: Iterable[Event]) -> Finished:
    """The last of these events."""
    last = list(events)[-1]
    assert isinstance(last, Finished)
    return last


def paint(studio: Studio, asked: ComposeRequest) -> SavedPicture:
    """The one picture that is asked for."""
    (picture,) = finished(studio.compose(asked)).pictures
    return picture


def pixels(studio: Studio, asked: ComposeRequest) -> bytes:
    """Its pixels."""
    return paint(studio, asked).image().tobytes()


def ready(model: Path, loras: Path, outputs: Path) -> Studio:
    """A studio that has loaded its model."""
    studio = Studio(model, [loras], outputs)
    assert studio.wait(120).state == "ready", studio.status
    return studio
