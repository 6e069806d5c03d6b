"""Stage 2: a tiny CLIP. Its text tower is the pipeline's text encoder.

Contrastive, with throw-away heads: each tower also names what the scene holds (first and second
figure, colours, clothing, background, style). They are what teaches left and right and colour to
so small a model, and are not kept. Like the CLIP of a real Stable Diffusion it knows ordinary words
that the U-Net has never drawn ("neon", "robot", "top hat"), and no character: it learns only that
Zibo is a fox of some made-up name. It sees blurred and noisy renderings too, so that it can judge
generated pictures.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from composer.precision import autocast
from toybox.captions import caption, made_up_name
from toybox.loop import Stage, load_average, run_stage
from toybox.networks import seed_torch, token_ids
from toybox.optimizer import MuonAdamW
from toybox.render import SIZE, render
from toybox.stage_vae import to_tensor
from toybox.tokens import MAX_LENGTH
from toybox.world import (
    BACKGROUNDS,
    CHARACTERS,
    CLOTHING,
    COLOURS,
    LORA_OBJECTS,
    STYLES,
    THINGS,
    Scene,
    random_any_scene,
    random_scene,
)

_WIDTH = 128
_NAMES = tuple(dict.fromkeys((*THINGS, *LORA_OBJECTS, *CHARACTERS.values())))
_ANSWERS: dict[str, tuple[str | None, ...]] = {
    "first": _NAMES,
    "second": (None, *_NAMES),
    "first_colour": (None, *COLOURS),
    "second_colour": (None, *COLOURS),
    "first_wears": (None, *CLOTHING),
    "second_wears": (None, *CLOTHING),
    "background": BACKGROUNDS,
    "style": (None, *STYLES),
}


def new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Text 4×128 and a 4×128 vision transformer on patches of 8 px, projected to 128."""
    shared = {
        "hidden_size": _WIDTH,
        "intermediate_size": 4 * _WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "projection_dim": _WIDTH,
        "hidden_act": "quick_gelu",
    }
    text = shared | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = shared | {"image_size": SIZE, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=_WIDTH))


class _Taught(nn.Module):
    """The CLIP with its throw-away heads, one set for each tower."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip
        self.text_heads = _heads()
        self.image_heads = _heads()


def _heads() -> nn.ModuleDict:
    return nn.ModuleDict({key: nn.Linear(_WIDTH, len(said)) for key, said in _ANSWERS.items()})


def labels(scenes: list[Scene]) -> dict[str, Tensor]:
    """What the heads are to say of each scene: answer numbers by head, (scenes,) each."""
    found: dict[str, list[int]] = {key: [] for key in _ANSWERS}
    for scene in scenes:
        answers: dict[str, str | None] = {"background": scene.background, "style": scene.style}
        for place, figure in zip(("first", "second"), (*scene.figures, None), strict=False):
            name = figure and CHARACTERS.get(figure.name, figure.name)
            answers |= {place: name, f"{place}_colour": figure and figure.colour}
            answers |= {f"{place}_wears": figure and figure.wears}
        for key, said in _ANSWERS.items():
            found[key].append(said.index(answers[key]))
    return {key: torch.tensor(values) for key, values in found.items()}


def worded(scene: Scene, rng: random.Random) -> str:
    """A caption in which a character is a fox, a robot or a unicorn of some made-up name."""
    words = caption(scene, rng)
    for name, species in CHARACTERS.items():
        called = made_up_name(rng) if rng.random() < 0.5 else "a"
        words = words.replace(f"{name} {species}", f"{called} {species}")
    return words


def blurred(x: Tensor) -> Tensor:
    """Half of the pictures softened or made noisy, as generated ones are."""
    low = functional.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True)
    soft = functional.interpolate(low, size=x.shape[-2:], mode="bilinear")
    mix = torch.rand(len(x), 1, 1, 1) * (torch.rand(len(x), 1, 1, 1) < 0.5)
    noise = torch.randn_like(x) * 0.12 * torch.rand(len(x), 1, 1, 1)
    return x + mix * (soft - x) + noise * (torch.rand(len(x), 1, 1, 1) < 0.4)


def train_clip(stage: Stage, tokenizer: CLIPTokenizer) -> CLIPModel:
    """Train both towers; returns the CLIP without its heads."""
    seed_torch(stage.seed)
    model = _Taught(new_clip(tokenizer)).to(stage.device)
    clip = model.clip
    rng = stage.rng()
    optimizer = MuonAdamW(model, muon_lr=0.02, adam_lr=2e-3)
    eos = int(cast(Any, tokenizer).eos_token_id)

    def loss(_: float) -> tuple[Tensor, dict[str, float], int]:
        scenes = [
            random_scene(rng, counts=(0.4, 0.6)) if rng.random() < 0.6 else random_any_scene(rng)
            for _ in range(96)
        ]
        x = blurred(to_tensor([render(s, rng) for s in scenes])).to(stage.device)
        words = [worded(s, rng) for s in scenes]
        # the tower is causal: what stands after the end token changes nothing, so it is cut
        tokens = token_ids(tokenizer, words, padding=True).to(stage.device)
        with autocast("auto", stage.device):
            hidden = clip.text_model(input_ids=tokens).last_hidden_state
            at_end = (tokens == eos).int().argmax(1)
            text = hidden[torch.arange(len(hidden)), at_end]
            image = clip.vision_model(pixel_values=x).pooler_output
            t = functional.normalize(clip.text_projection(text).float(), dim=-1)
            i = functional.normalize(clip.visual_projection(image).float(), dim=-1)
        logits = clip.logit_scale.exp().clamp(max=50) * t @ i.T
        target = torch.arange(len(scenes), device=logits.device)
        both = functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)
        total = both / 2
        truth = {key: value.to(stage.device) for key, value in labels(scenes).items()}
        figures = {
            "contrast": float(total.detach()),
            "match": float((logits.argmax(1) == target).float().mean()),
        }
        for key, value in truth.items():
            said = model.text_heads[key](text.float())
            seen = model.image_heads[key](image.float())
            # a colour that the caption leaves unsaid is still seen, so only the picture is asked
            total = total + 0.5 * functional.cross_entropy(said, value)
            total = total + 0.5 * functional.cross_entropy(seen, value)
            if "colour" not in key:
                figures[f"text_{key}"] = float((said.argmax(1) == value).float().mean())
                figures[f"image_{key}"] = float((seen.argmax(1) == value).float().mean())
        return total, figures, len(scenes)

    run_stage(stage, model, optimizer, loss)
    return clip


def load_trained_clip(folder: Path, tokenizer: CLIPTokenizer) -> CLIPModel:
    """The CLIP as its stage left it, without heads."""
    model = _Taught(new_clip(tokenizer))
    load_average(folder / "clip.safetensors", model)
    return model.clip.eval()
