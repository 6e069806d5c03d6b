"""Trigger words in prompts."""

from __future__ import annotations

import re


def without_words(prompt: str, trigger: str) -> str | None:
    """The prompt without the words of a trigger, or None if it has none of them.

    The whole trigger is looked for first, and then its parts between commas, in any case.
    """
    for parts in ([trigger], trigger.split(",")):
        left, found = prompt, 0
        for part in filter(None, (part.strip() for part in parts)):
            words = r"\s+".join(re.escape(word) for word in part.split())
            left, times = re.subn(rf"(?<!\w){words}(?!\w)", " ", left, flags=re.IGNORECASE)
            found += times
        if found:
            left = re.sub(r"(\s*,)+\s*(?=,)|^\s*,", "", left)  # commas with nothing between
            return " ".join(left.split()).strip(" ,")
    return None
