"""Words become prompts beside the pictures: what is kept, and what is refused."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from tiny_language import make_tiny_language
from tiny_loras import write_lora
from typer.testing import CliRunner

from composer.cli import app
from composer.diffusion.png import read_png
from composer.diffusion.request import Request
from composer.errors import ComposerError
from composer.experts import LORAS, Library
from composer.experts.triggers import has_words
from composer.language.phrases import missing
from composer.studio import ComposeRequest, Finished, Progress, Studio, Wording

TRIGGERS = {"zibo": "zibo fox", "neon": "in neon style", "plain": ""}


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worded")
    for seed, (name, words) in enumerate(TRIGGERS.items()):
        told = {"modelspec.trigger_phrase": words}
        write_lora(folder / f"{name}.safetensors", seed=seed, **told)
    return folder


@pytest.fixture(scope="module")
def shipped(loras: Path) -> Wording:
    """With the model that ships."""
    return Wording(card=Library([loras], LORAS).find)


def test_the_shipped_model_makes_a_prompt_of_its_world(shipped: Wording) -> None:
    assert shipped.problem == ""
    made = shipped.expand("fox moon", seed=1)
    assert made == shipped.expand("fox moon", seed=1)
    assert missing("fox moon", made) == [] and len(made.split()) > 3
    assert len({shipped.expand("fox moon", seed=seed) for seed in range(6)}) > 1
    assert shipped.expand("")


@pytest.mark.parametrize("words", ["snow", "a cat at sunset, zibo fox, in neon style", "dragon"])
def test_trigger_words_of_chosen_loras_survive(shipped: Wording, words: str) -> None:
    for seed in range(4):
        made = shipped.expand(words, ["zibo", "neon", "plain"], seed=seed)
        assert has_words(made, "zibo fox") and has_words(made, "in neon style")
        assert missing(words, made) == []


def test_words_are_not_added_where_they_are_not_wanted(shipped: Wording) -> None:
    made = shipped.expand("neon, beach", ["zibo"], triggers=False)
    assert "zibo" not in made
    assert has_words(shipped.expand("snow, zibo fox", ["zibo"], triggers=False), "zibo fox")


def test_words_that_call_a_mixlora_come_out_whole_and_are_not_added(shipped: Wording) -> None:
    made = shipped.expand("tavo robot, beach", whole=["tavo robot", "luna unicorn", ""])
    assert has_words(made, "tavo robot") and "luna" not in made


def test_tags_are_kept_and_their_loras_are_chosen(shipped: Wording) -> None:
    made = shipped.expand("cat <lora:neon:0.8>, beach")
    assert made.endswith(" <lora:neon:0.8>") and has_words(made, "in neon style")
    with pytest.raises(ComposerError, match="'neon'"):
        shipped.expand("cat <lora:nean:0.8>")
    with pytest.raises(ComposerError, match="not complete"):
        shipped.expand("cat <lora:neon")


def test_what_is_too_long_is_refused_and_the_next_is_unharmed(shipped: Wording) -> None:
    with pytest.raises(ComposerError, match="give a shorter one"):
        shipped.expand("cat and dog " * 60)
    assert shipped.expand("cat")


def test_another_model_takes_its_place(tmp_path: Path, loras: Path) -> None:
    folder = make_tiny_language(tmp_path / "model")
    other = Wording(folder, card=Library([loras], LORAS).find)
    assert other.problem == ""
    assert missing("fox moon", other.expand("fox moon", ["zibo"])) == []


@pytest.mark.parametrize(
    ("model", "adapter", "told"),
    [
        ("nowhere", None, "no language model folder .*nowhere"),
        (".", None, "config.json"),
        ("model", "nowhere", "adapter_config.json"),
    ],
)
def test_what_is_missing_is_known_before_anything_is_loaded(
    tmp_path: Path, model: str, adapter: str | None, told: str
) -> None:
    make_tiny_language(tmp_path / "model")
    before: list[bool] = []
    broken = Wording(
        tmp_path / model,
        tmp_path / adapter if adapter else None,
        card=Library([], LORAS).find,
        before=lambda: before.append(True),
    )
    with pytest.raises(ComposerError, match=told):
        broken.expand("fox")
    assert broken.problem and not before


def test_without_the_shipped_model_the_remedy_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("composer.studio.wording.SHIPPED", tmp_path)
    assert "--language-model" in Wording(card=Library([], LORAS).find).problem


def test_a_prompt_is_made_while_a_picture_is(studio: Studio) -> None:
    request = Request(prompt="a fox", seed=7, steps=400, width=16, height=16)
    events = studio.compose(ComposeRequest(request=request), owner="ann")
    next(event for event in events if isinstance(event, Progress))
    made: list[str] = []
    threads = [
        threading.Thread(target=lambda: made.append(studio.wording.expand("fox"))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(made) == 2 and made[0] == made[1]
    assert studio.interrupt("ann")  # it was still being made
    *_, last = events
    assert last == Finished(cancelled=True)


def test_the_command_prints_prompts(loras: Path) -> None:
    given = ["expand", "fox moon", "--lora", "neon", "--lora-dir", str(loras), "--count", "2"]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    assert len(done.stdout.splitlines()) == 2
    told = [
        json.loads(line) for line in CliRunner().invoke(app, [*given, "--json"]).stdout.splitlines()
    ]
    assert [line["prompt"] for line in told] == done.stdout.splitlines()
    assert [line["seed"] for line in told] == [0, 1]
    assert all(has_words(line["prompt"], "in neon style") for line in told)
    wrong = CliRunner().invoke(app, ["expand", "fox", "--language-model", "./nowhere"])
    assert wrong.exit_code == 2 and "nowhere" in wrong.output


def test_generate_expands_first(tiny_sd: Path, loras: Path, tmp_path: Path) -> None:
    places: list[Any] = ["--model", tiny_sd, "--lora-dir", loras, "--output", tmp_path]
    given = ["generate", "fox moon", "--expand", "--lora", "zibo", "--steps", "2", "--seed", "3"]
    done = CliRunner().invoke(app, [*given, *map(str, places), "--device", "cpu"])
    assert done.exit_code == 0, done.output
    record = read_png(Path(done.stdout.strip()))
    assert record.request.prompt != "fox moon"
    assert missing("fox moon zibo", record.request.prompt) == []
