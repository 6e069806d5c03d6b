"""The tokenizer of the toybox's language model: byte-level BPE over the world's words.

Each ordinary word is one token with the space before it. Any other word, the names of characters
among them, is spelt in pieces and letters, so whatever is typed comes back as it was.
"""

from __future__ import annotations

import json
from typing import Any, cast

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from toybox.captions import vocabulary

WINDOW = 96
PAD, END = "<pad>", "<end>"


def build_language_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer trained until each ordinary word of the world is one token."""
    words = sorted({word.strip(",").lower() for word in vocabulary()})
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trained = _byte_level(models.BPE())
    trained.train_from_iterator(
        words,
        # letters are named in order, or ties between merges fall differently at each build
        trainers.BpeTrainer(
            vocab_size=10_000, min_frequency=1, special_tokens=letters, show_progress=False
        ),
    )
    merges = [(a, b) for a, b in json.loads(trained.to_str())["model"]["merges"]]
    names = [*dict.fromkeys([*letters, *(a + b for a, b in merges)]), PAD, END]
    vocabulary_of = {name: index for index, name in enumerate(names)}
    inner = _byte_level(models.BPE(vocab=vocabulary_of, merges=cast(Any, merges)))
    return cast(Any, PreTrainedTokenizerFast)(
        tokenizer_object=inner, pad_token=PAD, eos_token=END, model_max_length=WINDOW
    )


def _byte_level(model: models.Model) -> Tokenizer:
    tokenizer: Any = Tokenizer(model)
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
