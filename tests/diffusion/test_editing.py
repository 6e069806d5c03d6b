"""Prompts that change from step to step: against A1111's own examples, against the definition, and
in pictures against a loop that reads each step's text by hand."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from composer.diffusion.conditioning import count_chunks, encode_prompts
from composer.diffusion.denoise import Beginning, denoise, draw_noise, predict, scheduler_for
from composer.diffusion.editing import MOST_CHARACTERS, texts_at_steps
from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.diffusion.regions import Regions, Trigger
from composer.diffusion.request import Request, Start
from composer.diffusion.sample import Step, generate
from composer.errors import ComposerError


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> Model:
    return load_model(tiny_sd)


def by_schedule(schedule: list[tuple[int, str]], passes: int) -> list[str]:
    """The text of each pass, as A1111 picks it: the first that ends with it or later."""
    return [next(text for end, text in schedule if number <= end) for number in range(passes)]


# A prompt and what A1111 publishes of it for 10 steps: where each text ends.
EXAMPLES: list[tuple[str, list[tuple[int, str]]]] = [
    ("test", [(10, "test")]),
    ("a [b:3]", [(3, "a "), (10, "a b")]),
    ("a [b: 3]", [(3, "a "), (10, "a b")]),
    ("a [[[b]]:2]", [(2, "a "), (10, "a [[b]]")]),
    ("[(a:2):3]", [(3, ""), (10, "(a:2)")]),
    ("a [b : c : 1] d", [(1, "a b  d"), (10, "a  c  d")]),
    ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
    ("a [unbalanced", [(10, "a [unbalanced")]),
    ("a [b:.5] c", [(5, "a  c"), (10, "a b c")]),
    ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
    ("[a|(b:1.1)]", [(n, "a" if n % 2 else "(b:1.1)") for n in range(1, 11)]),
    ("[fe|]male", [(n, "female" if n % 2 else "male") for n in range(1, 11)]),
    ("[fe|||]male", [(n, "male" if n % 4 != 1 else "female") for n in range(1, 11)]),
    # what its grammar makes of others
    ("[a::4] b", [(4, "a b"), (10, " b")]),
    ("[:a:4]", [(4, ""), (10, "a")]),
    ("[a:b:0.25]", [(2, "a"), (10, "b")]),
    ("[a:b:1.0]", [(10, "a")]),
    ("[a:b:0]", [(10, "b")]),
    ("[a:b:-1]", [(10, "b")]),
    ("[a:b:99]", [(10, "a")]),
    ("[a:b:1e1]", [(10, "a")]),
    ("([a:b:3]:1.2) [c]", [(3, "(a:1.2) [c]"), (10, "(b:1.2) [c]")]),
    ("[[a|b]:c:2]", [(1, "a"), (2, "b"), *((n, "c") for n in range(3, 11))]),
    ("[a:b]", [(10, "[a:b]")]),
    ("[a:b:c:3]", [(10, "[a:b:c:3]")]),
    ("[a:3 4]", [(10, "[a:3 4]")]),
    (r"\[a:b:3\] [c\]:2]", [(2, r"\[a:b:3\] "), (10, r"\[a:b:3\] c\]")]),
    ("[a (b:3]", [(10, "[a (b:3]")]),
    ("[a:3] b | c", [(10, "[a:3] b | c")]),
    ("[a:3] \\", [(10, "[a:3] \\")]),
    # the colon of an embedding's prefix is no sign of a change
    ("[<embedding:bad>:3]", [(3, ""), (10, "<embedding:bad>")]),
    ("[embedding:bad::3]", [(3, "embedding:bad"), (10, "")]),
]


@pytest.mark.parametrize(("prompt", "schedule"), EXAMPLES, ids=[e[0] for e in EXAMPLES])
def test_the_texts_are_those_of_a1111(prompt: str, schedule: list[tuple[int, str]]) -> None:
    assert texts_at_steps(prompt, 10) == by_schedule(schedule, 10)


def test_a_second_pass_counts_on() -> None:
    assert texts_at_steps("a [b:.5] c", 10, before=10) == ["a b c"] * 10
    second = by_schedule([(5, "a  c"), (10, "a b c")], 10)
    assert texts_at_steps("a [b:1.5] c", 10, before=10) == second
    assert texts_at_steps("a [b:15] c", 10, before=10) == second
    assert texts_at_steps("a [b:15] c", 10) == ["a  c"] * 10


def test_the_first_so_many_passes_of_all_steps() -> None:
    assert texts_at_steps("[a:b:0.5]", 10, 7) == ["a"] * 6 + ["b"]
    assert texts_at_steps("[a:b:0.5]", 2, 4) == ["a", "a", "b", "b"]  # more than steps, as PNDM has


def drawn(rng: random.Random, depth: int) -> tuple[str, Any]:
    """A prompt, and what gives its text at a step of 8."""
    kind = rng.choice(["text", "both", "change", "choice", "round", "square"]) if depth else "text"
    if kind == "text":
        text = rng.choice(["", "a", " b ", r"\[", "c,", "BREAK"])
        return text, lambda step: text
    (first, at), (second, then) = (drawn(rng, depth - 1) for _ in range(2))
    if kind == "both":
        return first + second, lambda step: at(step) + then(step)
    if kind == "change":
        when = rng.choice(["0", "1", "3", " 5 ", ".5", "0.3", "2.0"])
        end = float(when) * (8 if "." in when else 1)
        written = f"[{first}:{second}:{when}]"
        return written, lambda step: at(step) if step <= int(end) else then(step)
    if kind == "choice":
        return f"[{first}|{second}]", lambda step: (then, at)[step % 2](step)
    around = "()" if kind == "round" else "[]"
    return f"{around[0]}{first}{around[1]}", lambda step: around[0] + at(step) + around[1]


def test_any_nesting_is_what_it_is_defined_to_be() -> None:
    rng = random.Random(0)
    changing = 0
    for _ in range(300):
        prompt, at = drawn(rng, 4)
        found = texts_at_steps(prompt, 8)
        assert found == [at(max(number, 1)) for number in range(8)], prompt
        changing += len(set(found)) > 1
    assert changing > 50


def test_too_many_different_texts_are_refused() -> None:
    prompt = "[a|b][a|b|c][a|b|c|d|e][a|b|c|d|e|f|g]" + "x" * (MOST_CHARACTERS // 100)
    with pytest.raises(ComposerError, match=r"different texts .* such as '\[a\|b\]'"):
        texts_at_steps(prompt, 200)
    assert len(set(texts_at_steps(prompt, 50))) == 49
    long = "x" * MOST_CHARACTERS
    assert texts_at_steps(long, 3) == [long] * 3


def test_prompts_without_steps_must_not_change(model: Model) -> None:
    for refuse in (lambda p: count_chunks(model, p), lambda p: encode_prompts(model, "a", p)):
        with pytest.raises(ComposerError, match=r"'\[fox:\(owl\):3\]' in the prompt changes from"):
            refuse("a [fox:(owl):3] [a|b]")
        refuse("a [fox] [a:b]")


def by_hand(
    model: Model,
    request: Request,
    texts: list[tuple[str, str]],
    beginning: Beginning | None = None,
) -> torch.Tensor:
    """The latents, reading each step's own text."""
    scheduler = scheduler_for(model, request.sampler, request.steps)
    skipped = len(scheduler.timesteps) - len(texts)
    noise, generators = draw_noise([request.seed], (4, 8, 8))

    def predicted(noisy: torch.Tensor, timestep: torch.Tensor, index: int) -> torch.Tensor:
        rows = encode_prompts(model, *texts[index - skipped]).rows
        return predict(model, noisy, timestep, rows, request.cfg_scale)

    latents = noise
    for step in denoise(scheduler, noise, predicted, generators, beginning):
        latents = step.latents
    return latents


