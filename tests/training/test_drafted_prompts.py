"""Prompts drafted from trigger words name every LoRA that they are to name."""

from __future__ import annotations

import itertools

import pytest

from composer.errors import ComposerError
from composer.training.gates.prompts import Called, draft_prompts

ROLES = ("character", "clothing", "object", "background", "style", "other")
MANY = [
    *itertools.product(ROLES, repeat=2),
    ("background", "background", "background", "style"),
    ("clothing",) * 6,
    ("character", *("clothing",) * 5, "background", "background", "style", "style"),
]


@pytest.mark.parametrize("roles", MANY, ids="+".join)
def test_every_prompt_names_every_lora(roles: tuple[str, ...]) -> None:
    called = [
        Called(name=f"lora{n}", trigger=f"trigger{n} word", role=role)
        for n, role in enumerate(roles)
    ]
    drafted = draft_prompts(called)
    assert drafted.composed and len(set(drafted.composed)) == len(drafted.composed) <= 24
    for prompt in drafted.composed:
        assert all(prompt.count(one.trigger) == 1 for one in called), prompt
    assert drafted.alone.keys() == {one.name for one in called}
    for one in called:
        for prompt in drafted.alone[one.name]:
            assert [other for other in called if other.trigger in prompt] == [one]


def test_they_follow_from_the_seed() -> None:
    called = [
        Called(name="hat", trigger="wearing a top hat", role="clothing"),
        Called(name="neon", trigger="in neon style", role="style"),
    ]
    assert draft_prompts(called) == draft_prompts(called)
    assert draft_prompts(called, seed=1) != draft_prompts(called)
    assert draft_prompts(called).composed[0] == (
        "a fox wearing a top hat on a grey background in neon style"  # as of the pair that ships
    )


def test_without_trigger_words_none_can_be_drafted() -> None:
    with pytest.raises(ComposerError, match="'ada' names no trigger word"):
        draft_prompts([Called(name="ada", trigger=" ", role="style")])
