"""The families of Stable Diffusion: what differs between them, as data that everything else reads.

A part is a network of the model that LoRAs can change, by its name in a diffusers folder: "unet",
"text_encoder", "text_encoder_2".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

Places = tuple[str, ...]
"""One block of a model, as beginnings of the names of its sites."""


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """One of a family's text encoders.

    part, tokenizer: the folders of a diffusers model that hold it.
    kohya: how sd-scripts begins the names of its modules.
    comfyui: what ComfyUI calls it.
    pads: the token that fills up a prompt; the end of text where it is empty.
    """

    part: str
    tokenizer: str
    kohya: str
    comfyui: str
    pads: str = ""


@dataclass(frozen=True, kw_only=True)
class Family:
    """What a model's text encoders are and how the U-Net reads them.

    name: for people.
    text_width: of the vectors that the U-Net's cross-attention reads.
    encoders: their vectors are joined along the width, in this order.
    last: which layer from the end is read without clip skip. The last is normalised, and so is any
        other of a family that reads the last; a family that reads an earlier one takes it as it is.
    pooled: the part whose projected end of text joins the timestep, with the picture's sizes
        (arXiv 2307.01952, section 2.2); empty where there is none.
    kohya, modelspec: the family in the metadata of sd-scripts and of modelspec.
    stages: of the U-Net, on the way down and again on the way up.
    attention: those that have attention, down and up.
    pipeline: diffusers' class.
    config: the configs of its published model, in `composer/diffusion/configs`; empty for a family
        that is not one of FAMILIES.
    """

    name: str
    text_width: int
    encoders: tuple[Encoder, ...]
    last: int = 1
    pooled: str = ""
    kohya: str = ""
    modelspec: str = ""
    stages: int = 4
    attention: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    pipeline: str = "StableDiffusionPipeline"
    config: str = ""

    @property
    def parts(self) -> tuple[str, ...]:
        """All parts that LoRAs change."""
        return ("unet", *(encoder.part for encoder in self.encoders))

    @property
    def layouts(self) -> dict[int, tuple[Places, ...]]:
        """What each number of a string of block weights (LBW) stands for, by how many there are.

        The first is for the text encoders. The others are for the blocks of the original code in
        its order: IN00, IN01, ..., M00, OUT00, ...: in the longer string for all, in the shorter
        for those with attention.
        """
        blocks = tuple(self._blocks())
        short = tuple(places for places, attends in blocks if attends)
        return {len(layout): layout for layout in (short, tuple(places for places, _ in blocks))}

    def _blocks(self) -> Iterator[tuple[Places, bool]]:
        """Each with whether the shorter string has a number for it."""
        down, up = self.attention
        yield self.parts[1:], True
        yield ("unet.conv_in",), False
        for stage in range(self.stages):
            begun = f"unet.down_blocks.{stage}"
            for place in (0, 1):
                yield (f"{begun}.attentions.{place}", f"{begun}.resnets.{place}"), stage in down
            if stage < self.stages - 1:
                yield (f"{begun}.downsamplers.0",), False
        yield ("unet.mid_block",), True
        for stage in range(self.stages):
            begun = f"unet.up_blocks.{stage}"
            for place in (0, 1, 2):
                last = place == 2 and stage < self.stages - 1
                more = (f"{begun}.upsamplers.0",) if last else ()
                both = (f"{begun}.attentions.{place}", f"{begun}.resnets.{place}")
                yield both + more, stage in up


_ONE = Encoder(part="text_encoder", tokenizer="tokenizer", kohya="lora_te_", comfyui="clip_l")
STABLE_DIFFUSION_1 = Family(
    name="Stable Diffusion 1.x",
    text_width=768,
    encoders=(_ONE,),
    kohya="sd_v1",
    modelspec="stable-diffusion-v1",
    attention=((0, 1, 2), (1, 2, 3)),
    config="sd1",
)
STABLE_DIFFUSION_2 = Family(
    name="Stable Diffusion 2.x",
    text_width=1024,
    encoders=(replace(_ONE, comfyui="clip_h", pads="!"),),
    kohya="sd_v2",
    modelspec="stable-diffusion-v2",
    attention=STABLE_DIFFUSION_1.attention,
    config="sd2",
)
SDXL = Family(
    name="SDXL",
    text_width=2048,
    encoders=(
        replace(_ONE, kohya="lora_te1_"),
        Encoder(
            part="text_encoder_2",
            tokenizer="tokenizer_2",
            kohya="lora_te2_",
            comfyui="clip_g",
            pads="!",
        ),
    ),
    last=2,
    pooled="text_encoder_2",
    kohya="sdxl_base_v1-0",
    modelspec="stable-diffusion-xl-v1-base",
    stages=3,
    attention=((1, 2), (0, 1)),
    pipeline="StableDiffusionXLPipeline",
    config="sdxl",
)
FAMILIES = (STABLE_DIFFUSION_1, STABLE_DIFFUSION_2, SDXL)


def find_family(text_width: int, parts: Iterable[str] = ()) -> Family:
    """The family that reads text of this width; for a width that none has, one made like the
    family that has the same `parts` (one text encoder, if they are not known)."""
    wanted = {"unet", "text_encoder", *parts}
    alike = [family for family in FAMILIES if set(family.parts) == wanted]
    for family in alike if parts else FAMILIES:
        if family.text_width == text_width:
            return family
    like = alike[0] if alike else STABLE_DIFFUSION_1
    return replace(
        like,
        name=f"a model with text width {text_width}",
        text_width=text_width,
        kohya="",
        modelspec="",
        config="",
    )


def named(attribute: str) -> dict[str, str]:
    """What "kohya" or "comfyui" call each text encoder → its part, over all families."""
    encoders = (encoder for family in FAMILIES for encoder in family.encoders)
    return {getattr(encoder, attribute): encoder.part for encoder in encoders}
