"""Answers are those of transformers' own generate, alone or in a batch, with adapters or none."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from language_training import language, mixlora, plain, training
from tiny_language import tiny_llama, tiny_tokenizer

from composer.errors import ComposerError
from composer.language.complete import Asking, _Draw, complete, with_adapter  # pyright: ignore[reportPrivateUsage]
from composer.language.load import load_language_model
from composer.language.records import Record
from composer.training.language import train_adapter

ASKED = [Record(prompt="abc>", answer=""), Record(prompt="a longer one>", answer="")]


def test_answers_are_generates_own_and_do_not_depend_on_their_neighbours() -> None:
    base = language()
    alone = [complete(base, [record], Asking(tokens=8))[0] for record in ASKED]
    assert complete(base, ASKED, Asking(tokens=8)) == alone
    ids = base.tokenizer("abc>", return_tensors="pt").input_ids
    made: Any = base.model.generate(  # type: ignore[operator]
        input_ids=ids, max_new_tokens=8, do_sample=False, pad_token_id=257
    )
    text = base.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
    assert alone[0] == text.strip()


def test_the_seed_decides_and_no_global_state_is_changed() -> None:
    base = language()
    state = torch.random.get_rng_state()
    first = complete(base, ASKED, Asking(tokens=12, temperature=1.5, seed=1))
    assert complete(base, ASKED, Asking(tokens=12, temperature=1.5, seed=1)) == first
    assert complete(base, ASKED, Asking(tokens=12, temperature=1.5, seed=2)) != first
    assert torch.equal(torch.random.get_rng_state(), state)


def test_others_who_draw_meanwhile_change_nothing() -> None:
    base = language()
    asking = Asking(tokens=12, temperature=1.5, seed=1)
    alone = complete(base, ASKED, asking)
    stop = threading.Event()

    def draw() -> None:
        while not stop.is_set():
            torch.rand(8)

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        assert complete(base, ASKED, asking) == alone
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_tokens_are_drawn_as_often_as_they_are_likely(top_p: float) -> None:
    logits = torch.tensor([0.2, 1.5, 0.9, -1.0])
    asking = Asking(temperature=0.7, top_p=top_p, seed=3)
    draw: Any = _Draw(asking, torch.device("cpu"))
    drawn = draw(torch.zeros(20_000, 1, dtype=torch.long), logits.expand(20_000, 4)).argmax(-1)
    likely = (logits / 0.7).softmax(-1)
    if top_p < 1:  # the fewest of the likeliest that make up the share: here two
        likely[[0, 3]] = 0
        likely /= likely.sum()
    found = drawn.bincount(minlength=4) / 20_000
    torch.testing.assert_close(found, likely, atol=0.015, rtol=0)


@pytest.mark.parametrize("adapter", [mixlora(), plain()], ids=["mixlora", "lora"])
def test_an_adapter_says_what_it_learnt_and_is_gone_after(tmp_path: Path, adapter: Any) -> None:
    folder = tmp_path / "model"
    tiny_llama(hidden_size=32, intermediate_size=48).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    base = load_language_model(folder)
    before = complete(base, ASKED, Asking(tokens=10))
    learnt = [Record(prompt="abc>", answer="cba"), Record(prompt="a longer one>", answer="short")]
    config = training(
        tmp_path, adapter=adapter, steps=120, batch_size=2, learning_rate=2e-2, schedule="cosine"
    )
    list(train_adapter(base, config, records=learnt))
    assert complete(base, ASKED, Asking(tokens=10)) == before
    again = load_language_model(folder)
    with with_adapter(again, config.output):
        assert complete(again, ASKED, Asking(tokens=10)) == ["cba", "short"]
    assert complete(again, ASKED, Asking(tokens=10)) == before
    assert not any(p.requires_grad for p in again.model.parameters())


def test_what_cannot_be_asked(tmp_path: Path) -> None:
    base = language()
    with pytest.raises(ComposerError, match="reads 64"):
        complete(base, [Record(prompt="x" * 64, answer="")])
    for settings in ({"tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}):
        with pytest.raises(ComposerError, match=next(iter(settings))):
            Asking(**settings)  # type: ignore[arg-type]
    with pytest.raises(ComposerError, match="adapter_config"), with_adapter(base, tmp_path):
        pass
