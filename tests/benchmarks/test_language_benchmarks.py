"""The benchmarks of the language side: their tasks are right, and a small run writes results."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.language import expand
from benchmarks.mixlora import study
from benchmarks.mixlora.study import equal_rank, mixlora, rows_of
from benchmarks.mixlora.tasks import TASKS, draw
from composer.language.load import load_language_model
from composer.mixlora import RouterSettings
from toybox.language_tokens import WINDOW, build_language_tokenizer
from toybox.stage_expand import settings, train_expander
from toybox.understand import understand


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with the toybox's tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("model")
    tokenizer: Any = build_language_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=WINDOW,
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_each_task_has_one_right_answer() -> None:
    for record in draw("reverse", 20, "x"):
        asked = str(record.prompt).removeprefix("reverse: ").removesuffix(" =>").split()
        assert record.answer.split() == asked[::-1]
    for record in draw("sort", 20, "x"):
        assert record.answer.split() == sorted(record.answer.split())
    for record in draw("add", 20, "x"):
        left, _, right, _ = str(record.prompt).removeprefix("add: ").split()
        assert int(record.answer) == int(left) + int(right)
    for record in draw("scene", 20, "x"):
        assert understand(record.answer) is not None
    for record in draw("tags", 20, "x"):
        said = str(record.prompt).removeprefix("tags: ").removesuffix(" =>")
        found, tags = understand(said), understand(record.answer)
        assert found is not None
        assert tags is not None
        assert found.scene == tags.scene


@pytest.mark.parametrize("task", TASKS)
def test_what_is_tested_is_never_trained_on(task: str) -> None:
    tests = frozenset(str(record.prompt) for record in draw(task, 50, "test"))
    train = {record.prompt for record in draw(task, 200, "train", unlike=tests)}
    assert len(train) == 200
    assert not train & tests
    assert draw(task, 5, "test") == draw(task, 5, "test")


def test_the_lora_has_as_many_trained_numbers(model: Path) -> None:
    rank, ours, theirs = equal_rank(load_language_model(model))
    assert rank > mixlora().experts.rank
    assert theirs == pytest.approx(ours, rel=0.1)


def test_means_are_over_seeds() -> None:
    found = [
        (method, several, task, 0.5 + 0.1 * seed)
        for method in ("LoRA", "MixLoRA")
        for several in (False, True)
        for task in TASKS
        for seed in range(2)
    ]
    rows = rows_of(found)
    assert len(rows) == 2 * (len(TASKS) + 1)
    assert all(row["alone"] == pytest.approx(0.55) for row in rows)
    assert all(row["seeds"] == 2 for row in rows)


@pytest.mark.slow
def test_a_small_study_writes_results(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "LEARNING_RATES", (1e-3,))
    monkeypatch.setattr(study, "TASKS", {name: TASKS[name] for name in ("sort", "add")})
    small = replace(mixlora(), router=RouterSettings(experts=2, top_k=1))
    monkeypatch.setattr(study, "mixlora", lambda: small)
    small_run = ["--seeds=1", "--steps=1", "--batch=1", "--examples=40", "--count=2"]
    study.main(["--model", str(model), *small_run, "--results", str(tmp_path)])
    told = json.loads((tmp_path / "mixlora_study.json").read_text())
    assert {row["task"] for row in told["rows"]} == {"sort", "add", "mean"}


def test_a_small_measurement_of_expanding_writes_results(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from toybox import stage_expand
    from toybox.words import WORDS

    monkeypatch.setattr(stage_expand, "SHARES", {"styles": 4})
    monkeypatch.setattr(
        stage_expand,
        "settings",
        lambda folder, **more: replace(settings(folder, **more), window=96),
    )
    language = load_language_model(model)
    list(train_expander(language, model, WORDS, steps=1))
    monkeypatch.setattr(expand, "KINDS", {"styles": "styles", "names": "names"})
    expand.main(["--model", str(model), "--count", "2", "--results", str(tmp_path)])
    rows = json.loads((tmp_path / "language_expand.json").read_text())["rows"]
    assert len(rows) == 6
    assert all(row["all words kept"] == 1.0 for row in rows if "best of" in row["made by"])
