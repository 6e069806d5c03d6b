"""Tokenizers trained until each word of a grammar is one token: byte-level BPE.

Any other word falls back to pieces and letters, so any text tokenises.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, cast

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

START, END_OF_TEXT = "<|startoftext|>", "<|endoftext|>"
PAD, END = "<pad>", "<end>"
_CLIP_WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def clip_tokenizer(vocabulary: Iterable[str], limit: int) -> CLIPTokenizer:
    """A CLIPTokenizer that cuts prompts at `limit` tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = [*letters, *(letter + "</w>" for letter in letters)]
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=END_OF_TEXT))
    trained.normalizer = normalizers.Lowercase()
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    merges = _merges(trained, vocabulary, letters, end_of_word_suffix="</w>")
    tokens = dict.fromkeys(letters) | dict.fromkeys(a + b for a, b in merges)
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate([*tokens, START, END_OF_TEXT])},
        merges=cast(Any, merges),  # pairs, though its annotation says lines
        unk_token=END_OF_TEXT,
        bos_token=START,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=limit,
    )


def language_tokenizer(vocabulary: Iterable[str], window: int) -> PreTrainedTokenizerFast:
    """A language model's tokenizer: a word is one token with the space before it, and whatever is
    typed comes back as it was, in lower case."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _merges(_byte_level(models.BPE()), vocabulary, letters)
    names = [*dict.fromkeys([*letters, *(a + b for a, b in merges)]), PAD, END]
    numbers = {name: index for index, name in enumerate(names)}
    inner = _byte_level(models.BPE(vocab=numbers, merges=cast(Any, merges)))
    return cast(Any, PreTrainedTokenizerFast)(
        tokenizer_object=inner, pad_token=PAD, eos_token=END, model_max_length=window
    )


def _merges(
    tokenizer: Tokenizer, vocabulary: Iterable[str], letters: list[str], **more: str
) -> list[tuple[str, str]]:
    """The pairs that make each word of the vocabulary one token, in their order.

    Letters are named in order: else last letters are numbered as a hash map lists the words, and
    ties between merges ("do" with "g" or "w") fall differently at each build.
    """
    tokenizer.train_from_iterator(
        sorted({word.strip(",").lower() for word in vocabulary}),
        cast(Any, trainers.BpeTrainer)(
            vocab_size=10_000, min_frequency=1, special_tokens=letters, show_progress=False, **more
        ),
    )
    return [(a, b) for a, b in json.loads(tokenizer.to_str())["model"]["merges"]]


def _byte_level(model: models.Model) -> Tokenizer:
    tokenizer: Any = Tokenizer(model)
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
