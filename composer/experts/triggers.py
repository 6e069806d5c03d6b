"""Trigger words in prompts: found, added and taken out by one rule.

A trigger is one phrase or several with commas between. A phrase is in a prompt where its words
stand there one after another, in any case and with any space between them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence


def has_words(prompt: str, trigger: str) -> bool:
    """Whether the prompt holds every phrase of a trigger; of an empty one it does."""
    return all(_found(phrase).search(prompt) for phrase in _phrases(trigger))


def with_words(prompt: str, triggers: Sequence[str]) -> str:
    """The prompt with those phrases of triggers at its end that it does not hold."""
    for trigger in triggers:
        lost = [phrase for phrase in _phrases(trigger) if not _found(phrase).search(prompt)]
        if lost:
            kept = prompt.rstrip().rstrip(",")
            prompt = ", ".join((kept, *lost) if kept else lost)
    return prompt


def without_words(prompt: str, trigger: str) -> str | None:
    """The prompt without the words of a trigger, or None if it has none of them.

    The whole trigger is looked for first, and then each of its phrases.
    """
    for phrases in ([trigger.strip()], _phrases(trigger)):
        left, found = prompt, 0
        for phrase in filter(None, phrases):
            left, times = _found(phrase).subn(" ", left)
            found += times
        if found:
            left = " ".join(left.split()).replace(" ,", ",")
            return re.sub(r",(?: ?,)+", ",", left).strip(" ,")
    return None


def taken_back(prompt: str, trigger: str) -> str:
    """The prompt without the phrases of a trigger that stand between commas, as `with_words` puts
    them there; otherwise as it is.

    In the midst of a sentence the words are the user's own, and taking them out would spoil it.
    """
    gone = {_plain(phrase) for phrase in _phrases(trigger)}
    parts = prompt.split(",")
    kept = [part for part in parts if _plain(part) not in gone]
    return prompt if len(kept) == len(parts) else ",".join(kept).strip()


def _phrases(trigger: str) -> list[str]:
    return [phrase for phrase in map(str.strip, trigger.split(",")) if phrase]


def _plain(phrase: str) -> str:
    return " ".join(phrase.split()).casefold()


def _found(phrase: str) -> re.Pattern[str]:
    words = r"\s+".join(map(re.escape, phrase.split()))
    return re.compile(rf"(?<!\w){words}(?!\w)", re.IGNORECASE)
