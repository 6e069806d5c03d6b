"""The language model's stage: it learns, is written small, and its adapter is judged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from composer.language.complete import with_adapter
from composer.language.load import LanguageModel, load_language_model
from toybox import stage_expand, stage_language
from toybox.language_tokens import build_language_tokenizer
from toybox.loop import Stage, load_average
from toybox.networks import seed_torch
from toybox.stage_expand import judge, judge_tries, settings, train_expander
from toybox.stage_language import (
    batch_of,
    new_language_model,
    train_language,
    unseen_loss,
    write_language,
)
from toybox.words import WORDS


def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of width 32, and small batches."""
    real = stage_language.new_language_model

    def small(tokenizer: Any) -> Any:
        config = real(tokenizer).config
        config.update(
            {
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "head_dim": 16,
            }
        )
        return type(real(tokenizer))(config)

    monkeypatch.setattr(stage_language, "new_language_model", small)
    monkeypatch.setattr(stage_language, "BATCH", 16)


def test_only_the_prompt_is_learnt() -> None:
    tokenizer: Any = build_language_tokenizer()
    example = WORDS.examples("base", 1)[0]
    batch = batch_of([example], tokenizer)
    learnt = batch.labels[0][batch.labels[0] >= 0]
    assert tokenizer.decode(learnt).strip() == f"{example.prompt}<end>"
    assert tokenizer.decode(batch.ids[0]).strip().startswith(f"{example.jotting.words} =>")


def test_the_shipped_shape_is_small() -> None:
    model: Any = new_language_model(build_language_tokenizer())
    size = sum(parameter.numel() for parameter in model.parameters())
    assert size * 2 < 3.5e6  # bytes, in float16
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_stage_learns_and_writes_what_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny(monkeypatch)
    tokenizer = build_language_tokenizer()
    seed_torch(0)  # as the stage does
    untrained = unseen_loss(stage_language.new_language_model(tokenizer), tokenizer, WORDS, 16)
    # so short that on a busy machine only a few steps are made
    stage = Stage(name="language", minutes=0.1, folder=tmp_path / "work", average=0.1)
    trained = train_language(stage, tokenizer, WORDS)
    assert unseen_loss(trained, tokenizer, WORDS, 16) < untrained
    again: Any = load_average(
        tmp_path / "work/language.safetensors", stage_language.new_language_model(tokenizer)
    )
    assert all(
        torch.equal(a, b) for a, b in zip(again.parameters(), trained.parameters(), strict=True)
    )
    write_language(tmp_path / "model", trained, tokenizer)
    loaded = load_language_model(tmp_path / "model")
    assert unseen_loss(loaded.model, loaded.tokenizer, WORDS, 16) == pytest.approx(
        unseen_loss(again, tokenizer, WORDS, 16), rel=0.01
    )


def test_the_adapter_is_trained_beside_the_model_and_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny(monkeypatch)
    tokenizer = build_language_tokenizer()
    model: Any = stage_language.new_language_model(tokenizer).eval()
    model.requires_grad_(False)
    language = LanguageModel(model=model, tokenizer=tokenizer, name="tiny")
    monkeypatch.setattr(stage_expand, "SHARES", dict.fromkeys(stage_expand.SHARES, 4))
    monkeypatch.setattr(
        stage_expand,
        "settings",
        lambda folder, **more: replace(settings(folder, **more), batch_size=4),
    )
    reports = list(train_expander(language, tmp_path, WORDS, steps=2))
    assert reports[-1].path == tmp_path / "adapter"
    assert reports[-1].eval_loss is not None
    with with_adapter(language, tmp_path / "adapter"):
        kept = judge_tries(language, WORDS.examples("styles", 3, unseen=True))
    assert len(kept) == 3
    assert not any(one.understood for one in kept), "it has learnt nothing yet"


def test_a_prompt_is_judged_by_its_words_and_by_its_scene() -> None:
    example = WORDS.examples("styles", 1)[0]
    right = judge(example, example.prompt)
    assert (right.words, right.understood) == (True, True)
    wrong = judge(example, "a lamp on the roof")
    assert (wrong.words, wrong.understood) == (False, False)
