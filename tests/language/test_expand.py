"""No word that was given is lost, whatever the model says."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings, strategies
from language_training import language

from composer.language.expand import Expander, missing, request


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
    found = expander("beach fox", "a fox on the beach", understood=lambda p: p.startswith("a "))
    assert found.expand("fox beach") == "a fox on the beach"


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
