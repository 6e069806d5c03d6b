"""Stage 4: train the oracle, and measure it on renderings and round trips it has not seen.

Half of what it sees are renderings and their round trips, slightly bent, blurred or noisy, as good
generated pictures are; half are renderings made worse step by step (`degrade.py`). What is left of
a figure is measured: below `LOST` the right answer is `UNCLEAR`, above `KEPT` it is the truth, and
between the two nothing is asked.
"""

from __future__ import annotations

import random
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from composer.precision import autocast
from toybox.degrade import Guess, bent, blurred, degraded, legibility, noisy
from toybox.denoising import encode_words, new_scheduler
from toybox.loop import Stage, run_stage
from toybox.networks import decode, encode, moved, seed_torch
from toybox.optimizer import MuonAdamW
from toybox.oracle import HEADS, SLOTS, UNCLEAR, Oracle, OracleNet, judgeable, score, truth
from toybox.render import render
from toybox.stage_vae import to_tensor
from toybox.world import TINTABLE, Scene, random_any_scene, random_scene

LOST, KEPT = 0.6, 0.78
"""Similarities of a figure to its rendering: looked at in order, figures below the first are such
as no one can name with confidence, and those above the second such as everyone can."""

_IGNORED = -100


def _scene(rng: random.Random) -> Scene:
    return random_any_scene(rng) if rng.random() < 0.75 else random_scene(rng)


def targets(scenes: list[Scene], left: Tensor | None = None) -> dict[str, Tensor]:
    """Class numbers of each head; -100 where nothing is asked.

    `left` is the legibility of each scene's figures and of the whole, (n, 4). A heart with no
    colour word looks as a red one does, so its colour is not asked either.
    """
    found: dict[str, list[int]] = {key: [] for key in HEADS}
    for number, scene in enumerate(scenes):
        right, asked = truth(scene), judgeable(scene)
        for head, answers in HEADS.items():
            slot = head.split("_")[0]
            place = SLOTS.index(slot) if slot in SLOTS else 3
            there = place == 3 or right[slot] is not None
            clear = float(left[number, place if there else 3]) if left is not None else 1.0
            wanted = answers.index(right[head])
            if head == "background" and head not in asked:
                wanted = _IGNORED
            elif head.endswith("_colour"):
                unsaid = right[head] is None and right[slot] in TINTABLE
                if unsaid or scene.style == "pencil sketch":
                    wanted = _IGNORED
            if clear < KEPT and wanted != _IGNORED:
                lost = clear < LOST and UNCLEAR in answers and there
                wanted = answers.index(UNCLEAR) if lost else _IGNORED
            found[head].append(wanted)
    return {key: torch.tensor(values) for key, values in found.items()}


class _Pictures:
    """Degraded renderings and round trips, a few new ones at every step."""

    def __init__(
        self, vae: AutoencoderKL, guess: Guess | None, rng: random.Random, size: int = 3000
    ) -> None:
        self.vae, self.guess, self.rng, self.size = vae, guess, rng, size
        self.kept: list[tuple[Scene, Tensor, Tensor]] = []

    @torch.no_grad()
    def renew(self, count: int) -> None:
        scenes = [_scene(self.rng) for _ in range(count)]
        x = to_tensor([render(scene, self.rng) for scene in scenes])
        with autocast("auto", "cpu"):
            trips = decode(self.vae, encode(self.vae, x)).float().clamp(-1, 1)
            worse = degraded(x, self.vae, self.guess)
        left = legibility(scenes, x, worse)
        self.kept += list(zip(scenes, list(trips), list(torch.ones_like(left)), strict=True))
        self.kept += list(zip(scenes, list(worse), list(left), strict=True))
        del self.kept[: -self.size]

    def draw(self, count: int) -> tuple[list[Scene], Tensor, Tensor]:
        chosen = [self.kept[self.rng.randrange(len(self.kept))] for _ in range(count)]
        scenes, x, left = zip(*chosen, strict=True)
        return list(scenes), torch.stack(x), torch.stack(left)


def first_guess(
    unet: UNet2DConditionModel, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel
) -> Guess:
    """What the U-Net, with an empty prompt, takes a noisy latent for in one step."""
    signal = new_scheduler().alphas_cumprod  # (1000,)
    nothing = encode_words([""], tokenizer, text_encoder).detach()

    def guess(z: Tensor, t: Tensor) -> Tensor:
        a = signal[t][:, None, None, None]
        noise = torch.randn_like(z)
        x = a.sqrt() * z + (1 - a).sqrt() * noise
        v = cast(Any, unet)(x, t, nothing.expand(len(z), -1, -1)).sample.float()
        return a.sqrt() * x - (1 - a).sqrt() * v

    return guess


