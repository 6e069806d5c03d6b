"""Emphasis against A1111's own rules, written down naively, and against the formula."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from composer.diffusion.conditioning import encode_prompts, first_chunks, split_into_chunks
from composer.diffusion.emphasis import Emphasised, parse_emphasis
from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.errors import ComposerError

NORM = "final_layer_norm"  # of a text encoder


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> Model:
    return load_model(tiny_sd)


def naive(prompt: str) -> list[tuple[str, float]]:
    """Each letter with its weight: a closing bracket multiplies all since its opening one."""
    letters: list[tuple[str, float]] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def multiply(begun: int, factor: float) -> None:
        letters[begun:] = [(letter, weight * factor) for letter, weight in letters[begun:]]

    place = 0
    while place < len(prompt):
        rest = prompt[place:]
        if rest[0] == "\\" and rest[1:2] and rest[1] in "()[]\\":
            letters.append((rest[1], 1.0))
            place += 2
            continue
        weighted = re.match(r":\s*([+-]?[.\d]+)\s*\)", rest)
        if rest[0] in "([":
            opened[rest[0]].append(len(letters))
        elif weighted and opened["("]:
            multiply(opened["("].pop(), float(weighted[1]))
            place += weighted.end()
            continue
        elif rest[0] == ")" and opened["("]:
            multiply(opened["("].pop(), 1.1)
        elif rest[0] == "]" and opened["["]:
            multiply(opened["["].pop(), 1 / 1.1)
        else:
            letters.append((rest[0], 1.0))
        place += 1
    for kind, factor in (("(", 1.1), ("[", 1 / 1.1)):
        for begun in opened[kind]:
            multiply(begun, factor)
    return letters


def by_letter(prompt: str) -> list[tuple[str, float]]:
    return [(letter, part.weight) for part in parse_emphasis(prompt) for letter in part.text]


def test_any_brackets_weigh_as_the_rules_say() -> None:
    rng = random.Random(0)
    pieces = ["a", "fox ", "(", ")", "[", "]", ":1.3)", ":0.5)", ": 2 )", "\\(", "\\)", "\\", ":"]
    for _ in range(400):
        prompt = "".join(rng.choices(pieces, k=rng.randrange(12)))
        found = by_letter(prompt)
        wanted = naive(prompt)
        assert [letter for letter, _ in found] == [letter for letter, _ in wanted], prompt
        assert [w for _, w in found] == pytest.approx([w for _, w in wanted]), prompt


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("a fox", [Emphasised(text="a fox")]),
        ("", []),
        ("a (fox:1.5)", [Emphasised(text="a "), Emphasised(text="fox", weight=1.5)]),
        ("a BREAK b", [Emphasised(text="a"), Emphasised(text="b", new_chunk=True)]),
        ("BREAK b", [Emphasised(text="b", new_chunk=True)]),
        ("BREAKFAST", [Emphasised(text="BREAKFAST")]),
    ],
)
def test_stretches(prompt: str, wanted: list[Emphasised]) -> None:
    assert parse_emphasis(prompt) == wanted


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a (fox:1e9)", ""),
        ("a (fox:1.2.3)", "has '1.2.3' where an emphasis is needed"),
        ("a " + "(" * 60 + "fox", r"emphasis of 'fox' in the prompt is 304\.\d+: give at most 100"),
        ("a (fox:999999)", "give at most 100"),
    ],
)
def test_what_cannot_be_done_is_named(prompt: str, message: str) -> None:
    if message:
        with pytest.raises(ComposerError, match=message):
            parse_emphasis(prompt)
    else:  # no number to A1111: part of the text
        assert by_letter(prompt) == naive(prompt)


@pytest.mark.parametrize("piece", ["(", "[", "(a", "(a:1)", "\\", "[a", ":", ")", "BREAK "])
def test_the_work_grows_with_the_length_alone(piece: str) -> None:
    import sys

    def work(times: int) -> int:
        count = 0

        def trace(*_: object) -> None:
            nonlocal count
            count += 1

        prompt = piece * times
        sys.setprofile(trace)
        try:
            parse_emphasis(prompt)
        except ComposerError:
            pass
        finally:
            sys.setprofile(None)
        return count

    assert work(4000) < 2.5 * work(2000) + 100


def test_vectors_without_a_mean_are_multiplied_alone(model: Model) -> None:
    """Those of a text encoder that was just made: their mean is rounding, of any size and sign."""
    plain = encode_prompts(model, "a fox", None).positive.states
    assert float(plain.mean().abs()) < 1e-6 < 0.5 < float(plain.abs().mean())
    (chunk,) = split_into_chunks(model, "a (fox:1.2)")["text_encoder"]
    weighed = encode_prompts(model, "a (fox:1.2)", None).positive.states
    torch.testing.assert_close(weighed, plain * torch.tensor(chunk.weights)[None, :, None])


def test_vectors_are_multiplied_and_keep_their_mean(tiny_sd: Path) -> None:
    model = load_model(tiny_sd)
    encoder: Any = model.encoders["text_encoder"].network
    with torch.no_grad():
        encoder.get_submodule(NORM).bias.fill_(0.2)
    plain = encode_prompts(model, "a fox in ink", None).positive.states
    weighed = encode_prompts(model, "a (fox:1.5) in (ink:0.2)", None).positive.states
    (chunk,) = split_into_chunks(model, "a (fox:1.5) in (ink:0.2)")["text_encoder"]
    (same,) = split_into_chunks(model, "a fox in ink")["text_encoder"]
    assert chunk.ids == same.ids and set(same.weights) == {1.0}
    # start, a, f o x, i n, i n k, end: one token for each letter here
    assert chunk.weights[:11] == [1, 1, 1.5, 1.5, 1.5, 1, 1, 0.2, 0.2, 0.2, 1]
    wanted = plain * torch.tensor(chunk.weights)[None, :, None]
    wanted = wanted * (plain.mean() / wanted.mean())
    torch.testing.assert_close(weighed, wanted)
    assert torch.equal(encode_prompts(model, "a (fox:1) in ink", None).positive.states, plain)


def test_captions_of_a_training_keep_their_brackets(model: Model) -> None:
    ids = first_chunks(model, ["a (fox:1.5)"])["text_encoder"][0].tolist()
    assert len(set(ids)) > len(set(split_into_chunks(model, "a (fox:1.5)")["text_encoder"][0].ids))


def test_break_begins_a_chunk_and_a_full_one_ends_after_its_last_comma(model: Model) -> None:
    def words(prompt: str) -> list[str]:
        tokenizer = model.encoders["text_encoder"].tokenizer
        special = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
        chunks = split_into_chunks(model, prompt)["text_encoder"]
        assert all(len(chunk.ids) == len(chunk.weights) == 32 for chunk in chunks)
        inner = ([i for i in chunk.ids if i not in special] for chunk in chunks)
        return ["".join(tokenizer.convert_ids_to_tokens(i)).replace("</w>", " ") for i in inner]

    assert words("a BREAK b") == ["a ", "b "]
    # 30 tokens a chunk
    assert words("x" * 15 + ", " + "y" * 20) == ["x" * 15 + " , ", "y" * 20 + " "]
    assert words("x" * 9 + ", " + "y" * 30) == ["x" * 9 + " , " + "y" * 20, "y" * 10 + " "]
