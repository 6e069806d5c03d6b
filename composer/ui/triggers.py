"""A LoRA's trigger words in the prompt: there once when it is chosen, gone when it is removed."""

from __future__ import annotations

import re


def has_trigger(prompt: str, trigger: str) -> bool:
    """Whether the prompt holds these words, whatever their case and the spaces between them."""
    words = r"\s+".join(map(re.escape, trigger.split()))
    return bool(re.search(rf"(?<!\w){words}(?!\w)", prompt, re.IGNORECASE))


def with_trigger(prompt: str, trigger: str) -> str:
    """The prompt with the trigger at its end, unless it is there already."""
    if not trigger.strip() or has_trigger(prompt, trigger):
        return prompt
    kept = prompt.rstrip().rstrip(",")
    return f"{kept}, {trigger}" if kept else trigger


def without_trigger(prompt: str, trigger: str) -> str:
    """The prompt without the trigger where it stands between commas; otherwise as it is.

    In the midst of a sentence the words are the user's own, and taking them out would spoil it.
    """
    kept = [part for part in prompt.split(",") if part.strip().lower() != trigger.strip().lower()]
    return ",".join(kept).strip() if trigger.strip() else prompt