def train_oracle(stage: Stage, vae: AutoencoderKL, guess: Guess | None) -> Oracle:
    """Train on good and degraded pictures of the whole world."""
    seed_torch(stage.seed)
    net = moved(OracleNet(), stage.device).train()
    rng = stage.rng()
    data = _Pictures(moved(vae.requires_grad_(False), "cpu"), guess, rng)
    for _ in range(10):
        data.renew(32)
    optimizer = MuonAdamW(net, muon_lr=0.03, adam_lr=1e-3)

    def loss(_: float) -> tuple[Tensor, dict[str, float], int]:
        data.renew(4)
        fresh = [_scene(rng) for _ in range(20)]
        clean = to_tensor([render(scene, rng) for scene in fresh])
        kept, x, left = data.draw(44)
        scenes, x = fresh + kept, torch.cat([clean, x])
        left = torch.cat([torch.ones(len(fresh), 4), left])
        # a good picture is never quite sharp, nor quite in its place
        small = torch.rand(len(x), 1, 1, 1) * (torch.rand(len(x), 1, 1, 1) < 0.5)
        x = noisy(bent(blurred(x, small * 0.24), small, most=1.2), small * 0.06)
        x = x.to(stage.device)
        with autocast("auto", stage.device):
            logits = net(x)
        total = torch.zeros((), device=x.device)
        right: dict[str, float] = {}
        for head, wanted in targets(scenes, left).items():
            wanted = wanted.to(x.device)
            if bool((wanted >= 0).any()):
                answers = logits[head].float()
                total = total + functional.cross_entropy(answers, wanted, label_smoothing=0.02)
                same = (answers.argmax(1) == wanted)[wanted >= 0]
                right[head] = float(same.float().mean())
        figures = {"loss": float(total.detach()), "right": sum(right.values()) / len(right)}
        return total, figures | {slot: right[slot] for slot in SLOTS}, len(scenes)

    run_stage(stage, net, optimizer, loss)
    return Oracle(net.cpu())


@torch.no_grad()
def examine(
    oracle: Oracle, vae: AutoencoderKL, guess: Guess | None = None, *, count: int = 1000
) -> list[dict[str, object]]:
    """The oracle's accuracy on unseen renderings, their round trips and degraded ones, by head.

    Each row is a head with the share of right answers among those that can be asked; "every" is
    the share of pictures with all of them right. Of degraded pictures, "strict" is the share of
    lost figures that were called unclear, and "fair" that of legible ones that were named right.
    """
    rng = random.Random("examination of the oracle")
    seed_torch(1)
    scenes = [_scene(rng) for _ in range(count)]
    x = to_tensor([render(scene, rng) for scene in scenes])
    parts = torch.split(x, 32)
    trips = torch.cat([decode(vae, encode(vae, part)) for part in parts]).clamp(-1, 1)
    worse = torch.cat([degraded(part, vae, guess) for part in parts])
    rows: list[dict[str, object]] = []
    for kind, pictures in (("renderings", x), ("VAE round trips", trips)):
        verdicts = oracle.judge(_images(pictures))
        scores = [score(s, v) for s, v in zip(scenes, verdicts, strict=True)]
        for head in HEADS:
            asked = [s[head] for s in scores if head in s]
            rows += [_row(kind, head, asked)] if asked else []
        rows.append(_row(kind, "mean of all answers", [a for s in scores for a in s.values()]))
        rows.append(_row(kind, "every", [all(s.values()) for s in scores]))
    left = legibility(scenes, x, worse)
    verdicts = oracle.judge(_images(worse))
    strict: list[bool] = []
    fair: list[bool] = []
    for number, (scene, verdict) in enumerate(zip(scenes, verdicts, strict=True)):
        for index, figure in enumerate(scene.figures):
            said = verdict.answers[SLOTS[index]]
            if float(left[number, index]) < LOST:
                strict.append(said != figure.name)
            elif float(left[number, index]) > KEPT:
                fair.append(said == figure.name)
    kinds = (("strict", strict), ("fair", fair))
    return [*rows, *(_row("degraded", name, right) for name, right in kinds if right)]


def _row(kind: str, element: str, right: list[bool]) -> dict[str, object]:
    return {"pictures": kind, "element": element, "right": sum(right) / len(right), "n": len(right)}


def _images(x: Tensor) -> list[Image.Image]:
    values = ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    return [Image.fromarray(picture) for picture in values]
