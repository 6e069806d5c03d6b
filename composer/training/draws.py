"""Everything random in a training, as a function of the seed and the step alone.

Nothing is carried from step to step, so a resumed training draws what the uninterrupted one would
have drawn, and no global random state is read or changed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draw:
    """The random part of one batch, on the CPU, float32."""

    pictures: list[int]
    """Indices into the training pictures."""
    timesteps: Tensor
    """(batch,)"""
    noise: Tensor
    """(batch, channels, height, width)"""
    latent_noise: Tensor
    """The same shape: which of the latents the VAE thinks possible is taken."""
    dropped: list[bool]
    """Whose caption is left out."""
    flipped: list[bool]
    seed: int
    """Of what else is drawn while the model runs, such as dropout."""


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Draws batches from training pictures followed by `priors` prior pictures.

    sets: how many training pictures each image set has, one set after the other; all sets have the
        same share of the batches.
    """

    seed: int
    sets: tuple[int, ...]
    priors: int
    prior_share: float
    batch_size: int
    timesteps: int
    latent_shape: tuple[int, int, int]
    noise_offset: float
    caption_dropout: float
    flip: bool

    def batch(self, number: int) -> Draw:
        """The `number`-th batch of the whole training, counted over all processes."""
        generator = generator_for(self.seed, "batch", number)
        size = self.batch_size
        noise = torch.randn((size, *self.latent_shape), generator=generator)
        offset = torch.randn((size, self.latent_shape[0], 1, 1), generator=generator)
        latent_noise = torch.randn((size, *self.latent_shape), generator=generator)
        # One timestep from each of `size` equal stretches: less spread in the loss than
        # independent draws, and each alone is still uniform.
        places = torch.randperm(size, generator=generator) + torch.rand(size, generator=generator)
        timesteps = (places / size * self.timesteps).long().clamp(max=self.timesteps - 1)
        chances = torch.rand((2, size), generator=generator)
        return Draw(
            pictures=[self._picture(number * size + place) for place in range(size)],
            timesteps=timesteps,
            noise=noise + self.noise_offset * offset,
            latent_noise=latent_noise,
            dropped=[bool(chance < self.caption_dropout) for chance in chances[0]],
            flipped=[self.flip and bool(chance < 0.5) for chance in chances[1]],
            seed=generator_for(self.seed, "dropout", number).initial_seed(),
        )

    def _picture(self, slot: int) -> int:
        """Slots go to prior pictures in an even stripe of `prior_share`; the sets take
        turns, and each goes round in an order shuffled anew each time."""
        before = int(slot * self.prior_share) if self.priors else 0
        is_prior = self.priors > 0 and int((slot + 1) * self.prior_share) > before
        if is_prior:
            return sum(self.sets) + self._turn("prior", before, self.priors)
        turn, which = divmod(slot - before, len(self.sets))
        purpose = f"subject {which}" if which else "subject"
        return sum(self.sets[:which]) + self._turn(purpose, turn, self.sets[which])

    def _turn(self, purpose: str, turn: int, count: int) -> int:
        """Which of `count` has this turn."""
        return _order(self.seed, purpose, turn // count, count)[turn % count]


def generator_for(seed: int, purpose: str, number: int) -> torch.Generator:
    """A CPU generator for one purpose, apart from those of all other purposes and numbers."""
    digest = hashlib.sha256(f"{seed} {purpose} {number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@lru_cache(maxsize=64)
def _order(seed: int, purpose: str, epoch: int, count: int) -> tuple[int, ...]:
    generator = generator_for(seed, purpose, epoch)
    order: Any = torch.randperm(count, generator=generator)
    return tuple(order.tolist())
