"""Our sampler against diffusers' pipeline, and its invariants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.diffusion.request import Request
from composer.diffusion.sample import Picture, Step, generate
from composer.diffusion.samplers import SAMPLERS, build_scheduler
from composer.errors import ComposerError


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> Model:
    return load_model(tiny_sd)


def run(model: Model, request: Request, **options: Any) -> tuple[list[Step], list[Picture]]:
    events = list(generate(model, request, **options))
    steps = [event for event in events if isinstance(event, Step)]
    return steps, [event for event in events if isinstance(event, Picture)]


def pixels(picture: Picture) -> bytes:
    return picture.image.tobytes()


@pytest.mark.parametrize("sampler", ["DDIM", "Euler", "DPM++ 2M", "Euler a", "PNDM", "Heun"])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("folder", ["tiny_sd", "tiny_zero_snr_sd", "tiny_sdxl"])
def test_same_latents_as_the_pipeline(
    folder: str, count: int, sampler: str, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(folder)
    model = load_model(path)
    # with our modules: how products are rounded depends on where in memory weights begin
    parts = {"unet": model.unet, "vae": model.vae}
    parts |= {part: encoder.network for part, encoder in model.encoders.items()}
    pipeline: Any = DiffusionPipeline.from_pretrained(path, local_files_only=True, **parts)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = build_scheduler(sampler, pipeline.scheduler.config)
    asked = Request(
        prompt="a fox",
        negative_prompt="blue",
        seed=5,
        steps=4,
        cfg_scale=5,
        sampler=sampler,
        count=count,
    )
    expected = pipeline(
        "a fox",
        negative_prompt="blue",
        num_inference_steps=4,
        guidance_scale=5,
        num_images_per_prompt=count,
        generator=[torch.Generator().manual_seed(5 + i) for i in range(count)],
        output_type="latent",
    ).images
    steps, pictures = run(model, asked)
    # Both do the same float32 arithmetic; only the batching of the text encoder differs.
    torch.testing.assert_close(steps[-1].latents, expected, rtol=0, atol=1e-5)
    assert [p.seed for p in pictures] == [5 + i for i in range(count)]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_picture_is_the_same_alone_and_in_a_batch(model: Model, sampler: str) -> None:
    asked = Request(prompt="a fox", seed=3, steps=4, sampler=sampler, count=3)
    batch, _ = run(model, asked)
    for i in range(3):
        alone, _ = run(model, Request(prompt="a fox", seed=3 + i, steps=4, sampler=sampler))
        # Batched matrix products may round the last bits otherwise than single ones, and the
        # random U-Net magnifies that.
        torch.testing.assert_close(batch[-1].latents[i], alone[-1].latents[0], rtol=1e-3, atol=1e-3)


def test_batch_size_changes_nothing_but_the_batches(model: Model) -> None:
    asked = Request(prompt="a fox", seed=3, steps=2, sampler="Euler a", count=3)
    steps, together = run(model, asked)
    assert {step.pictures for step in steps} == {range(3)}
    steps, apart = run(model, asked, batch_size=2)
    assert [step.index for step in steps] == [0, 1, 2, 3]
    assert {step.pictures for step in steps} == {range(2), range(2, 3)}
    assert all(step.total == 4 for step in steps)
    for one, other in zip(together, apart, strict=True):
        assert one.seed == other.seed
        difference = torch.frombuffer(bytearray(pixels(one)), dtype=torch.uint8).int()
        difference -= torch.frombuffer(bytearray(pixels(other)), dtype=torch.uint8).int()
        assert difference.abs().max() <= 1


def test_the_same_request_gives_the_same_bits_and_leaves_the_global_seed_alone(
    model: Model,
) -> None:
    asked = Request(prompt="a fox", seed=3, steps=3, sampler="Euler a")
    before = torch.get_rng_state()
    (one,), (other,) = run(model, asked)[1], run(model, asked)[1]
    assert pixels(one) == pixels(other)
    assert torch.equal(before, torch.get_rng_state())


def test_a_picture_names_the_request_that_makes_it_alone(model: Model) -> None:
    _, pictures = run(model, Request(prompt="a fox", seed=2**64 - 1, steps=2, count=2))
    assert [p.seed for p in pictures] == [2**64 - 1, 0]
    again = run(model, pictures[1].request)[1][0]
    assert again.request == pictures[1].request
    assert (again.request.width, again.request.height, again.request.count) == (16, 16, 1)


def test_without_guidance_the_unet_sees_the_prompt_alone(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    forward = model.unet.forward
    monkeypatch.setattr(
        model.unet, "forward", lambda x, *a, **k: rows.append(len(x)) or forward(x, *a, **k)
    )
    run(model, Request(prompt="a fox", seed=1, steps=1, cfg_scale=1))
    run(model, Request(prompt="a fox", seed=1, steps=1, cfg_scale=2))
    assert rows == [1, 2]


def test_cancel_acts_within_one_step(model: Model) -> None:
    seen: list[Step | Picture] = []
    events = generate(model, Request(seed=1, steps=50), cancelled=lambda: len(seen) == 2)
    for event in events:
        seen.append(event)
    assert len(seen) == 2
    assert all(isinstance(event, Step) for event in seen)


def test_each_pass_of_each_batch_is_announced(model: Model) -> None:
    told: list[tuple[int, int]] = []
    request = Request(seed=1, steps=3, width=16, height=16, count=2)
    pieces = generate(
        model, request, batch_size=1, before_step=lambda i, total: told.append((i, total))
    )
    for piece in pieces:
        if isinstance(piece, Step):
            assert len(told) == piece.index + 1
    assert told == [(0, 3), (1, 3), (2, 3)] * 2


def test_gradients_stay_on_for_the_caller(model: Model) -> None:
    for _ in generate(model, Request(seed=1, steps=2)):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()


def test_previews_and_time_left(model: Model) -> None:
    steps, _ = run(model, Request(seed=1, steps=6, count=2), preview_every=3)
    assert [step.preview is not None for step in steps] == [False, False, True] * 2
    assert steps[2].preview is not None and steps[2].preview.size == (32, 16)
    assert steps[0].seconds_left > steps[-1].seconds_left == 0


def test_any_size_that_fits_is_made_and_others_are_refused(model: Model) -> None:
    _, (picture,) = run(model, Request(seed=1, steps=1, width=18, height=24))
    assert picture.image.size == (18, 24)
    with pytest.raises(ComposerError, match=r"width 17 .* multiple of 2 .* 16 or 18"):
        generate(model, Request(width=17))


def test_broken_weights_stop_with_a_message(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = model.unet.forward

    def broken(*arguments: Any, **named: Any) -> tuple[torch.Tensor]:
        return (forward(*arguments, **named)[0] * float("nan"),)

    monkeypatch.setattr(model.unet, "forward", broken)
    with pytest.raises(ComposerError, match=r"lost at step 1.*Lower the weights"):
        run(model, Request(seed=1, steps=3))


def test_a_tag_in_the_negative_prompt_is_refused_before_any_work(model: Model) -> None:
    with pytest.raises(ComposerError, match=r"negative prompt holds the tag '<lora:neon:0.5>'"):
        generate(model, Request(prompt="a fox", negative_prompt="<lora:neon:0.5> blurry"))
