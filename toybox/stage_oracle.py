"""Stage 3: train the oracle, and measure it on renderings and round trips it has not seen."""

from __future__ import annotations

import random

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image
from torch import Tensor
from torch.nn import functional

from toybox.loop import Stage, run_stage
from toybox.networks import decode, encode, moved, seed_torch
from toybox.optimizer import MuonAdamW
from toybox.oracle import HEADS, Oracle, OracleNet, judgeable, score, truth
from toybox.render import render
from toybox.stage_clip import blurred
from toybox.stage_vae import to_tensor
from toybox.world import TINTABLE, Scene, random_any_scene, random_scene


def _scene(rng: random.Random) -> Scene:
    return random_any_scene(rng) if rng.random() < 0.75 else random_scene(rng)


def _targets(scenes: list[Scene]) -> dict[str, Tensor]:
    """Class numbers of each head; -100 where the picture cannot show the answer.

    A heart with no colour word looks as a red one does, so its colour is not asked either.
    """
    found: dict[str, list[int]] = {key: [] for key in HEADS}
    for scene in scenes:
        right, asked = truth(scene), judgeable(scene)
        for head, answers in HEADS.items():
            hidden = head == "background" and head not in asked
            if head in ("first_colour", "second_colour"):
                unsaid = right[head] is None and right[head.removesuffix("_colour")] in TINTABLE
                hidden = unsaid or scene.style == "pencil sketch"
            found[head].append(-100 if hidden else answers.index(right[head]))
    return {key: torch.tensor(values) for key, values in found.items()}


class _RoundTrips:
    """Renderings that went through the VAE, a few new ones at every step."""

    def __init__(self, vae: AutoencoderKL, rng: random.Random, size: int = 2400) -> None:
        self.vae, self.rng, self.size = vae, rng, size
        self.scenes: list[Scene] = []
        self.pictures: list[Tensor] = []
        for _ in range(12):
            self.renew(16)

    @torch.no_grad()
    def renew(self, count: int) -> None:
        scenes = [_scene(self.rng) for _ in range(count)]
        x = to_tensor([render(scene, self.rng) for scene in scenes]).to(self.vae.device)
        z = encode(self.vae, x)
        z = z + torch.randn_like(z) * 0.5 * torch.rand(len(z), 1, 1, 1, device=z.device)
        out = decode(self.vae, z).clamp(-1, 1).cpu()
        self.scenes += scenes
        self.pictures += list(out)
        del self.scenes[: -self.size], self.pictures[: -self.size]

    def draw(self, count: int) -> tuple[list[Scene], Tensor]:
        chosen = [self.rng.randrange(len(self.scenes)) for _ in range(count)]
        return [self.scenes[i] for i in chosen], torch.stack([self.pictures[i] for i in chosen])


def wobbled(x: Tensor, most: float = 1.5) -> Tensor:
    """Every second picture bent by up to about `most` pixels, here and there: a generated figure
    is never quite in its place or of its shape."""
    count, _, height, width = x.shape
    bend = torch.randn(count, 2, height // 8, width // 8) * torch.rand(count, 1, 1, 1) * most
    bend = bend * (torch.rand(count, 1, 1, 1) < 0.5)
    shift = functional.interpolate(bend, size=(height, width), mode="bicubic")
    rows, columns = torch.meshgrid(
        torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
    )
    straight = torch.stack([columns, rows], dim=-1)
    grid = straight + shift.permute(0, 2, 3, 1) * (2 / width)
    return functional.grid_sample(x, grid, padding_mode="border", align_corners=True)


def train_oracle(stage: Stage, vae: AutoencoderKL) -> Oracle:
    """Train on renderings, bent, blurred and noisy ones, and round trips."""
    seed_torch(stage.seed)
    net = OracleNet().to(stage.device).train()
    rng = stage.rng()
    vae = moved(vae.requires_grad_(False), stage.device)
    trips = _RoundTrips(vae, rng)
    optimizer = MuonAdamW(net, muon_lr=0.03, adam_lr=1e-3)

    def loss(_: float) -> tuple[Tensor, dict[str, float], int]:
        trips.renew(2)
        scenes = [_scene(rng) for _ in range(44)]
        x = blurred(wobbled(to_tensor([render(s, rng) for s in scenes])))
        other, y = trips.draw(20)
        scenes, x = scenes + other, torch.cat([x, wobbled(y)]).to(stage.device)
        logits = net(x)
        targets = _targets(scenes)
        total = torch.zeros((), device=x.device)
        right: list[float] = []
        for head, wanted in targets.items():
            wanted = wanted.to(x.device)
            total = total + functional.cross_entropy(logits[head], wanted, label_smoothing=0.02)
            kept = wanted >= 0
            right.append(float((logits[head].argmax(1) == wanted)[kept].float().mean()))
        figures = {"loss": float(total.detach()), "right": sum(right) / len(right)}
        return total, figures | {"first": right[0], "second": right[1]}, len(scenes)

    run_stage(stage, net, optimizer, loss)
    return Oracle(net.cpu())


@torch.no_grad()
def examine(oracle: Oracle, vae: AutoencoderKL, *, count: int = 2000) -> list[dict[str, object]]:
    """The oracle's accuracy on unseen renderings and on their VAE round trips, head by head.

    Each row is a head with the share of right answers among those that can be asked; "every" is
    the share of pictures with all of them right.
    """
    rng = random.Random("examination of the oracle")
    scenes = [_scene(rng) for _ in range(count)]
    images = [render(scene, rng) for scene in scenes]
    tripped: list[Image.Image] = []
    for begin in range(0, count, 50):
        z = encode(vae, to_tensor(images[begin : begin + 50]))
        out = ((decode(vae, z).clamp(-1, 1) + 1) * 127.5).round().byte()
        tripped += [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in out]
    rows: list[dict[str, object]] = []
    for kind, pictures in (("renderings", images), ("VAE round trips", tripped)):
        scores = [score(s, v) for s, v in zip(scenes, oracle.judge(pictures), strict=True)]
        for head in HEADS:
            asked = [s[head] for s in scores if head in s]
            rows.append(
                {
                    "pictures": kind,
                    "element": head,
                    "right": sum(asked) / len(asked),
                    "n": len(asked),
                }
            )
        answers = [answer for s in scores for answer in s.values()]
        rows.append(
            {
                "pictures": kind,
                "element": "mean of all answers",
                "right": sum(answers) / len(answers),
                "n": len(answers),
            }
        )
        every = [all(s.values()) for s in scores]
        rows.append({"pictures": kind, "element": "every", "right": sum(every) / count, "n": count})
    return rows
