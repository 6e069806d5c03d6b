"""The oracle: a classifier that says what a picture of the toybox shows.

It judges and never teaches: no gate and no LoRA is trained with it. It is trained on renderings of
the whole world, blurred, noisy and passed through the VAE, so that it is fair to generated
pictures.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from composer.errors import ComposerError
from toybox.tensors import load_tensors, save_tensors
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

NAMES: tuple[str, ...] = (*THINGS, *CHARACTERS, *LORA_OBJECTS)
_SIZE = 64
SLOTS: tuple[str, ...] = ("first", "second")
"""Figures from left to right."""

HEADS: dict[str, tuple[str | None, ...]] = {
    "first": NAMES,
    "second": (*NAMES, None),
    "first_colour": (None, *COLOURS),
    "second_colour": (None, *COLOURS),
    "first_wears": (None, *CLOTHING),
    "second_wears": (None, *CLOTHING),
    "background": BACKGROUNDS,
    "style": (None, *STYLES),
}
"""What is asked of a picture, and the answers; `first` is the figure alone or on the left."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the oracle sees: one answer for each head."""

    answers: dict[str, str | None]


class _Block(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.skip = nn.Conv2d(channels_in, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.skip(x))


class OracleNet(nn.Module):
    """A residual network whose last 4×4 map is read whole: place matters, left is not right."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 5, 2, 2)
        self.blocks = nn.Sequential(
            _Block(32, 32, 1), _Block(32, 80, 2), _Block(80, 160, 2), _Block(160, 224, 2)
        )
        self.hidden = nn.Linear(224 * 16, 320)
        self.heads = nn.ModuleDict({k: nn.Linear(320, len(v)) for k, v in HEADS.items()})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """(batch, 3, 64, 64) in -1..1 → logits of each head, (batch, answers)."""
        x = self.blocks(functional.relu(self.stem(pictures)))
        x = functional.relu(self.hidden(x.flatten(1)))
        x = functional.dropout(x, 0.2, self.training)
        return {name: head(x) for name, head in self.heads.items()}


def truth(scene: Scene) -> dict[str, str | None]:
    """The answers that are right for `scene`."""
    first = scene.figures[0]
    second = scene.figures[1] if len(scene.figures) > 1 else None
    return {
        "first": first.name,
        "second": second.name if second else None,
        "first_colour": first.colour,
        "second_colour": second.colour if second else None,
        "first_wears": first.wears,
        "second_wears": second.wears if second else None,
        "background": scene.background,
        "style": scene.style,
    }


def judgeable(scene: Scene) -> frozenset[str]:
    """The heads that `scene` can be asked: a pencil sketch shows no colour, neon no plain ground.

    A colour is asked only where the caption names one, and clothing only of who could wear it
    and is told to, or stands beside such a one.
    """
    asked = {"first", "second", "background", "style"}
    right = truth(scene)
    if scene.style in ("pencil sketch", "neon") and scene.background.startswith("plain "):
        asked.discard("background")
    for side in ("first", "second"):
        if right[f"{side}_colour"] and scene.style != "pencil sketch":
            asked.add(f"{side}_colour")
    if right["first_wears"] or right["second_wears"]:
        asked |= {"first_wears"} if right["second"] is None else {"first_wears", "second_wears"}
    return frozenset(asked)


def score(scene: Scene, verdict: Verdict) -> dict[str, bool]:
    """For each head that can be asked of `scene`: is the picture right?"""
    right = truth(scene)
    return {head: verdict.answers[head] == right[head] for head in sorted(judgeable(scene))}


class Oracle:
    """The trained oracle: pictures in, verdicts out."""

    def __init__(self, net: OracleNet) -> None:
        self.net = net.eval()

    @classmethod
    def load(cls, folder: Path) -> Oracle:
        """From a folder with `oracle.json` and `oracle.safetensors`."""
        listed = folder / "oracle.json"
        if not listed.exists():
            raise ComposerError(
                f"{folder} holds no oracle: build it with `python -m toybox build --stage oracle`."
            )
        said = {key: tuple(value) for key, value in json.loads(listed.read_text()).items()}
        if said != HEADS:
            raise ComposerError(
                f"{listed} was trained for another world than this version's: build it again with "
                "`python -m toybox build --stage oracle`."
            )
        net = OracleNet()
        tensors = load_tensors(folder / "oracle.safetensors")
        net.load_state_dict(
            {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
        )
        return cls(net)

    def save(self, folder: Path) -> None:
        """float16 weights and the list of answers."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            k: (v.half() if v.is_floating_point() else v).contiguous()
            for k, v in self.net.state_dict().items()
        }
        save_tensors(folder / "oracle.safetensors", tensors)
        (folder / "oracle.json").write_text(json.dumps(HEADS, indent=1) + "\n")

    @torch.no_grad()
    def judge(self, images: Sequence[Image.Image]) -> list[Verdict]:
        """What each picture shows; pictures of another size are reduced to 64 px first."""
        arrays = [
            np.asarray(
                image.convert("RGB")
                if image.size == (_SIZE, _SIZE)
                else image.convert("RGB").resize((_SIZE, _SIZE), Image.Resampling.BOX)
            )
            for image in images
        ]
        verdicts: list[Verdict] = []
        for begin in range(0, len(arrays), 64):
            x = torch.as_tensor(np.stack(arrays[begin : begin + 64]))
            logits = self.net(x.permute(0, 3, 1, 2).float() / 127.5 - 1)
            chosen = {k: v.argmax(1).tolist() for k, v in logits.items()}
            verdicts += [Verdict({k: HEADS[k][chosen[k][i]] for k in HEADS}) for i in range(len(x))]
        return verdicts
