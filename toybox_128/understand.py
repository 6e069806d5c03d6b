"""Read a prompt of the world at 128 pixels as the scene it asks for."""

from __future__ import annotations

from toybox.reading import Reader
from toybox_128 import captions, world

understand = Reader(world, captions).understand
