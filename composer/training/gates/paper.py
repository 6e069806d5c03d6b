"""The paper's objective: CLIP judges whether the composed picture shows what the prompt says.

MoLE (arXiv 2404.13628) gives no formula; this is the released code's:

    L_D = -log((2.5 - (L_global + L_local)) / 2)
    L_global = 1 - cos(image, text)
    L_local  = mean over i of 1 - cos(image - image_i, text - text_i)

with the composed picture and prompt, and for each expert i a picture and a prompt of it alone (the
directional loss of StyleGAN-NADA, arXiv 2108.00946). Where the authors take photographs for
image_i, the expert itself draws them here.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from composer.diffusion.clip import Clip
from composer.diffusion.denoise import (
    advance,
    guide,
    latent_shape,
    predict,
    scheduler_for,
    to_clean,
)
from composer.diffusion.model import Model
from composer.mixture import Mixture
from composer.training.draws import generator_for
from composer.training.gates import sampling
from composer.training.gates.losses import Batch, balance_loss
from composer.training.gates.sampling import Sums, Texts, draw_alone
from composer.training.gates.settings import GateTraining

BALANCE = 0.5
"""Alpha of the gating balance loss (MoLE, equation 16)."""


def clip_loss(image: Tensor, text: Tensor, images_alone: Tensor, texts_alone: Tensor) -> Tensor:
    """L_D of each picture, (n,).

    image, text: (n, dim), of the composed picture and its prompt.
    images_alone, texts_alone: (experts, dim) each.
    """
    together = 1 - functional.cosine_similarity(image, text, dim=-1)
    moved = image[:, None] - images_alone[None]  # (n, experts, dim)
    asked = text[:, None] - texts_alone[None]
    local = (1 - functional.cosine_similarity(moved, asked, dim=-1)).mean(1)
    return -((2.5 - (together + local)).clamp_min(1e-3) / 2).log()


@dataclass
class _Drawing:
    """A sampling that goes on: the latents so far, and the prompts of its pictures."""

    latents: Tensor
    prompts: list[str]


@dataclass
class ClipGuidance:
    """Samples with the gated model, and asks CLIP at every step what the picture is going to be.

    As released: each step is a batch of its own, the latents are cut from the graph between steps,
    and the gradient goes through one pass of the U-Net, the clean picture that it predicts, and its
    decoding. The pictures of the experts alone are drawn before. Each lane has a sampling of its
    own.
    """

    model: Model
    mixture: Mixture
    clip: Clip
    config: GateTraining
    images_alone: Tensor
    texts_alone: Tensor
    lanes: int = 1
    _drawing: dict[int, _Drawing] = field(default_factory=dict[int, "_Drawing"])
    """By lane, of those that this process follows."""
    _resumed: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    _text: Texts = field(init=False)
    _scheduler: Any = field(init=False)

    def __post_init__(self) -> None:
        self._text = Texts(self.model, self.config.paper)
        self._scheduler = scheduler_for(self.model, sampling.SAMPLER, sampling.STEPS)

    @classmethod
    def prepare(
        cls, model: Model, mixture: Mixture, config: GateTraining
    ) -> Generator[tuple[int, int], None, ClipGuidance]:
        """Let each expert draw alone; call it before gates are put in. Yields (steps done, in
        all) after each step.

        Raises:
            ComposerError: there is no CLIP.
        """
        clip = Clip.load(config.clip, model)
        images: list[Tensor] = []
        texts: list[Tensor] = []
        known = [config.alone[name] for name in mixture.names]
        with mixture.weighing_rows():
            drawing = draw_alone(
                Sums(model, mixture), known, seed=config.seed, purpose="gates clip alone"
            )
            for drawn in drawing:
                if drawn.finished:
                    with torch.no_grad():
                        seen = clip.image(_picture(model, drawn.latents)).mean(0)
                    images.append(functional.normalize(seen, dim=0))
                    texts.append(functional.normalize(clip.text(drawn.prompts).mean(0), dim=0))
                yield drawn.progress
        return cls(
            model=model,
            mixture=mixture,
            clip=clip,
            config=config,
            images_alone=torch.stack(images),
            texts_alone=torch.stack(texts),
        )

    def batch(self, number: int) -> Batch:
        """The next step of a lane's sampling; its samplings follow one after the other."""
        turn, lane = divmod(number, self.lanes)
        sampled, index = divmod(turn, sampling.STEPS)
        if index == 0 or lane not in self._drawing:
            self._drawing[lane] = self._begin(sampled * self.lanes + lane)
        drawing, resumed = self._drawing[lane], self._resumed.pop(lane, None)
        prompts = drawing.prompts
        if resumed is not None and index > 0:  # in the middle of a sampling
            drawing.latents = resumed
        timestep = self._scheduler.timesteps[index]
        latents = drawing.latents.to(self.model.device)
        # First, for a layer that is run again for its backward pass finds its gate's last weights.
        with torch.no_grad():
            without = predict(self.model, latents, timestep, self._text([""] * len(prompts)))
        with self.mixture.record_weights() as weights:
            text = self._text(prompts)
            with_prompt = predict(self.model, latents, timestep, text)
        clean = to_clean(self._scheduler, with_prompt, timestep, latents)
        image = self.clip.image(_picture(self.model, clean))
        words = self.clip.text(prompts)
        loss = clip_loss(image, words, self.images_alone, self.texts_alone).mean()
        with torch.no_grad():
            guided = guide(without, with_prompt.detach(), sampling.CFG_SCALE)
            moved = advance(self._scheduler, guided, timestep, latents)
            # a step that is skipped moves nothing
            drawing.latents = moved if bool(moved.isfinite().all()) else latents
        balanced = loss + BALANCE * balance_loss(weights) if weights else loss
        return Batch(loss=balanced, figures={"CLIP": float(loss.detach())}, weights=weights)

    def state(self) -> dict[str, Tensor]:
        """The latents of the samplings that go on."""
        return {
            f"latents.{lane}": drawing.latents.detach().cpu()
            for lane, drawing in self._drawing.items()
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` gave; the next batch of each lane takes it up."""
        self._resumed = {
            int(name.removeprefix("latents.")): latents.to(self.model.device)
            for name, latents in state.items()
        }

    def _begin(self, number: int) -> _Drawing:
        """The `number`-th sampling, counted over all lanes."""
        size = self.config.batch_size
        known = self.config.prompts
        prompts = [known[(number * size + place) % len(known)] for place in range(size)]
        generator = generator_for(self.config.seed, "gates clip", number)
        noise = torch.randn((size, *latent_shape(self.model)), generator=generator)
        latents = noise.to(self.model.device) * self._scheduler.init_noise_sigma
        return _Drawing(latents=latents, prompts=prompts)


def _picture(model: Model, latents: Tensor) -> Tensor:
    """(n, 3, height, width) in 0 to 1, with a gradient."""
    decoded: Tensor = model.vae.decode(latents / model.scaling_factor, return_dict=False)[0]
    return (decoded / 2 + 0.5).clamp(0, 1)
