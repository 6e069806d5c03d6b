"""The oracle: a classifier that says what a picture of the world shows, or that it is unclear.

It judges and never teaches: no gate and no LoRA is trained with it. It is as strict as a person is
meant to be: where a figure is smeared, melted into another or barely there, the right answer is
`UNCLEAR`, which is right for no prompt.
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
from toybox.render import SIZE, figure_boxes
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

UNCLEAR = "unclear"
NAMES: tuple[str, ...] = (*THINGS, *CHARACTERS, *LORA_OBJECTS)
SLOTS: tuple[str, ...] = ("first", "second", "third")
"""Figures from left to right."""


def _heads() -> dict[str, tuple[str | None, ...]]:
    found: dict[str, tuple[str | None, ...]] = {}
    for slot in SLOTS:
        found[slot] = (None, *NAMES, UNCLEAR)
        found[f"{slot}_colour"] = (None, *COLOURS)
        found[f"{slot}_wears"] = (None, *CLOTHING)
    return found | {"background": (*BACKGROUNDS, UNCLEAR), "style": (None, *STYLES)}


HEADS: dict[str, tuple[str | None, ...]] = _heads()
"""What is asked of a picture, and the answers; None where there is no such figure, colour, ..."""


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
    """A residual network that looks where figures stand: whatever the number of figures and
    whichever the place, one classifier says what stands there.

    With p(n) of n figures, seen in the whole picture, and p(a | n, s) of the answer a about what
    stands in place s of n, the answer about slot s is

        p(a) = sum_{n >= s} p(n) p(a | n, s),   and none with sum_{n < s} p(n) besides
    """

    boxes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 5, 2, 2)
        self.near = nn.Sequential(_Block(32, 48, 2), _Block(48, 96, 2))
        self.far = _Block(96, 160, 2)
        self.whole = _Block(160, 224, 2)
        self.joined = nn.Conv2d(96 + 160, 96, 1)
        self.figure = nn.Linear(96 * _ROWS * _COLUMNS, 256)
        self.hidden = nn.Linear(224 * (SIZE // 32) ** 2, 320)
        self.count = nn.Linear(320, len(SLOTS))
        self.scene = nn.ModuleDict(
            {k: nn.Linear(320, len(HEADS[k])) for k in ("background", "style")}
        )
        self.named = nn.ModuleDict(
            {kind: nn.Linear(256, len(HEADS[SLOTS[0] + end])) for kind, end in _KINDS.items()}
        )
        self.register_buffer("boxes", _grids(), persistent=False)

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """(batch, 3, 128, 128) in -1..1 → log-probabilities of each head, (batch, answers)."""
        near = self.near(functional.relu(self.stem(pictures)))
        far = self.far(near)
        whole = functional.relu(self.hidden(self.whole(far).flatten(1)))
        whole = functional.dropout(whole, 0.2, self.training)
        wide = functional.interpolate(far, size=near.shape[-2:], mode="bilinear")
        places = functional.relu(self.joined(torch.cat([near, wide], 1)))
        found = {name: head(whole).log_softmax(1) for name, head in self.scene.items()}
        counts = self.count(whole).log_softmax(1)
        seen = functional.grid_sample(
            places, self.boxes.to(places).expand(len(pictures), -1, -1, -1), align_corners=False
        )  # (batch, channels, places of all numbers of figures, points)
        figures = functional.relu(self.figure(seen.transpose(1, 2).flatten(2)))
        figures = functional.dropout(figures, 0.2, self.training)
        for kind, head in self.named.items():
            answers = head(figures).float()
            if not _KINDS[kind]:  # something stands there
                answers = torch.cat([answers[..., :1] * 0 + _NEVER, answers[..., 1:]], -1)
            answers = answers.log_softmax(-1)
            for index, slot in enumerate(SLOTS):
                found[slot + _KINDS[kind]] = self._mixed(counts.float(), answers, index)
        return found

    def _mixed(self, counts: Tensor, answers: Tensor, slot: int) -> Tensor:
        """Over the numbers of figures; answers: (batch, places, answers)."""
        parts: list[Tensor] = []
        for number in range(len(SLOTS)):
            if number < slot:  # so few that none stands there: the first answer
                none = torch.full_like(answers[:, 0], _NEVER)
                none[:, 0] = 0
                parts.append(counts[:, number, None] + none)
            else:
                place = number * (number + 1) // 2 + slot
                parts.append(counts[:, number, None] + answers[:, place])
        return torch.stack(parts).logsumexp(0)


_KINDS = {"name": "", "colour": "_colour", "wears": "_wears"}
"""What is asked of each figure, and how its heads' names end."""
_ROWS, _COLUMNS = 6, 5
"""Points at which a figure's place is looked at."""
_NEVER = -30.0


