"""Trigger words are found, added and taken out by one rule, with commas in them or without."""

from __future__ import annotations

import pytest

from composer.evaluation.tuning import prompts_without
from composer.experts.triggers import has_words, taken_back, with_words, without_words

TWO = "zibo fox, pink bow"


@pytest.mark.parametrize(
    ("prompt", "trigger", "expected"),
    [
        ("", "zibo fox", "zibo fox"),
        ("a cat", "zibo fox", "a cat, zibo fox"),
        ("a cat, ", "zibo fox", "a cat, zibo fox"),
        ("a Zibo  Fox in snow", "zibo fox", "a Zibo  Fox in snow"),
        ("a zibo foxtrot", "zibo fox", "a zibo foxtrot, zibo fox"),
        ("a cat", "", "a cat"),
        ("a cat", " , ", "a cat"),
        ("a cat", "f(o)x*", "a cat, f(o)x*"),
        ("", TWO, TWO),
        ("a cat", TWO, "a cat, zibo fox, pink bow"),
        ("a zibo fox in the snow", TWO, "a zibo fox in the snow, pink bow"),
        ("pink bow,zibo  fox", TWO, "pink bow,zibo  fox"),
    ],
)
def test_a_trigger_is_added_once(prompt: str, trigger: str, expected: str) -> None:
    assert with_words(prompt, [trigger]) == expected
    assert with_words(expected, [trigger, trigger]) == expected
    assert has_words(expected, trigger)


@pytest.mark.parametrize(
    ("prompt", "trigger", "expected"),
    [
        ("a cat, zibo fox", "zibo fox", "a cat"),
        ("zibo fox", "zibo fox", ""),
        ("a zibo fox in the snow", "zibo fox", "a zibo fox in the snow"),
        ("a cat, on a mat", "", "a cat, on a mat"),
        (" as typed ,", "zibo fox", " as typed ,"),
        ("a cat, zibo fox, pink bow", TWO, "a cat"),
        ("a zibo fox in the snow, Pink  bow", TWO, "a zibo fox in the snow"),
    ],
)
def test_a_trigger_leaves_where_it_was_put(prompt: str, trigger: str, expected: str) -> None:
    assert taken_back(prompt, trigger) == expected


@pytest.mark.parametrize("trigger", ["zibo fox", TWO, "axo, bee, cee", "Pink Bow ,zibo fox,"])
@pytest.mark.parametrize("prompt", ["a cat", "a cat, on a mat", ""])
def test_what_the_page_adds_every_reader_finds_and_the_page_takes_back(
    prompt: str, trigger: str
) -> None:
    called = with_words(prompt, [trigger])
    assert has_words(called, trigger)
    assert without_words(called, trigger) == prompt
    assert prompts_without(called, [trigger]) == [prompt]
    assert taken_back(called, trigger) == prompt


@pytest.mark.parametrize(
    ("prompt", "trigger", "left"),
    [
        ("a zibo fox in the snow", TWO, "a in the snow"),
        ("a fox with a pink bow, at night", TWO, "a fox with a, at night"),
        ("a zibo fox, pink bow , at night", TWO, "a, at night"),
        ("a fox", TWO, None),
    ],
)
def test_one_phrase_of_several_calls_it(prompt: str, trigger: str, left: str | None) -> None:
    assert without_words(prompt, trigger) == left
