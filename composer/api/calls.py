"""A call of A1111's txt2img or img2img, as a request of ours.

Every parameter is taken, or has a value that asks for nothing, or is named in a warning; a value
that cannot be read, or that names a file which is not loaded, is an error.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from PIL import Image, ImageFilter, ImageOps

from composer.diffusion.parameters import HIRES_UPSCALER, named_sampler
from composer.diffusion.png import READABLE, open_png, read_texts
from composer.diffusion.request import Request, Start
from composer.errors import ComposerError
from composer.fusions import read_pins, read_recipe
from composer.outside import number
from composer.studio import ComposeRequest, Status

SCRIPT = "Composer"
"""The name of the always-on script whose arguments are a fusion and pins."""
AUTOMATIC_VAE = "Automatic"
MAX_BLUR = 64
LEAST_HASH = 8  # digits

ANYTHING: tuple[object, ...] = ()
_ASKS_NOTHING: Mapping[str, tuple[object, ...]] = {
    # what A1111 itself does nothing with, unless something else is given that is named here
    "comments": ANYTHING,
    "do_not_save_grid": ANYTHING,
    "image_cfg_scale": ANYTHING,
    "override_settings_restore_afterwards": ANYTHING,
    "refiner_switch_at": ANYTHING,
    "s_tmax": ANYTHING,
    "s_tmin": ANYTHING,
    "script_args": ANYTHING,
    "subseed": ANYTHING,
    # docs/api.md: every picture is kept
    "save_images": ANYTHING,
    "disable_extra_networks": (False,),
    "do_not_save_samples": (False,),
    "firstphase_height": (0,),
    "firstphase_width": (0,),
    "force_task_id": ("",),
    "infotext": ("",),
    "initial_noise_multiplier": (1,),
    "refiner_checkpoint": ("", "None"),
    "restore_faces": (False,),
    "s_churn": (0,),
    "s_min_uncond": (0,),
    "s_noise": (1,),
    "script_name": ("", "None"),
    "seed_resize_from_h": (0, -1),
    "seed_resize_from_w": (0, -1),
    "styles": ([],),
    "subseed_strength": (0,),
    "tiling": (False,),
    # of a second pass
    "hr_additional_modules": ([], ["Use same choices"]),
    "hr_checkpoint_name": ("", "Use same checkpoint"),
    "hr_negative_prompt": ("",),
    "hr_prompt": ("",),
    "hr_sampler_name": ("", "Use same sampler"),
    "hr_scheduler": ("", "Use same scheduler"),
}
_NOISY = ("Euler a", "DPM2 a", "DPM++ SDE", "DPM++ 2M SDE")
"""The samplers in which `eta` is 1; of DDIM it is 0, and the others do not ask it."""
_OF_MASKS = (
    "mask_blur", "mask_blur_x", "mask_blur_y", "mask_round", "inpainting_mask_invert",
    "inpainting_fill", "inpaint_full_res", "inpaint_full_res_padding",
)  # fmt: skip
_OF_PICTURES = (*_OF_MASKS, "resize_mode", "include_init_images")
"""What says nothing without a picture to begin from."""
_STRETCH, _CROP = 0, 1  # resize_mode
_ORIGINAL = 1  # inpainting_fill
_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


@dataclass(frozen=True, kw_only=True)
class Call:
    """What a call asks for.

    given: which settings of the request it says. warnings: what of it is not done.
    """

    asked: ComposeRequest
    given: frozenset[str] = frozenset()
    warnings: tuple[str, ...] = ()
    send_images: bool = True


def options_of(status: Status) -> dict[str, Any]:
    """The options of A1111 that have a meaning here, as they are; none can be changed."""
    return {
        "sd_model_checkpoint": model_title(status),
        "sd_checkpoint_hash": status.model_hash,
        "sd_vae": status.vae or AUTOMATIC_VAE,
        "CLIP_stop_at_last_layers": Request().clip_skip,
        "samples_format": "png",
        "samples_save": True,
        "enable_pnginfo": True,
        "randn_source": "CPU",
        "eta_noise_seed_delta": 0,
        "live_previews_enable": True,
    }


def model_title(status: Status) -> str:
    """The loaded model as A1111 calls one: its name and the first digits of its hash."""
    return f"{status.model} [{status.model_hash[:10]}]"


def is_in_force(name: str, value: object, status: Status) -> bool:
    """Whether an option has that value already, in any of the ways to write it."""
    options = options_of(status)
    if value is None:
        return True
    if name in ("sd_model_checkpoint", "sd_checkpoint_hash"):
        said = str(value).strip()
        named = said.casefold().removesuffix(".safetensors")
        by_hash = len(said) >= LEAST_HASH and status.model_hash.startswith(said.casefold())
        return by_hash or named in ("", status.model.casefold(), model_title(status).casefold())
    if name == "sd_vae":
        own = ("", "none", AUTOMATIC_VAE.casefold())
        named = str(value).strip().casefold()
        return named == status.vae.casefold() or (not status.vae and named in own)
    return name in options and options[name] == value


def read_image(text: object, called: str) -> Image.Image:
    """The picture that base64 text holds, with or without a `data:` prefix.

    Raises:
        ComposerError: it is something else, or a picture that cannot be read.
    """
    with open_png(io.BytesIO(decoded(text, called)), READABLE, called=called) as image:
        image.load()
        return image.copy()


def texts_of(text: object, called: str) -> dict[str, str]:
    """What the picture in base64 text says of itself."""
    return read_texts(io.BytesIO(decoded(text, called)), called=called)


def decoded(text: object, called: str) -> bytes:
    """The bytes that base64 text holds.

    Raises:
        ComposerError: it is something else, an address among others.
    """
    if not isinstance(text, str):
        raise ComposerError(f"{called} is no text: give the picture's file as base64.")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ComposerError(
            f"{called} is not base64: give the picture's file as base64. Addresses are not opened."
        ) from None


def read_call(payload: Mapping[str, Any], status: Status, *, from_picture: bool) -> Call:
    """What a body of txt2img, or from a picture of img2img, asks for.

    Raises:
        ComposerError: a value cannot be read, or is out of its range.
    """
    given = _Given(payload)
    values: dict[str, Any] = {
        "prompt": given.text("prompt"),
        "negative_prompt": given.text("negative_prompt"),
        "seed": given.whole("seed"),
        "steps": given.whole("steps"),
        "cfg_scale": given.real("cfg_scale"),
        "width": given.whole("width"),
        "height": given.whole("height"),
        "clip_skip": given.whole("clip_skip"),
    }
    each, times = given.whole("batch_size"), given.whole("n_iter")
    if each is not None or times is not None:
        values["count"] = (1 if each is None else each) * (1 if times is None else times)
    by_index, schedule = given.text("sampler_index"), given.text("scheduler")
    if sampler := given.text("sampler_name") or by_index:
        values["sampler"], values["schedule"] = named_sampler(sampler, schedule or "")
    elif schedule:
        values["sampler"], values["schedule"] = named_sampler(Request().sampler, schedule)
    values |= given.overridden(status)
    recipe, pins = given.fusion()
    strength = given.real("denoising_strength")
    if from_picture:
        given.leave_out("enable_hr", "is for pictures of a prompt alone")
        given.left = {n: value for n, value in given.left.items() if not n.startswith("hr_")}
        values["strength"] = strength
    else:
        values |= given.hires(values, strength)
        for name in ("init_images", "mask"):
            given.leave_out(name, "is for img2img")
        for name in _OF_PICTURES:
            given.left.pop(name, None)
    values = {name: value for name, value in values.items() if value is not None}
    request = Request(**values)
    start = given.start(request) if from_picture else None
    send = given.yes("send_images")
    given.name_the_rest(request)
    return Call(
        asked=ComposeRequest(
            request=request, recipe=recipe, pins=pins, start=start, gate_map=recipe.gated
        ),
        given=frozenset(values),
        warnings=tuple(given.warnings),
        send_images=send is not False,
    )


@dataclass
class _Given:
    """The parameters of a call that are not taken yet; one that is null was not given."""

    payload: Mapping[str, Any]
    warnings: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        self.left = {name: value for name, value in self.payload.items() if value is not None}

    # --- one value; None if it is not given

    def text(self, name: str) -> str | None:
        value = self.left.pop(name, None)
        if value is None or isinstance(value, str):
            return value
        raise _wrong(name, value, "a text")

    def real(self, name: str, wanted: str = "a number") -> float | None:
        """A number, which some programs send as text."""
        value = self.left.pop(name, None)
        try:
            if isinstance(value, str):
                return number(float(value))
            return None if value is None else number(value)
        except ValueError:
            raise _wrong(name, value, wanted) from None

    def whole(self, name: str) -> int | None:
        value, wanted = self.left.get(name), "a whole number"
        if isinstance(value, int) and not isinstance(value, bool):
            return self.left.pop(name)  # seeds have more digits than a float
        if isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]{1,20}\s*", value):
            return int(self.left.pop(name))
        found = self.real(name, wanted)
        if found is None or found.is_integer():
            return None if found is None else int(found)
        raise _wrong(name, value, wanted)

    def yes(self, name: str) -> bool | None:
        value = self.left.pop(name, None)
        if value is None or isinstance(value, bool):
            return value
        if str(value).lower() in (*_TRUE, *_FALSE):
            return str(value).lower() in _TRUE
        raise _wrong(name, value, "true or false")

    def things(self, name: str) -> dict[str, Any]:
        value = self.left.pop(name, None)
        if value is None or isinstance(value, dict):
            return cast("dict[str, Any]", value or {})
        raise _wrong(name, value, "an object with names and values")

    def leave_out(self, name: str, why: str) -> None:
        """What is given has no place here."""
        if self.left.pop(name, None):
            self.warnings.append(f"{name} {why}, and left out.")

    # --- several that belong together

    def overridden(self, status: Status) -> dict[str, Any]:
        """The settings of a request among `override_settings`."""
        values: dict[str, Any] = {}
        settings = _Given(self.things("override_settings"))
        values["clip_skip"] = settings.whole("CLIP_stop_at_last_layers")
        for name, value in settings.left.items():
            if is_in_force(name, value, status):
                continue
            if name in ("sd_model_checkpoint", "sd_checkpoint_hash", "sd_vae"):
                loaded = options_of(status)[name]
                option = "--vae" if name == "sd_vae" else "--model"
                raise ComposerError(
                    f"{name} is {str(value)[:80]!r}, and {loaded!r} is loaded: start Composer with "
                    f"{option}, or leave it out of override_settings."
                )
            self.warnings.append(f"override_settings: {name} is not changed.")
        return {name: value for name, value in values.items() if value is not None}

    def fusion(self) -> tuple[Any, tuple[Any, ...]]:
        """How LoRAs are fused, and pins, by the arguments of the script of our name."""
        recipe, pins = ComposeRequest().recipe, ()
        for name, script in self.things("alwayson_scripts").items():
            if script is None:
                continue
            values: Any = script
            if isinstance(script, dict):
                values = cast("dict[str, Any]", script).get("args", [])
            arguments = cast("list[Any]", values if isinstance(values, list) else [values])
            if name.casefold() != SCRIPT.casefold():
                off = arguments[:1] == [False] or all(map(_is_off, arguments))
                if not off:
                    self.warnings.append(
                        f"alwayson_scripts: Composer has no {name!r}; the picture is without it."
                    )
                continue
            if len(arguments) > 2 or not all(isinstance(each, str) for each in arguments):
                raise ComposerError(
                    f"alwayson_scripts: the arguments of {SCRIPT} are a fusion, as in docs/"
                    'methods.md, and pins, each a text: ["regions"].'
                )
            if arguments and arguments[0]:
                recipe = read_recipe(arguments[0])
            pins = read_pins(arguments[1]) if len(arguments) > 1 else ()
        return recipe, pins

    def hires(self, values: Mapping[str, Any], strength: float | None) -> dict[str, Any]:
        """A second pass; without one, nothing that is for it counts."""
        wanted = self.yes("enable_hr")
        if not wanted:
            self.left = {n: value for n, value in self.left.items() if not n.startswith("hr_")}
            return {}
        factor = self.real("hr_scale")
        factor = 2.0 if factor is None else factor
        sides = {"width": self.whole("hr_resize_x"), "height": self.whole("hr_resize_y")}
        factors = {sides[side] / values[side] for side in sides if sides[side] and values.get(side)}
        if any(sides.values()):
            if len(factors) != 1:
                raise ComposerError(
                    "hr_resize_x and hr_resize_y are to be as many times the width and the height, "
                    "which must be given: change them, or give hr_scale."
                )
            (factor,) = factors
        upscaler = self.text("hr_upscaler") or HIRES_UPSCALER
        if upscaler != HIRES_UPSCALER:
            self.warnings.append(
                f"hr_upscaler is {upscaler[:60]!r}: pictures are enlarged by {HIRES_UPSCALER}."
            )
        if (steps := self.whole("hr_second_pass_steps")) not in (None, 0, values["steps"]):
            self.warnings.append(f"hr_second_pass_steps is {steps}: the second pass has as many.")
        if (scale := self.real("hr_cfg")) not in (None, values["cfg_scale"]):
            self.warnings.append(f"hr_cfg is {scale:g}: the second pass has the same CFG scale.")
        return {"hires": factor, "strength": strength}

    def start(self, request: Request) -> Start:
        """The picture to begin from, and its mask."""
        pictures, mask = self.left.pop("init_images", None), self.left.pop("mask", None)
        self.yes("include_init_images")  # only echoed by A1111
        listed = cast("list[Any]", pictures if isinstance(pictures, list) else [])
        if len(listed) != 1:
            raise ComposerError("init_images must be a list of one picture, as base64.")
        image = _flattened(read_image(listed[0], "The picture in init_images"))
        size = self._stretched(image, request)
        if mask is None or mask == "":
            for name in _OF_MASKS:
                self.left.pop(name, None)
            return Start(image=_resized(image, size))
        return Start(image=_resized(image, size), mask=_resized(self._mask(mask), size))

    def _mask(self, text: object) -> Image.Image:
        mask = read_image(text, "The mask")
        if mask.mode == "P":
            mask = mask.convert("RGBA")
        opacity = mask.getchannel("A") if "A" in mask.getbands() else None
        drawn = opacity is not None and opacity.getextrema() != (255, 255)
        mask = opacity if drawn and opacity is not None else mask.convert("L")
        if self.yes("inpainting_mask_invert"):
            mask = ImageOps.invert(mask)
        blur = self.real("mask_blur") or 0.0
        for name in ("mask_blur_x", "mask_blur_y"):
            if (other := self.real(name)) not in (None, blur):
                self.warnings.append(f"{name} is {other:g}: the mask is blurred by mask_blur.")
        if not 0 <= blur <= MAX_BLUR:
            raise ComposerError(f"mask_blur is {blur:g}: give a number from 0 to {MAX_BLUR}.")
        if (fill := self.whole("inpainting_fill")) not in (None, _ORIGINAL):
            self.warnings.append(
                f"inpainting_fill is {fill}: what is drawn anew begins from the picture, as by "
                f"{_ORIGINAL}."
            )
        self.left.pop("inpaint_full_res_padding", None)
        self.left.pop("mask_round", None)
        if self.yes("inpaint_full_res"):
            self.warnings.append("inpaint_full_res: the picture is drawn whole, at its own size.")
        return mask.filter(ImageFilter.GaussianBlur(blur)) if blur else mask

    def _stretched(self, image: Image.Image, request: Request) -> tuple[int, int] | None:
        """To which size the picture and its mask are stretched before `Start` cuts them to the
        request's proportions; A1111 stretches unless it is told otherwise."""
        mode = self.whole("resize_mode")
        mode = _STRETCH if mode is None else mode
        width, height = request.width, request.height
        if width is None or height is None or width * image.height == height * image.width:
            return None
        if mode not in (_STRETCH, _CROP):
            self.warnings.append(f"resize_mode is {mode}: the picture is cut to its proportions.")
        return (width, height) if mode == _STRETCH else None

    def name_the_rest(self, request: Request) -> None:
        """Warn of what is left and asks for something; refuse a script of its own."""
        eta = self.real("eta")
        usual = {"DDIM": 0.0, **dict.fromkeys(_NOISY, 1.0)}.get(request.sampler)
        if None not in (eta, usual) and eta != usual:
            self.warnings.append(f"eta is {eta:g}: {request.sampler} has {usual:g} here.")
        for name, value in self.left.items():
            nothing = _ASKS_NOTHING.get(name)
            if nothing is None:
                self.warnings.append(f"{name[:80]} is not known to Composer, and left out.")
            elif nothing and value not in nothing:
                if name == "script_name":
                    raise ComposerError(f"Composer has no script {str(value)[:80]!r}.")
                self.warnings.append(f"{name} is not possible here, and left out.")


def _is_off(argument: object) -> bool:
    """Whether an always-on script with this argument does nothing."""
    if isinstance(argument, dict):
        unit = cast("dict[str, Any]", argument)
        return unit.get("enabled", unit.get("enable", True)) is False
    return not argument


def _resized(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    return image if size is None else image.resize(size, Image.Resampling.LANCZOS)


def _flattened(image: Image.Image) -> Image.Image:
    """A picture without transparency; on white, as A1111."""
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _wrong(name: str, value: object, wanted: str) -> ComposerError:
    return ComposerError(f"{name} is {str(value)[:60]!r}: give {wanted}.")
