"""The tokenizer of prompts: each word of the world's grammar is one token."""

from __future__ import annotations

from transformers import CLIPTokenizer

from toybox.byte_pairs import clip_tokenizer
from toybox.captions import vocabulary

MAX_LENGTH = 48


def build_tokenizer() -> CLIPTokenizer:
    """A CLIPTokenizer trained until each word of the grammar is one token."""
    return clip_tokenizer(vocabulary(), MAX_LENGTH)