def _grids() -> Tensor:
    """Where figures are looked at, of one, of two and of three, (1, places, points, 2) in -1..1: in
    their boxes and a little beyond, for hats and for what hovers."""
    found: list[Tensor] = []
    for count in range(1, len(SLOTS) + 1):
        for left, top, right, bottom in figure_boxes(count):
            rows = torch.linspace(max(top - 20, 4), min(bottom + 4, SIZE - 4), _ROWS)
            columns = torch.linspace(max(left, 4), min(right, SIZE - 4), _COLUMNS)
            y, x = torch.meshgrid(rows, columns, indexing="ij")
            found.append(torch.stack([x, y], -1).reshape(-1, 2) * 2 / SIZE - 1)
    return torch.stack(found)[None]


def truth(scene: Scene) -> dict[str, str | None]:
    """The answers that are right for `scene`."""
    found: dict[str, str | None] = {"background": scene.background, "style": scene.style}
    for index, slot in enumerate(SLOTS):
        figure = scene.figures[index] if index < len(scene.figures) else None
        found[slot] = figure and figure.name
        found[f"{slot}_colour"] = figure and figure.colour
        found[f"{slot}_wears"] = figure and figure.wears
    return found


def judgeable(scene: Scene) -> frozenset[str]:
    """The heads that `scene` can be asked: a pencil sketch shows no colour, neon no plain ground.

    A colour is asked only where the caption names one, and clothing only where someone is told to
    wear some.
    """
    right = truth(scene)
    asked = {*SLOTS, "background", "style"}
    if scene.background.startswith("plain ") and scene.style in ("pencil sketch", "neon"):
        asked.discard("background")
    dressed = any(figure.wears for figure in scene.figures)
    for slot in SLOTS:
        if right[f"{slot}_colour"] and scene.style != "pencil sketch":
            asked.add(f"{slot}_colour")
        if dressed and right[slot]:
            asked.add(f"{slot}_wears")
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
                f"{folder} holds no oracle: train it with `python -m toybox.stage oracle`."
            )
        said = {key: tuple(value) for key, value in json.loads(listed.read_text()).items()}
        if said != HEADS:
            raise ComposerError(
                f"{listed} was trained for another world than this version's: train it again with "
                "`python -m toybox.stage oracle`."
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
        """What each picture shows; pictures of another size are reduced to 128 px first."""
        size = (SIZE, SIZE)
        fitting = [
            image if image.size == size else image.resize(size, Image.Resampling.BOX)
            for image in (image.convert("RGB") for image in images)
        ]
        verdicts: list[Verdict] = []
        for begin in range(0, len(fitting), 64):
            part = np.stack([np.asarray(image) for image in fitting[begin : begin + 64]])
            x = torch.as_tensor(part).permute(0, 3, 1, 2).float() / 127.5 - 1
            chosen = {k: v.argmax(1).tolist() for k, v in self.net(x).items()}
            verdicts += [Verdict({k: HEADS[k][chosen[k][i]] for k in HEADS}) for i in range(len(x))]
        return verdicts
