"""The recipe at 128 pixels: stages in order, each a process that gets the whole build."""

from __future__ import annotations

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from composer.diffusion import load_model
from composer.errors import ComposerError
from toybox import recipe, stage_expand, stage_mixlora
from toybox.__main__ import app
from toybox.language_tokens import WINDOW, build_language_tokenizer
from toybox.oracle import HEADS, Oracle
from toybox.recipe import MINUTES, STAGES, Build, run
from toybox.render import SIZE
from toybox.stage_expand import SHARES
from toybox.stage_language import batch_of, new_language_model, record
from toybox.stage_loras import TAUGHT
from toybox.stage_mixlora import settings
from toybox.words import WORDS
from toybox.world import CHARACTERS, element


@pytest.fixture
def build(tmp_path: Path) -> Build:
    return Build(work=tmp_path / "work", out=tmp_path / "out", loras=tmp_path / "loras", scale=0.5)


def as_process(build: Build, name: str, monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    """What the stage's process would do, in this one."""
    monkeypatch.setattr(sys, "argv", [*build.command(name)[2:], *more])
    runpy.run_module("toybox.stage", run_name="__main__")


def test_an_unknown_stage_is_refused_before_anything_runs(build: Build) -> None:
    with pytest.raises(ComposerError, match=r"no stage brew: choose from vae, clip, unet"):
        run(build, ("vae", "brew"))
    assert not build.work.exists()


def test_stages_run_in_their_order(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(recipe, "in_process", lambda name, *_: ran.append(name))
    run(build, ("assemble", "vae", "unet"))
    assert ran == ["vae", "unet", "assemble"]
    ran.clear()
    run(build)
    assert tuple(ran) == STAGES


def test_a_stage_that_fails_is_named_with_its_log(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Build, "command", lambda *_: [sys.executable, "-c", "print(1); exit(3)"])
    with pytest.raises(ComposerError, match=r"Stage vae failed: its log is .*vae\.log"):
        run(build, ("vae",))
    assert (build.work / "vae.log").read_text() == "1\n"


def test_a_stage_gets_its_part_of_the_budget_and_the_start(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    from toybox import stage_clip

    got: list[Any] = []
    monkeypatch.setattr(
        stage_clip, "train_clip", lambda stage, _, start: got.append((stage, start))
    )
    as_process(replace(build, start=Path("some/model"), seed=3), "clip", monkeypatch)
    stage, start = got[0]
    assert (stage.minutes, stage.seed) == (MINUTES["clip"] / 2, 3)
    assert stage.checkpoint == build.work / "clip.safetensors"
    assert start == Path("some/model/clip")


def test_the_stage_of_words_learns_this_world(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[Any] = []
    monkeypatch.setattr(stage_expand, "build_language", lambda *given, **_: got.append(given))
    as_process(build, "language", monkeypatch)
    stage, folder, tokenizer, drawn = got[0]
    assert stage.minutes == MINUTES["language"] / 2
    assert folder == build.out / "language"
    assert drawn is WORDS
    assert tokenizer.model_max_length == WINDOW


def test_examples_of_every_kind_fit_the_window_and_the_model_reads_them() -> None:
    tokenizer: Any = build_language_tokenizer()
    model = new_language_model(tokenizer)
    for kind in SHARES:
        some = WORDS.examples(kind, 300)
        records = [record(example) for example in some]
        longest = max(len(tokenizer(f"{r.prompt}{r.answer}").input_ids) for r in records)
        assert longest < WINDOW, kind
    batch = batch_of(WORDS.examples("mixed", 4), tokenizer)
    assert model(**batch.inputs("cpu")).logits.shape[-1] == len(tokenizer)


def test_the_mixlora_has_all_characters_and_balances_each_layer(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[Any] = []
    monkeypatch.setattr(stage_mixlora, "train_characters", lambda *given: got.append(given))
    as_process(build, "mixlora", monkeypatch, "--balance=0.05")
    model, config, characters, draw = got[0]
    assert model == build.out
    assert [one.name for one in characters] == list(CHARACTERS)
    assert [one.trigger for one in config.sets] == [one.trigger for one in characters]
    assert config.balance_over == "layer"
    assert config.adapter.router.balance == 0.05
    assert config.steps == stage_mixlora.STEPS
    assert {lora.name for lora in TAUGHT} >= set(CHARACTERS)
    assert callable(draw)


def test_balancing_over_all_layers_stays_the_default_elsewhere() -> None:
    assert settings(Path("loras"), [element("zibo"), element("tavo")]).balance_over == "all"


def test_the_sheet_of_the_world_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "world.webp"
    assert CliRunner().invoke(app, ["world", str(path)]).exit_code == 0
    with Image.open(path) as sheet:
        assert sheet.width > 10 * SIZE


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_whole_recipe_in_seconds(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(recipe.__file__).parents[1]))
    tiny = replace(build, scale=0.001)
    # pictures to be measured and two families of LoRAs would take hours
    run(tiny, [name for name in STAGES if name not in ("measure", "loras")])
    assert load_model(str(tiny.out)).size == SIZE
    verdict = Oracle.load(tiny.out / "oracle").judge([Image.new("RGB", (SIZE, SIZE))])[0]
    assert set(verdict.answers) == set(HEADS)
    account = json.loads((tiny.out / "training.json").read_text())
    assert set(account) == {"vae", "clip", "unet", "decoder", "oracle"}
    assert (tiny.loras / "mixlora" / "characters.safetensors").exists()
    assert (tiny.out / "language" / "adapter").is_dir()

    # once more, from the finished model
    more = replace(tiny, work=tiny.work / "more", out=tiny.out.with_name("more"), start=tiny.out)
    run(more, ("vae",))
    assert [path.name for path in more.work.glob("*.safetensors")] == ["vae.safetensors"]
