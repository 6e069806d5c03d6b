"""Words in prompts: which of those given were lost."""

from __future__ import annotations

import re
from collections.abc import Iterator

_FILLING = frozenset(("a", "an", "the", "and", "with", "in", "on", "at", "of", "style"))
_WORD = re.compile(r"[^\s,;]+")
_MARKS = ".!?:\"'"


def missing(words: str, prompt: str) -> list[str]:
    """The words given that do not stand in the prompt, as they were written.

    Case does not count, nor do filling words such as "a" and "with", nor the mark at a
    sentence's end.
    """
    there = {bare for _, bare in _words(prompt)}
    return [word for word, bare in _words(words) if bare not in there and bare not in _FILLING]


def _words(text: str) -> Iterator[tuple[str, str]]:
    for word in _WORD.findall(text):
        yield word, word.lower().strip(_MARKS) or word
