"""A few words and the prompt they stand for: what the language model at 128 pixels learns."""

from __future__ import annotations

from toybox import captions, world
from toybox.jottings import Words
from toybox.understand import understand

WORDS = Words(world, captions, understand)
