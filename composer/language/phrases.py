"""Words and phrases in prompts: what is there already, and what was lost."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

_FILLING = frozenset(("a", "an", "the", "and", "with", "in", "on", "at", "of", "style"))
_WORD = re.compile(r"[^\s,;]+")
_MARKS = ".!?:\"'"


def has_phrase(prompt: str, phrase: str) -> bool:
    """Whether the prompt holds these words, whatever their case and the spaces between them."""
    words = r"\s+".join(map(re.escape, phrase.split()))
    return bool(re.search(rf"(?<!\w){words}(?!\w)", prompt, re.IGNORECASE))


def with_phrases(prompt: str, phrases: Sequence[str]) -> str:
    """The prompt with those phrases at its end that it does not hold."""
    for phrase in phrases:
        if phrase.strip() and not has_phrase(prompt, phrase):
            kept = prompt.rstrip().rstrip(",")
            prompt = f"{kept}, {phrase}" if kept else phrase
    return prompt


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
