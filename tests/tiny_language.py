"""A tiny Llama with a byte-level tokenizer, made offline from the real classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from byte_pairs import byte_characters

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CAUSAL: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 256,
    "pad_token_id": 257,
    "initializer_range": 0.2,
}
"""The size of a causal model of Llama's kind."""


def tiny_tokenizer(*, chat: bool = False, most: int = 64) -> Any:
    """One token for each byte, then end, pad, and the marks of ChatML."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {character: index for index, character in enumerate(byte_characters())}
    inner = Tokenizer(models.BPE(vocab=words, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<end>", model_max_length=most
    )
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    if chat:
        tokenizer.chat_template = CHATML
    return tokenizer


def tiny_llama(**settings: Any) -> Any:
    """LlamaForCausalLM of width 16 and two layers, with fixed random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**{**CAUSAL, **settings})).eval()


def make_tiny_language(folder: Path, **settings: Any) -> Path:
    """Save both as a folder that `from_pretrained` reads."""
    tiny_llama(**settings).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_mistral(**settings: Any) -> Any:
    """MistralForCausalLM of the same size, with a window that slides."""
    from transformers import MistralConfig, MistralForCausalLM

    values = {**CAUSAL, "sliding_window": 8, **settings}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return MistralForCausalLM(MistralConfig(**values)).eval()


def tiny_t5(**settings: Any) -> Any:
    """T5ForConditionalGeneration in Flan-T5's form, of width 16, two layers on each side."""
    from transformers import T5Config, T5ForConditionalGeneration

    values: dict[str, Any] = {
        "vocab_size": 260,
        "d_model": 16,
        "d_kv": 4,
        "d_ff": 24,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "eos_token_id": 256,
        "pad_token_id": 257,
        "decoder_start_token_id": 257,
        "initializer_factor": 0.5,
        "dropout_rate": 0.0,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return T5ForConditionalGeneration(T5Config(**{**values, **settings})).eval()
