"""A LoRA's trigger words in the prompt: there once when it is chosen, gone when it is removed."""

from __future__ import annotations

from composer.language.phrases import with_phrases


def with_trigger(prompt: str, trigger: str) -> str:
    """The prompt with the trigger at its end, unless it is there already."""
    return with_phrases(prompt, [trigger])


def without_trigger(prompt: str, trigger: str) -> str:
    """The prompt without the trigger where it stands between commas; otherwise as it is.

    In the midst of a sentence the words are the user's own, and taking them out would spoil it.
    """
    kept = [part for part in prompt.split(",") if part.strip().lower() != trigger.strip().lower()]
    return ",".join(kept).strip() if trigger.strip() else prompt
