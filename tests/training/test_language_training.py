"""An adapter learns, is written, and leaves its base as it was."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from language_training import (
    STEPS,
    language,
    losses,
    mixlora,
    plain,
    records,
    run,
    training,
    weights,
)

from composer.errors import ComposerError
from composer.language.batches import answer_loss, collate
from composer.language.samples import encode
from composer.training.language import LanguageTraining, train, train_adapter

METHODS = pytest.mark.parametrize("adapter", [mixlora(), plain()], ids=["mixlora", "lora"])


@METHODS
def test_it_learns_is_written_and_leaves_the_base_as_it_was(tmp_path: Path, adapter: Any) -> None:
    base = language()
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    config = training(
        tmp_path,
        adapter=adapter,
        steps=40,
        batch_size=6,
        eval_share=0.25,
        eval_every=20,
        learning_rate=1e-2,
    )
    reports = list(train_adapter(base, config, records=records(24)))
    assert [r.stage for r in reports] == ["prepare", *["train"] * 40, "saved"]
    made = losses(reports)
    assert sum(made[-5:]) < 0.7 * sum(made[:5])  # type: ignore[arg-type,operator]
    assert [r.step for r in reports if r.eval_loss is not None] == [20, 40]
    assert reports[-1].path == tmp_path / "reverse"
    assert reports[5].seconds_left is not None
    after = base.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not base.model.training
    assert any(float(w.abs().max()) > 0 for n, w in weights(config.output).items() if "lora_B" in n)
    assert not config.checkpoint.exists()


def test_reports_tell_of_the_experts(tmp_path: Path) -> None:
    reports = [r for r in run(training(tmp_path)) if r.stage == "train"]
    for report in reports:
        assert len(report.load) == 4
        assert sum(report.load) == pytest.approx(1.0)
        # with its coefficient of 0.01; 2 where balanced, for two choices
        assert report.router_loss is not None
        assert 0.015 < report.router_loss < 0.08


@pytest.mark.parametrize(
    "adapter", [plain(), pytest.param(mixlora(), marks=pytest.mark.slow)], ids=["lora", "mixlora"]
)
def test_compiled_steps_learn_the_same(
    tmp_path: Path, adapter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of torch.compile but the code it would write for this machine, which takes minutes."""
    monkeypatch.setattr(train, "COMPILER", "eager")
    torch.compiler.reset()
    base = language()
    plainly = losses(run(training(tmp_path / "plain", adapter=adapter)))
    config = training(tmp_path / "compiled", adapter=adapter, compile=True)
    traced = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    compiled = losses(list(train_adapter(base, config, records=records())))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > traced
    assert compiled == pytest.approx(plainly, rel=1e-4)
    assert base.model._compiled_call_impl is None
    with pytest.raises(ComposerError, match="choose one"):
        training(tmp_path, compile=True, gradient_checkpointing=True)
    torch.compiler.reset()


@METHODS
def test_the_first_loss_is_the_bases_own(tmp_path: Path, adapter: Any) -> None:
    """A fresh adapter changes nothing, and only answers count."""
    base = language()
    config = training(tmp_path, adapter=adapter, steps=1, batch_size=12)
    samples = encode(records(), base.tokenizer, 64).samples
    batch = collate([[sample] for sample in samples])
    with torch.no_grad():
        expected = answer_loss(base.model(**batch.inputs("cpu")).logits, batch.labels)
    reports = list(train_adapter(base, config, records=records()))
    assert losses(reports)[0] == pytest.approx(float(expected) / batch.learnt, rel=1e-4)


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    """Every answer's token counts alike, though the batches have different numbers of them."""
    router = mixlora().router
    off = type(router)(experts=4, top_k=2, balance=0.0)
    adapter = mixlora().__class__(
        experts=mixlora().experts, attention=mixlora().attention, router=off
    )
    one = run(training(tmp_path, "one", adapter=adapter, batch_size=6))
    two = run(training(tmp_path, "two", adapter=adapter, batch_size=2, accumulation=3))
    assert losses(two, "two") == pytest.approx(losses(one, "one"), rel=1e-3)


def test_packed_rows_learn_the_same(tmp_path: Path) -> None:
    padded = run(training(tmp_path, "padded", batch_size=12, steps=3))
    # all twelve fit in three rows
    packed = run(training(tmp_path, "packed", batch_size=3, steps=3, packing=True))
    assert losses(packed, "packed") == pytest.approx(losses(padded, "padded"), rel=1e-3)


def test_epochs_count_rows(tmp_path: Path) -> None:
    reports = run(training(tmp_path, steps=None, epochs=1.5, batch_size=4))
    assert reports[0].total == 5  # 18 rows in batches of 4


def test_cancelled_at_once_writes_nothing(tmp_path: Path) -> None:
    reports = run(training(tmp_path), cancelled=lambda: True)
    assert [r.stage for r in reports] == ["prepare"]
    assert not (tmp_path / "reverse").exists()


def test_dropout_follows_the_seed_and_no_global_state(tmp_path: Path) -> None:
    torch.manual_seed(1)
    random.seed(1)
    state = torch.random.get_rng_state()
    first = run(training(tmp_path, "a", adapter=mixlora(dropout=0.5)))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    second = run(training(tmp_path, "b", adapter=mixlora(dropout=0.5)))
    assert losses(first, "a") == losses(second, "b")
    assert len(losses(first, "a")) == STEPS


def test_bfloat16_and_gradient_checkpointing_learn_too(tmp_path: Path) -> None:
    exact = run(training(tmp_path, "exact"))
    checkpointed = run(training(tmp_path, "saved", gradient_checkpointing=True))
    rough = run(training(tmp_path, "rough", precision="bfloat16"))
    assert losses(checkpointed, "saved") == pytest.approx(losses(exact, "exact"), rel=1e-4)
    assert losses(rough, "rough") == pytest.approx(losses(exact, "exact"), rel=0.05)


@pytest.mark.parametrize("adapter", [mixlora(dropout=0.1), plain()])
def test_a_config_comes_back_from_json(tmp_path: Path, adapter: Any) -> None:
    config = training(tmp_path, adapter=adapter, data=tmp_path / "a.jsonl", eval_share=0.1)
    import json

    assert LanguageTraining.from_json(json.loads(json.dumps(config.to_json()))) == config
