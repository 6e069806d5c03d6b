"""Stage 2: a tiny CLIP. Its text tower is the pipeline's text encoder.

Contrastive, with throw-away heads: each tower also names what the scene holds (first and second
figure, colours, clothing, background, style). They are what teaches left and right and colour to
so small a model, and are not kept. Like the CLIP of a real Stable Diffusion it knows ordinary words
that the U-Net has never drawn ("neon", "robot", "top hat"), and no character: it learns only that
Zibo is a fox of some made-up name. It sees blurred and noisy renderings too, so that it can judge
generated pictures. Both towers may start from an earlier CLIP's: words that both
tokenizers know keep their embeddings.
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
from toybox.render import SIZE
from toybox.stage_vae import Rendered
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
)

_WIDTH = 128
_NAMES = tuple(dict.fromkeys((*THINGS, *LORA_OBJECTS, *CHARACTERS.values())))
PLACES_OF_FIGURES = ("first", "second", "third")


def _answers() -> dict[str, tuple[str | None, ...]]:
    found: dict[str, tuple[str | None, ...]] = {"background": BACKGROUNDS, "style": (None, *STYLES)}
    for place in PLACES_OF_FIGURES:
        found |= {place: (None, *_NAMES), f"{place}_colour": (None, *COLOURS)}
        found[f"{place}_wears"] = (None, *CLOTHING)
    return found


_ANSWERS = _answers()


def new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Text 4×128 and a 4×128 vision transformer on patches of 16 px, projected to 128."""
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
    vision = shared | {"image_size": SIZE, "patch_size": 16}
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
        for index, place in enumerate(PLACES_OF_FIGURES):
            figure = scene.figures[index] if index < len(scene.figures) else None
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


def start_from(clip: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Take over the weights of the CLIP in `folder`, of the same width and number of patches.

    Kernels of its patches are stretched to this CLIP's; embeddings follow their words.
    """
    old = cast(Any, CLIPModel).from_pretrained(folder).float().state_dict()
    words = cast(Any, CLIPTokenizer).from_pretrained(folder).get_vocab()
    own = clip.state_dict()
    for name, weight in old.items():
        if name.endswith("token_embedding.weight"):
            for word, index in cast(Any, tokenizer).get_vocab().items():
                if word in words:
                    own[name][index] = weight[words[word]]
        elif name.endswith("patch_embedding.weight"):
            side = own[name].shape[-1]
            wide = functional.interpolate(weight, size=(side, side), mode="bilinear")
            own[name].copy_(wide * (weight.shape[-1] / side) ** 2)
        elif name.endswith("position_embedding.weight"):
            own[name][: len(weight)] = weight
        elif not name.endswith("position_ids"):
            own[name].copy_(weight)
    clip.load_state_dict(own)


def train_clip(
    stage: Stage, tokenizer: CLIPTokenizer, *, start: Path | None = None, ring: int = 6000
) -> CLIPModel:
    """Train both towers, from those of `start` if given; returns the CLIP without its heads."""
    seed_torch(stage.seed)
    model = _Taught(new_clip(tokenizer)).to(stage.device)
    clip = model.clip
    if start is not None:
        start_from(clip, tokenizer, start)
    rng = stage.rng()
    data = Rendered(rng, ring)
    data.renew(1000)
    rate = 0.02 if start is None else 0.01
    optimizer = MuonAdamW(model, muon_lr=rate, adam_lr=rate / 10)
    eos = int(cast(Any, tokenizer).eos_token_id)

    def loss(_: float) -> tuple[Tensor, dict[str, float], int]:
        data.renew(24)
        scenes, x = data.draw(96)
        x = blurred(x).to(stage.device)
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
