"""A few words and the prompt they stand for: what the toybox's language model learns."""

from __future__ import annotations

from toybox import captions, world
from toybox.jottings import Words
from toybox.understand import understand

WORDS = Words(world, captions, understand)
