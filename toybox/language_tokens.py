"""The tokenizer of the language model: each ordinary word of the world is one token.

The names of characters are spelt in pieces and letters, as any other word is.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

from toybox.byte_pairs import language_tokenizer
from toybox.captions import vocabulary

WINDOW = 128


def build_language_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer trained until each ordinary word of the world is one token."""
    return language_tokenizer(vocabulary(), WINDOW)
