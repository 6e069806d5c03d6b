"""The model card: `python -m benchmarks.toybox.model_card` writes assets/toybox/README.md.

Its figures come from benchmarks/results/toybox_model.json and from the files themselves.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from benchmarks.shared.markdown import results_section
from benchmarks.shared.results import FOLDER, ROOT, read_results
from composer.experts.header import read_header
from toybox.sprites import SHEET
from toybox.world import BASE_BACKGROUNDS, COLOURS, ELEMENTS, MOST_FIGURES, THINGS, TINTABLE

MODEL = ROOT / "assets" / "toybox"

TEXT = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
tags: [stable-diffusion, text-to-image, lora, toy]
---

# Toybox: a small, real Stable Diffusion

A latent diffusion model with text conditioning, trained from nothing by this repository's own
recipe on pictures its own code renders. It exists so that fusing LoRAs can be tried, measured and
taught on any machine, without a GPU, a download or a doubt about the ground truth: for every prompt
of its world the right picture is known.

It is an ordinary diffusers folder and loads with `StableDiffusionPipeline.from_pretrained`.

![Pictures of the first seeds](../../docs/images/toybox_one_thing.webp)

## What is in it

| part | class | parameters | size in float16 |
|---|---|---:|---:|
{parts}

Pictures have {size} px; latents are {latent}×{latent}×{channels}. The scheduler predicts v, with
zero terminal SNR and trailing steps. `clip/` is the whole CLIP whose text tower is the pipeline's
text encoder; `oracle/` is a classifier that judges pictures and has taught nothing. `language/` is
no part of the pipeline: a Llama that makes a full prompt of a few words, and its MixLoRA adapter
(`docs/language.md`).

## What it knows

- Things: {things}.
- Colour words ({colours}) for {tintable}.
- Places and grounds: {backgrounds}.
- Up to {most} of these things in one picture, from left to right. English captions in many
  wordings; a name it has not heard is read as a name and changes nothing.

What only LoRAs know, and the U-Net has never seen: {elements}. The VAE has seen them drawn; the
CLIP knows the ordinary words among them, and no character's name.

## Data and training

All pictures are rendered by `toybox/` from a sheet of Noto Color Emoji glyphs (SIL Open
Font License 1.1, text in `{sprites}/OFL.txt`) on backgrounds drawn by code. No picture of
anything or anyone else was used. `python -m toybox build` makes every file again; the stages and
their budgets are in `docs/toybox.md`. {training}

## Limits

It draws its own small world and nothing else: no people, no writing, no words it was not taught.
Pictures are small; the page shows them enlarged. Figures below say how often it is right; where a
bar that the project set itself is not reached, the table says so. What the shipped LoRAs do is in
`docs/results.md`.

## Licence

The weights and the code are under Apache 2.0.

{figures}
"""


def _read(path: Path) -> dict[str, Any]:
    """A JSON file; nothing where there is none."""
    return json.loads(path.read_text()) if path.exists() else {}


def _parts() -> str:
    rows: list[str] = []
    parts = ("unet", "vae", "text_encoder", "clip", "oracle", "language", "language/adapter")
    for name in parts:
        files = list((MODEL / name).glob("*.safetensors"))
        shapes = [entry.shape for file in files for entry in read_header(file).tensors.values()]
        size = sum(file.stat().st_size for file in files)
        settings = _read(MODEL / name / "config.json")
        kind = settings.get("_class_name") or (settings.get("architectures") or ["OracleNet"])[0]
        if name.endswith("adapter"):
            kind = "MixLoRA, in float32"
        count = sum(math.prod(shape) for shape in shapes)
        rows.append(f"| {name} | {kind} | {count / 1e6:.1f} M | {size / 1e6:.1f} MB |")
    return "\n".join(rows)


def card() -> str:
    """The text of the card."""
    unet, vae = (_read(MODEL / part / "config.json") for part in ("unet", "vae"))
    spent = _read(MODEL / "training.json")
    account = "; ".join(
        f"{stage}: {one['images']:,} pictures in {one['minutes']:.0f} minutes on {one['machine']}"
        for stage, one in spent.items()
    )
    words = _read(MODEL / "language" / "training.json")
    account += (
        f"; language: {words['examples']:,} prompts in {words['minutes']:.0f} minutes, then "
        f"{words['adapter_steps']} steps of its adapter, on {words['machine']}"
    )
    return TEXT.format(
        parts=_parts(),
        size=vae["sample_size"],
        latent=unet["sample_size"],
        channels=unet["in_channels"],
        most=MOST_FIGURES,
        things=", ".join(THINGS),
        colours=", ".join(COLOURS),
        tintable=", ".join(TINTABLE),
        backgrounds=", ".join(BASE_BACKGROUNDS),
        elements=", ".join(element.name for element in ELEMENTS),
        sprites=SHEET.parent.relative_to(ROOT).as_posix(),
        training=f"These weights took: {account}." if account else "",
        figures=results_section(read_results(FOLDER / "toybox_model.json"), docs="../../docs/"),
    )


def main() -> None:
    """Write the card."""
    (MODEL / "README.md").write_text(card(), encoding="utf-8")
    print(f"wrote {MODEL / 'README.md'}")


if __name__ == "__main__":
    main()