def made(model: Model, request: Request, **options: Any) -> torch.Tensor:
    (*_, last) = [e for e in generate(model, request, **options) if isinstance(e, Step)]
    return last.latents


@pytest.mark.parametrize(
    ("sampler", "prompt", "texts"),
    [
        ("Euler", "a [fox:owl:2]", ["a fox"] * 3 + ["a owl"]),
        ("Euler", "a [fox|owl]", ["a fox", "a fox", "a owl", "a fox"]),
        # two passes of each step but the last, and A1111 counts passes
        ("Heun", "a [fox:owl:0.5]", ["a fox"] * 5 + ["a owl"] * 2),
        ("Heun", "a [fox:owl:2]", ["a fox"] * 3 + ["a owl"] * 4),
    ],
)
def test_each_step_reads_its_text(
    model: Model, sampler: str, prompt: str, texts: list[str]
) -> None:
    asked = Request(prompt=prompt, seed=1, steps=4, cfg_scale=3, sampler=sampler)
    wanted = by_hand(model, asked, [(text, "") for text in texts])
    torch.testing.assert_close(made(model, asked), wanted)


def test_the_negative_prompt_changes_too_and_lengths_may_differ(model: Model) -> None:
    long = "owl " * 20  # three chunks
    asked = Request(
        prompt="a fox", negative_prompt=f"[blue:{long}:1]", seed=1, steps=3, cfg_scale=3
    )
    # texts of one pass are padded to the length of the longest, as A1111 does
    latents = made(model, asked)
    assert latents.isfinite().all()
    unlike = made(model, Request(prompt="a fox", negative_prompt="blue", seed=1, steps=3))
    assert not torch.allclose(latents, unlike)


