"""What a body of A1111's API comes to: taken, asking for nothing, or named in a warning."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from PIL import Image

from composer.api.calls import is_in_force, options_of, read_call, read_image
from composer.diffusion.request import Request
from composer.errors import ComposerError
from composer.fusions import Pin, Regions
from composer.studio import Status

MODEL = Status(state="ready", model="dream", model_hash="0123456789abcdef" * 4, size=512)
SILLYTAVERN: dict[str, Any] = {
    # as its image generation sends with a restored face and a second pass switched off
    "prompt": "a fox", "negative_prompt": "fog", "sampler_name": "DPM++ 2M", "scheduler": "karras",
    "steps": 20, "cfg_scale": 7, "width": 512, "height": 768, "restore_faces": False,
    "enable_hr": False, "hr_upscaler": "Latent", "hr_scale": 2, "hr_additional_modules": [],
    "denoising_strength": 0.7, "hr_second_pass_steps": 0, "seed": 5, "clip_skip": 2,
    "override_settings": {"CLIP_stop_at_last_layers": 2, "sd_vae": "Automatic"},
    "override_settings_restore_afterwards": True, "save_images": True, "send_images": True,
    "do_not_save_grid": False, "do_not_save_samples": False,
}  # fmt: skip
# What A1111's own page of its routes offers to try, but for the names in quotes.
SWAGGER: dict[str, Any] = {
    "prompt": "", "negative_prompt": "", "styles": [], "seed": -1, "subseed": -1,
    "subseed_strength": 0, "seed_resize_from_h": -1, "seed_resize_from_w": -1, "batch_size": 1,
    "n_iter": 1, "steps": 50, "cfg_scale": 7, "width": 512, "height": 512, "restore_faces": False,
    "tiling": False, "do_not_save_samples": False, "do_not_save_grid": False, "eta": 0,
    "denoising_strength": 0, "s_min_uncond": 0, "s_churn": 0, "s_tmax": 0, "s_tmin": 0,
    "s_noise": 1, "override_settings": {}, "refiner_checkpoint": None, "refiner_switch_at": 0,
    "disable_extra_networks": False, "comments": {}, "enable_hr": False, "firstphase_width": 0,
    "firstphase_height": 0, "hr_scale": 2, "hr_prompt": "", "sampler_index": "Euler",
    "script_name": None, "script_args": [], "alwayson_scripts": {}, "force_task_id": None,
}  # fmt: skip


def read(from_picture: bool = False, **payload: Any) -> Any:
    return read_call(payload, MODEL, from_picture=from_picture)


def encoded(image: Image.Image, kind: str = "PNG") -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


def halves(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Black, and white on the right."""
    image = Image.new(mode, (width, height), "black")
    image.paste("white", (width // 2, 0, width, height))
    return image


def test_what_programs_send_by_themselves_is_done_without_a_warning() -> None:
    call = read(**SILLYTAVERN)
    assert call.warnings == ()
    expected = Request(
        prompt="a fox", negative_prompt="fog", sampler="DPM++ 2M", schedule="Karras", width=512,
        height=768, seed=5, clip_skip=2,
    )  # fmt: skip
    assert call.asked.request == expected
    assert read(**SWAGGER).warnings == ()
    assert read(**SWAGGER).asked.request.sampler == "Euler"


def test_what_is_left_out_or_null_is_as_usual_here() -> None:
    assert read(prompt="a fox").asked.request == Request(prompt="a fox")
    nothing = dict.fromkeys((*SILLYTAVERN, *SWAGGER), None)
    assert read(**nothing).asked.request == Request()
    assert read(**nothing).given == frozenset()
    assert {"steps", "sampler"} <= read(**SILLYTAVERN).given


@pytest.mark.parametrize(
    ("sampler", "schedule", "expected"),
    [
        ("DPM++ 2M Karras", None, ("DPM++ 2M", "Karras")),
        ("DPM++ 2M Karras", "automatic", ("DPM++ 2M", "Karras")),
        ("DPM++ 2M", "Automatic", ("DPM++ 2M", "Karras")),  # as A1111 means it
        ("DPM++ 2M", None, ("DPM++ 2M", "Automatic")),
        ("k_euler_a", "sgm_uniform", ("Euler a", "SGM Uniform")),
        ("DDIM", "automatic", ("DDIM", "Automatic")),
    ],
)
def test_samplers_and_schedules_by_the_names_of_others(
    sampler: str, schedule: str | None, expected: tuple[str, str]
) -> None:
    request = read(sampler_name=sampler, scheduler=schedule).asked.request
    assert (request.sampler, request.schedule) == expected


def test_numbers_may_be_text_and_pictures_are_counted_together() -> None:
    request = read(steps="12", cfg_scale="4.5", seed=2**60 + 1, batch_size=2, n_iter="3").asked
    assert (request.request.steps, request.request.cfg_scale) == (12, 4.5)
    assert request.request.seed == 2**60 + 1 and request.request.count == 6


@pytest.mark.parametrize(
    ("payload", "named"),
    [
        ({"restore_faces": True}, "restore_faces"),
        ({"tiling": True}, "tiling"),
        ({"styles": ["anime"]}, "styles"),
        ({"subseed_strength": 0.2}, "subseed_strength"),
        ({"refiner_checkpoint": "other"}, "refiner_checkpoint"),
        ({"do_not_save_samples": True}, "do_not_save_samples"),
        ({"distilled_cfg_scale": 3.5}, "distilled_cfg_scale"),
        ({"eta": 0.5, "sampler_name": "Euler a"}, "eta"),
        ({"eta": 1, "sampler_name": "DDIM"}, "eta"),
        ({"override_settings": {"eta_noise_seed_delta": 31337}}, "eta_noise_seed_delta"),
        ({"alwayson_scripts": {"ADetailer": {"args": [True, {"ad_model": "f"}]}}}, "ADetailer"),
        ({"alwayson_scripts": {"ControlNet": {"args": [{"image": "x"}]}}}, "ControlNet"),
        ({"enable_hr": True, "hr_upscaler": "Latent"}, "hr_upscaler"),
        ({"enable_hr": True, "hr_second_pass_steps": 9}, "hr_second_pass_steps"),
        ({"enable_hr": True, "hr_prompt": "a cat"}, "hr_prompt"),
        ({"init_images": ["AAAA"], "mask_blur": 4, "resize_mode": 2}, "init_images"),
    ],
)
def test_what_is_not_done_is_named(payload: dict[str, Any], named: str) -> None:
    (warning,) = read(**payload).warnings
    assert named in warning


@pytest.mark.parametrize(
    "script",
    [{}, {"args": []}, {"args": [False]}, {"args": [False, {}]}, {"args": [{"enabled": False}]}],
)
def test_a_script_that_is_off_is_no_matter(script: dict[str, Any]) -> None:
    assert read(alwayson_scripts={"ADetailer": script}).warnings == ()


def test_a_fusion_and_pins_are_the_arguments_of_our_script() -> None:
    asked = read(alwayson_scripts={"composer": {"args": ["regions", "mid_block: zibo=1"]}}).asked
    assert isinstance(asked.recipe, Regions) and asked.pins == (Pin.read("mid_block: zibo=1"),)
    for arguments in ([1], ["a", "b", "c"], ["nothing"]):
        with pytest.raises(ComposerError, match="fusion"):
            read(alwayson_scripts={"Composer": {"args": arguments}})


def test_a_second_pass_to_a_size() -> None:
    base = {"enable_hr": True, "width": 64, "height": 96}
    assert read(**base).asked.request.hires == 2
    assert read(**base, hr_resize_x=96, hr_resize_y=144).asked.request.hires == 1.5
    assert read(**base, hr_resize_x=96, hr_resize_y=0).asked.request.hires == 1.5
    with pytest.raises(ComposerError, match="hr_resize_x"):
        read(**base, hr_resize_x=96, hr_resize_y=96)


def test_only_the_loaded_model_and_vae_may_be_named() -> None:
    titles = ("dream", "dream.safetensors", "Dream [0123456789]", "0123456789", MODEL.model_hash)
    for title in (*titles, "", None):
        assert is_in_force("sd_model_checkpoint", title, MODEL), title
        assert read(override_settings={"sd_model_checkpoint": title}).warnings == ()
    for name, value in (("sd_model_checkpoint", "other"), ("sd_vae", "mse.safetensors")):
        assert not is_in_force(name, value, MODEL)
        with pytest.raises(ComposerError, match=f"{name} is '{value}'.*is loaded"):
            read(override_settings={name: value})
    assert all(is_in_force(name, value, MODEL) for name, value in options_of(MODEL).items())


# --- pictures to begin from


def test_a_picture_is_stretched_or_cut_as_it_is_asked() -> None:
    wide = encoded(halves(32, 16))
    size = {"width": 16, "height": 16}
    stretched = read(True, init_images=[wide], **size).asked.start.image
    assert stretched.size == (16, 16) and stretched.getpixel((2, 8)) == (0, 0, 0)
    assert stretched.getpixel((13, 8)) == (255, 255, 255)
    assert read(True, init_images=[wide], resize_mode=1, **size).asked.start.image.size == (32, 16)
    filled = read(True, init_images=[wide], resize_mode=2, **size)
    assert "resize_mode" in filled.warnings[0]
    same = read(True, init_images=[wide], width=64, height=32, resize_mode=2)
    assert same.warnings == () and same.asked.start.image.size == (32, 16)


def test_transparent_is_white_and_masks_may_be_transparency() -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    mask = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    mask.paste((0, 0, 0, 255), (4, 0, 8, 8))
    call = read(True, init_images=[encoded(image)], mask="data:image/png;base64," + encoded(mask))
    assert call.asked.start.image.getpixel((0, 0)) == (255, 255, 255)
    assert [call.asked.start.mask.getpixel((x, 4)) for x in (3, 4)] == [0, 255]


def test_a_mask_is_blurred_and_inverted() -> None:
    mask = encoded(halves(32, 32, "L"))
    plain = {"init_images": [encoded(halves(32, 32))], "mask": mask}
    sharp = read(True, **plain).asked.start.mask
    assert {sharp.getpixel((x, 16)) for x in range(32)} == {0, 255}
    soft = read(True, **plain, mask_blur=3, inpainting_mask_invert=1).asked.start.mask
    row = [soft.getpixel((x, 16)) for x in range(32)]
    assert row[0] == 255 and row[-1] == 0 and 100 < row[15] < 155
    assert row == sorted(row, reverse=True)


@pytest.mark.parametrize(
    ("name", "value"), [("inpainting_fill", 0), ("inpaint_full_res", True), ("mask_blur_x", 9)]
)
def test_what_masks_cannot_do_is_named(name: str, value: object) -> None:
    picture = encoded(halves(16, 16))
    (warning,) = read(True, init_images=[picture], mask=picture, **{name: value}).warnings
    assert name in warning
    assert read(True, init_images=[picture], **{name: value}).warnings == ()  # without a mask


def test_a_second_pass_is_for_pictures_of_a_prompt() -> None:
    payload = {"init_images": [encoded(halves(16, 16))], "hr_scale": 2}
    assert read(True, **payload, enable_hr=False).warnings == ()
    (warning,) = read(True, **payload, enable_hr=True).warnings
    assert "enable_hr" in warning


def test_only_pictures_in_base64_are_read() -> None:
    for text, said in (
        ("http://192.168.0.1/a.png", "not base64"),
        ("file:///etc/passwd", "not base64"),
        ("AAAA", "cannot be read"),
        (encoded(halves(4, 4), "GIF"), "cannot be read"),
        (7, "no text"),
        (encoded(halves(4, 4))[:60], "It"),
    ):
        with pytest.raises(ComposerError) as error:
            read_image(text, "It")
        assert said in str(error.value)
    for pictures in (None, [], ["AAAA", "AAAA"], "AAAA"):
        with pytest.raises(ComposerError, match="list of one picture"):
            read(True, init_images=pictures)
