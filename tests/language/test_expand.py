"""No word that was given is lost, whatever the model says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies
from language_training import language, training
from tiny_language import CHATML, make_tiny_language

from composer.errors import ComposerError
from composer.experts.triggers import has_words, with_words
from composer.language.complete import complete
from composer.language.expand import ORDER, Expander, request
from composer.language.load import load_language_model
from composer.language.phrases import missing
from composer.language.records import Record
from composer.training.language import train_adapter


class Scripted(Expander):
    """An expander whose tries are written down."""

    def tries(self, words: str, seed: int = 0, count: int = 8) -> list[str]:
        return list(SCRIPT)


SCRIPT: list[str] = []


def expander(*tries: str, **settings: Any) -> Expander:
    SCRIPT[:] = tries
    return Scripted(language=language(), **settings)


def test_the_try_that_keeps_all_words_is_taken() -> None:
    found = expander("a cat on the beach", "a fox on the beach", "a fox in the snow")
    assert found.expand("fox, Beach") == "a fox on the beach"


def test_of_those_the_one_that_is_understood() -> None:
    found = expander("beach fox", "a fox on the beach", understood=lambda _, p: p.startswith("a "))
    assert found.expand("fox beach") == "a fox on the beach"


def test_words_that_are_a_prompt_already_are_not_spoilt() -> None:
    found = expander("a zabo fox and a tivo cat", understood=lambda _, p: " and a " in p)
    assert found.expand("a zibo fox and a tavo cat") == "a zibo fox and a tavo cat"
    better = expander("a nice zibo fox and a cat", understood=lambda _, p: " and a " in p)
    assert better.expand("a zibo fox and a cat") == "a nice zibo fox and a cat"


def test_what_none_kept_is_put_after_it() -> None:
    found = expander("a cat on the beach", "a fox on the beach")
    assert found.expand("Florp, fox, beach") == "a fox on the beach, Florp"


def test_words_of_which_nothing_is_understood_stay_as_they_are() -> None:
    assert expander("a cat on the beach").expand("  dragon  castle ") == "dragon castle"
    assert expander("a cat on the beach").expand("") == "a cat on the beach"


@settings(deadline=None)
@given(strategies.lists(strategies.text("abcdeé🦊(:)1.<>", min_size=1, max_size=6), max_size=6))
def test_no_word_is_ever_lost(words: list[str]) -> None:
    given_words = " ".join(words)
    made = expander("a cat on the beach abc", "e1 de").expand(given_words)
    assert missing(given_words, made) == []


def test_filling_words_may_be_left_out() -> None:
    assert missing("a fox and the cat in neon style", "fox, cat, neon") == []
    assert missing("red fox", "a fox with a red hat") == []
    assert missing("foxes", "a fox") == ["foxes"]


def test_a_model_that_knows_nothing_still_gives_the_words_back() -> None:
    found = Expander(language=language())
    assert found.expand("fox beach", seed=3) == found.expand("fox beach", seed=3)
    assert missing("fox beach", found.expand("fox beach", seed=3)) == []


@pytest.mark.parametrize(("words", "asked"), [("fox,  beach ", "fox, beach =>"), ("", " =>")])
def test_a_request_is_worded_as_in_training(words: str, asked: str) -> None:
    assert request(words) == asked


def test_trigger_words_stay_together() -> None:
    found = expander("a fox in a zibo scarf", "a zibo fox in the snow, fox")
    assert found.expand("snow", keep=["zibo fox"]) == "a zibo fox in the snow, fox"
    apart = expander("a fox in zibo snow")
    assert apart.expand("snow", keep=["zibo fox"]) == "a fox in zibo snow, zibo fox"
    assert apart.expand("Zibo  fox, snow", keep=["zibo fox"]) == "a fox in zibo snow, zibo fox"


@settings(deadline=None)
@given(strategies.text("ab ,", max_size=12), strategies.lists(strategies.text("ab ", max_size=5)))
def test_no_phrase_is_ever_lost(words: str, keep: list[str]) -> None:
    made = expander("a b on a", "bb ab").expand(words, keep=keep)
    assert all(has_words(made, phrase) for phrase in keep if phrase.strip())
    assert missing(words, made) == []


def test_a_mark_at_the_end_of_a_sentence_is_no_word() -> None:
    assert missing("A fox at sunset.", "a fox at sunset") == []
    assert missing('the "fox"!', "fox") == []
    assert missing("...", "a fox") == ["..."]


@pytest.mark.parametrize(
    ("prompt", "phrases", "whole"),
    [
        ("", ["a b", ""], "a b"),
        ("x, ", ["a b", "A  B"], "x, a b"),
        ("a bc", ["a b"], "a bc, a b"),
    ],
)
def test_phrases_are_added_once(prompt: str, phrases: list[str], whole: str) -> None:
    assert with_words(prompt, phrases) == whole


@pytest.mark.parametrize("way", ["trained", "chat", "plain"])
def test_each_kind_of_model_is_asked_in_its_own_way(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = language()
    if way == "chat":
        base.tokenizer.chat_template = CHATML
    asked: list[Record] = []

    def answer(_: Any, records: list[Record], *more: Any) -> list[str]:
        asked.extend(records)
        return ['\n"a  fox\tin the snow"\nThat is all.'] * len(records)

    monkeypatch.setattr("composer.language.expand.complete", answer)
    made = Expander(language=base, trained=way == "trained").tries("fox", count=2)
    if way == "chat":
        assert (asked[0].instruction, asked[0].input) == (ORDER, "fox")
    else:
        assert asked[0].prompt == ("fox =>" if way == "trained" else "fox")
    # one that goes on says the words again
    whole = "fox" if way == "plain" else "a fox in the snow"
    assert made == [whole] * 2


def test_a_folder_with_an_adapter_is_trained_and_makes_what_it_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("composer.language.expand.TEMPERATURE", 0.0)  # so small a model is unsure
    folder = make_tiny_language(tmp_path / "model", hidden_size=32, intermediate_size=48)
    assert not Expander.load(folder).trained
    said = "a red fox"
    learnt = [Record(prompt=request("fox"), answer=said)]
    config = training(
        folder, "adapter", steps=90, batch_size=1, learning_rate=2e-2, schedule="cosine"
    )
    list(train_adapter(load_language_model(folder), config, records=learnt))
    found = Expander.load(folder)
    assert found.trained
    assert found.expand("fox") == said
    elsewhere = Expander.load(folder, adapter=folder / "adapter")
    assert elsewhere.expand("fox") == said
    with pytest.raises(ComposerError, match=r"adapter_config\.json"):
        Expander.load(folder, adapter=tmp_path / "nothing")
    assert complete(load_language_model(folder), [Record(prompt="fox =>", answer="")]) != [said]