def test_a_start_picture_counts_from_its_first_step(model: Model) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    start = Start(image=Image.fromarray(pixels))
    asked = Request(
        prompt="a [fox:owl:1]", seed=1, steps=4, cfg_scale=3, sampler="Euler", strength=0.75
    )
    image = torch.tensor(pixels).permute(2, 0, 1)[None] / 255
    beginning = Beginning(latents=model.to_latents(image), strength=0.75)
    texts = [("a fox", ""), ("a fox", ""), ("a owl", "")]
    wanted = by_hand(model, asked, texts, beginning)
    torch.testing.assert_close(made(model, asked, start=start), wanted)


def test_a_second_pass_reads_its_own_texts(model: Model) -> None:
    words = {"seed": 1, "steps": 4, "cfg_scale": 3, "strength": 0.5, "hires": 1.5}
    changing = made(model, Request(prompt="a [fox:owl:1.0]", **words))
    # the first pass all fox, the second all owl
    first = Request(prompt="a fox", seed=1, steps=4, cfg_scale=3)
    (*_, small) = generate(model, first)
    start = Start(image=small.image.resize((24, 24), Image.Resampling.LANCZOS))
    second = Request(
        prompt="a owl", seed=1, steps=4, cfg_scale=3, strength=0.5, width=24, height=24
    )
    torch.testing.assert_close(changing, made(model, second, start=start))


def test_maps_follow_the_text_of_the_step(model: Model) -> None:
    """What calls an expert is asked of the words that are read at that step."""

    given: list[list[float]] = []
    mixture: Any = SimpleNamespace(
        names=("ada", "owl"),
        switches={"ada": True, "owl": True},
        set_region_maps=lambda maps: given.append(maps.amax((0, 2, 3)).tolist()),
    )
    triggers = {name: Trigger(words=name, role="style") for name in mixture.names}
    regions = Regions(model, mixture, triggers)
    asked = Request(prompt="[ada|owl]", seed=1, steps=6, cfg_scale=1, sampler="Euler")
    list(generate(model, asked, regions=regions))
    # at each change, and where two steps are alike at every third alone
    ada, owl = [1, 0], [0, 1]
    assert given == [ada, owl, ada, owl, ada]
