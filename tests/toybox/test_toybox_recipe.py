"""The recipe: stages in order, in processes of their own, from nothing to a model that loads."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from composer.errors import ComposerError
from toybox import recipe
from toybox.recipe import STAGES, Build, run


@pytest.fixture
def build(tmp_path: Path) -> Build:
    return Build(work=tmp_path / "work", out=tmp_path / "out", loras=tmp_path / "loras")


def test_an_unknown_stage_is_refused_before_anything_runs(build: Build) -> None:
    with pytest.raises(ComposerError, match=r"no stage brew: choose from vae, clip, unet"):
        run(build, ("vae", "brew"))
    assert not build.work.exists()


def test_stages_run_in_their_order(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(recipe, "_in_processes", lambda _, name: ran.append(name))
    run(build, ("assemble", "vae", "unet"))
    assert ran == ["vae", "unet", "assemble"]
    ran.clear()
    run(build)
    assert tuple(ran) == STAGES


def test_a_model_trained_on_keeps_its_vae_and_clip(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    monkeypatch.setattr(recipe, "_in_processes", lambda _, name: ran.append(name))
    run(replace(build, start=Path("assets/toybox")))
    assert ran == ["unet", "oracle", "assemble", "loras", "mixlora", "language"]


@pytest.mark.skipif(shutil.which("false") is None, reason="needs a program that fails")
def test_a_stage_that_fails_is_named_with_its_log(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(ComposerError, match=r"Stage vae failed: its log is .*vae\.log"):
        run(build, ("vae",))


@pytest.mark.parametrize("start", [None, Path("some/model")])
def test_a_stages_process_gets_the_whole_build(
    build: Build, start: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = replace(build, start=start, scale=0.25, processes=2, batch=8, seed=3, device="cuda")
    options = [f"--{key}={value}" for key, value in recipe._as_options(given).items()]
    monkeypatch.setattr(sys, "argv", ["stage", "oracle", *options])
    got: list[tuple[Build, str]] = []
    monkeypatch.setattr(recipe, "do_stage", lambda *both: got.append(both))
    runpy.run_module("toybox.stage", run_name="__main__")
    assert got == [(given, "oracle")]


def test_budgets_are_scaled(build: Build) -> None:
    assert build.stage("unet").minutes == recipe.CPU_MINUTES["unet"]
    half = replace(build, scale=0.5, seed=7).stage("vae")
    assert (half.minutes, half.seed) == (recipe.CPU_MINUTES["vae"] / 2, 7)
    assert half.checkpoint == build.work / "vae.safetensors"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_whole_recipe_in_seconds(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    from composer.diffusion import load_model
    from toybox.oracle import HEADS, Oracle

    root = Path(recipe.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", str(root))
    tiny = replace(build, scale=0.001, batch=4)
    stages = tuple(name for name in STAGES if name != "loras")
    run(tiny, stages)
    assert load_model(str(tiny.out)).size == 64
    verdict = Oracle.load(tiny.out / "oracle").judge([Image.new("RGB", (64, 64))])[0]
    assert set(verdict.answers) == set(HEADS)
    account = json.loads((tiny.out / "training.json").read_text())
    assert set(account) == {"vae", "clip", "unet", "oracle"}
    written = (tiny.out / "unet/diffusion_pytorch_model.safetensors").read_bytes()

    # once more, from the finished model: its VAE and words stay, its U-Net goes on
    more = replace(tiny, work=tiny.work / "more", out=tiny.out.with_name("more"), start=tiny.out)
    run(more, ("vae", "unet", "assemble"))
    assert sorted(path.name for path in more.work.glob("*.safetensors")) == ["unet.safetensors"]
    assert (more.out / "unet/diffusion_pytorch_model.safetensors").read_bytes() != written
    for part in ("vae/diffusion_pytorch_model", "text_encoder/model"):
        first, second = ((b.out / f"{part}.safetensors").read_bytes() for b in (tiny, more))
        assert first == second
    assert os.environ["PYTHONPATH"] == str(root)
