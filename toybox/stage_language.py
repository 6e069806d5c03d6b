"""The stage of words: a small language model that makes a full prompt of a few words.

Like the pictures' model it is trained from nothing on the base world alone: what only LoRAs know
it can copy, as any name, but knows no place for. An adapter teaches it that, by MixLoRA: see
`stage_expand`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from composer.language.batches import Batch, answer_loss, collate, pack
from composer.language.expand import request
from composer.language.records import Record
from composer.language.samples import encode
from composer.precision import autocast
from toybox.jottings import Example, Words
from toybox.loop import Stage, run_stage
from toybox.networks import moved, seed_torch
from toybox.optimizer import MuonAdamW

BATCH = 96


def new_language_model(tokenizer: Any) -> LlamaForCausalLM:
    """Four layers of width 160: 1.3 million weights, the embeddings tied."""
    config: Any = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=160,
        intermediate_size=432,
        num_hidden_layers=4,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def record(example: Example) -> Record:
    """An example as a request and its answer, worded as an `Expander` words it."""
    return Record(prompt=request(example.jotting.words), answer=example.prompt)


def batch_of(examples: Sequence[Example], tokenizer: Any) -> Batch:
    """Examples as rows of tokens, several in a row: padded, half of a batch would be padding."""
    window = int(tokenizer.model_max_length)
    samples = encode([record(example) for example in examples], tokenizer, window).samples
    rows = [[samples[index] for index in row] for row in pack(samples, window)]
    return collate(rows, pad=int(tokenizer.pad_token_id))


def train_language(stage: Stage, tokenizer: Any, words: Words) -> LlamaForCausalLM:
    """Train from nothing, or go on from the stage's checkpoint."""
    seed_torch(stage.seed)
    model: Any = moved(new_language_model(tokenizer), stage.device).train()
    optimizer = MuonAdamW(model, muon_lr=0.02, adam_lr=2e-3)
    rng = stage.rng()

    def loss(part: float) -> tuple[Tensor, dict[str, float], int]:
        batch = batch_of([words.base_example(rng) for _ in range(BATCH)], tokenizer)
        with autocast("auto", stage.device):
            logits = model(**batch.inputs(stage.device)).logits
        value = answer_loss(logits, batch.labels.to(stage.device)) / batch.learnt
        return value, {"loss": float(value.detach())}, BATCH

    def sample(averaged: nn.Module, step: int) -> None:
        found = unseen_loss(averaged, tokenizer, words)
        print(f"step {step}: loss on unseen pairs {found:.4f}")

    return cast(Any, run_stage(stage, model, optimizer, loss, sample=sample)).eval()


@torch.no_grad()
def unseen_loss(model: nn.Module, tokenizer: Any, words: Words, count: int = 192) -> float:
    """The mean cross-entropy of a token, of prompts whose pairs training never sees."""
    rng = random.Random("unseen")
    batch = batch_of([words.base_example(rng, unseen=True) for _ in range(count)], tokenizer)
    device = next(model.parameters()).device
    logits = model(**batch.inputs(device)).logits
    return float(answer_loss(logits, batch.labels.to(device))) / batch.learnt


def write_language(folder: Path, model: LlamaForCausalLM, tokenizer: Any) -> None:
    """Write the model as a transformers folder, in float16 safetensors with its tokenizer."""
    cast(Any, model).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
