"""Pictures that begin from a picture, or are drawn anew at a higher size: against diffusers' own
pipelines, and what must stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import (
    StableDiffusionImg2ImgPipeline,
)
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint import (
    StableDiffusionInpaintPipeline,
)
from PIL import Image
from typer.testing import CliRunner

from composer.cli import app
from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.diffusion.png import read_png
from composer.diffusion.request import Request, Start
from composer.diffusion.sample import Picture, Step, generate
from composer.diffusion.samplers import build_scheduler
from composer.errors import ComposerError

SAMPLERS = ["DDIM", "Euler", "DPM++ 2M", "Euler a", "Heun"]


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> Model:
    return load_model(tiny_sd)


def picture(side: int = 16, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((side, side), Image.Resampling.BICUBIC)


def half() -> Image.Image:
    """Light on the right."""
    mask = Image.new("L", (16, 16), 0)
    mask.paste(255, (8, 0, 16, 16))
    return mask


def made(model: Model, request: Request, start: Start | None = None) -> tuple[Any, list[Step]]:
    events = list(generate(model, request, start=start))
    steps = [event for event in events if isinstance(event, Step)]
    (picture,) = (event for event in events if isinstance(event, Picture))
    return picture, steps


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("masked", [False, True], ids=["image to image", "inpainting"])
def test_same_latents_as_the_pipeline(
    model: Model, tiny_sd: Path, sampler: str, masked: bool
) -> None:
    kind: Any = StableDiffusionInpaintPipeline if masked else StableDiffusionImg2ImgPipeline
    pipeline: Any = kind.from_pretrained(tiny_sd, local_files_only=True, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = build_scheduler(sampler, pipeline.scheduler.config)
    start = Start(image=picture(), mask=half() if masked else None)
    pixels = torch.tensor(np.asarray(start.image)).permute(2, 0, 1)[None] / 255
    latents = model.to_latents(pixels)
    if masked:  # what it would sample from the VAE is its mean
        pipeline._encode_vae_image = lambda image, generator: latents
    expected = pipeline(
        "a fox",
        image=start.image if masked else latents,
        **({"mask_image": start.mask, "height": 16, "width": 16} if masked else {}),
        strength=0.6,
        num_inference_steps=5,
        guidance_scale=3,
        generator=[torch.Generator().manual_seed(7)],
        output_type="latent",
    ).images
    asked = Request(prompt="a fox", seed=7, steps=5, cfg_scale=3, sampler=sampler, strength=0.6)
    _, steps = made(model, asked, start)
    assert steps[-1].index + 1 == steps[-1].total == len(steps)
    torch.testing.assert_close(steps[-1].latents, expected, rtol=0, atol=1e-5)


def test_what_is_not_under_the_mask_stays_pixel_for_pixel(model: Model) -> None:
    start = Start(image=picture(), mask=half())
    done, _ = made(model, Request(prompt="a fox", seed=1, steps=4, strength=1.0), start)
    ours, theirs = np.asarray(done.image), np.asarray(start.image)
    assert np.array_equal(ours[:, :8], theirs[:, :8])
    assert not np.array_equal(ours[:, 8:], theirs[:, 8:])


def test_a_start_picture_of_any_size_is_cut_and_scaled(model: Model) -> None:
    asked = Request(prompt="a fox", seed=1, steps=4, strength=0.25, width=24, height=16)
    wide = Start(image=picture(64).convert("RGBA"), mask=Image.new("L", (5, 9), 255))
    done, steps = made(model, asked, wide)
    assert done.image.size == (24, 16) and len(steps) == 1


def test_a_second_pass_draws_the_same_picture_larger(model: Model) -> None:
    asked = Request(prompt="a fox", seed=3, steps=4, strength=0.5, cfg_scale=2)
    small, _ = made(model, asked)
    events = list(generate(model, Request.from_json({**asked.to_json(), "hires": 1.6})))
    steps = [event for event in events if isinstance(event, Step)]
    assert [step.index for step in steps] == list(range(6)) and {s.total for s in steps} == {6}
    (large,) = (event for event in events if isinstance(event, Picture))
    assert large.image.size == (26, 26) and large.request.hires == 1.6
    # it is what image to image makes of the enlarged picture
    start = Start(image=small.image.resize((26, 26), Image.Resampling.LANCZOS))
    again, _ = made(model, Request.from_json({**asked.to_json(), "width": 26, "height": 26}), start)
    assert np.array_equal(np.asarray(again.image), np.asarray(large.image))


def test_what_cannot_be_is_said_before_any_work(model: Model) -> None:
    start = Start(image=picture())
    with pytest.raises(ComposerError, match=r"strength of 0.1 is less than one of 4 .* least 0.25"):
        generate(model, Request(steps=4, strength=0.1), start=start)
    with pytest.raises(ComposerError, match=r"second pass .* give the start picture a larger"):
        generate(model, Request(hires=2), start=start)
    with pytest.raises(ComposerError, match=r"is 32768x32768 pixels; 8192 a side are the most"):
        generate(model, Request(hires=4, width=8192, height=8192))
    with pytest.raises(ComposerError, match=r"denoising strength"):
        Request(strength=0)
    with pytest.raises(ComposerError, match=r"factor of the second pass"):
        Request(hires=5)


def test_a_fingerprint_is_of_every_pixel_and_of_the_mask() -> None:
    start = Start(image=picture())
    other = picture()
    other.putpixel((3, 3), (1, 2, 3))
    different = [start, Start(image=other), Start(image=picture(), mask=half())]
    assert len({each.fingerprint() for each in different}) == 3
    assert Start(image=picture().convert("RGBA")).fingerprint() == start.fingerprint()


def test_the_command_begins_from_a_file(tiny_sd: Path, tmp_path: Path) -> None:
    picture().save(tmp_path / "start.png")
    half().save(tmp_path / "mask.png")
    words = ["generate", "a fox", "--model", str(tiny_sd), "--lora-dir", str(tmp_path)]
    words += ["--output", str(tmp_path / "out"), "--seed", "1", "--steps", "4"]
    begun = ["--start", str(tmp_path / "start.png"), "--mask", str(tmp_path / "mask.png")]
    ran = CliRunner().invoke(app, [*words, *begun, "--strength", "0.5"])
    assert ran.exit_code == 0, ran.output
    path = Path(ran.output.split()[-1])
    record = read_png(path)
    start = Start(image=picture(), mask=half())
    assert (record.request.strength, record.start) == (0.5, start.fingerprint())
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image)[:, :8], np.asarray(start.image)[:, :8])
        assert "Denoising strength: 0.5" in image.info["parameters"]
    again = CliRunner().invoke(app, [*words, "--again", str(path), "--hires", "2"])
    assert again.exit_code == 0 and "began from another one" in again.stderr
    larger = read_png(Path(again.stdout.split()[-1]))
    assert (larger.request.hires, larger.start) == (2, "")
    alone = CliRunner().invoke(app, [*words, "--mask", str(tmp_path / "mask.png")])
    assert alone.exit_code == 2 and "give it by --start" in alone.stderr
