"""The tokenizer: CLIP's byte-level BPE over the world's grammar.

Every word of the grammar is one token; any other word falls back to pieces and letters, so any
prompt tokenises.
"""

from __future__ import annotations

import json
from typing import Any, cast

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from toybox_128.captions import vocabulary

MAX_LENGTH = 48
START, END = "<|startoftext|>", "<|endoftext|>"
_CLIP_WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def build_tokenizer() -> CLIPTokenizer:
    """A CLIPTokenizer trained until each word of the grammar is one token."""
    words = sorted({word.strip(",").lower() for word in vocabulary()})
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = [*letters, *(letter + "</w>" for letter in letters)]
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=END))
    trained.normalizer = normalizers.Lowercase()
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trained.train_from_iterator(
        words,
        trainers.BpeTrainer(
            vocab_size=10_000,
            min_frequency=1,
            # named in order: else last letters are numbered as a hash map lists the words, and
            # ties between merges ("do" with "g" or "w") fall differently at each build
            special_tokens=letters,
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    merges = [(a, b) for a, b in json.loads(trained.to_str())["model"]["merges"]]
    tokens = dict.fromkeys(letters) | dict.fromkeys(a + b for a, b in merges)
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate([*tokens, START, END])},
        merges=cast(Any, merges),  # pairs, though its annotation says lines
        unk_token=END,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        model_max_length=MAX_LENGTH,
    )
