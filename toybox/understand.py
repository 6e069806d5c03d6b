"""Read a prompt of the world at 128 pixels as the scene it asks for."""

from __future__ import annotations

from toybox import captions, world
from toybox.reading import Reader

understand = Reader(world, captions).understand
