"""The experts as judges: how well does each recognise its own hand in a picture?

    r_j(x) = || v_j(z_s, s, c)(x) - v(x) ||^2               at each place x of the picture
    D_i(z) = log mean_x r_0(x) - log mean_x r_i(x)
    S(z)   = log mean_x min_j r_j(x)                        over the bare model and experts

z_s are the clean latents z with fresh noise up to a random level s, and v what a right prediction
from there would be. v_0 is the bare model's, and v_i that of expert i alone, both told the whole
prompt c: D_i says by how much better the expert explains the picture than the model that never knew
it. No word of the prompt has to be known as a trigger for it. S is how strange the picture is to
all of them: small where at each place x somebody knows what is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from composer.diffusion.model import Model
from composer.mixture import Mixture
from composer.training.gates.teachers import Teachers, one_hot, speak, speaking
from composer.training.objective import Objective

LEVELS = (0.35, 0.85)
"""Where judges look, as parts of all noise levels: below they see texture alone, above nothing."""
_TINY = 1e-8
LEAST = 0.05
"""Of D_i*: an expert that hardly knows its own pictures is not to ask for the impossible."""


def shortfall(recognised: Tensor, asked: Tensor) -> Tensor:
    """max(0, 1 - D / D*)^2 of each expert and picture.

    recognised, asked: D and D*, (experts, pictures) each.
    """
    return (1 - recognised / asked.clamp_min(LEAST)).clamp_min(0).square()


@dataclass
class Judges:
    """The bare model and each expert alone, asked about clean latents in one pass."""

    model: Model
    mixture: Mixture
    process: Objective = field(init=False)
    teachers: Teachers = field(init=False)

    def __post_init__(self) -> None:
        self.process = Objective.from_scheduler(self.model.scheduler_config)
        self.teachers = Teachers(self.model, self.mixture)

    def recognise(
        self,
        clean: Tensor,
        prompts: Sequence[str],
        experts: Sequence[int],
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """D of each of `experts` and picture, (experts, pictures), and S, (pictures,), asked of the
        bare model and these experts; with a gradient to `clean`.

        generator: of the noise and its levels, on the CPU.
        """
        count, device = len(clean), clean.device
        first, last = (int(part * self.process.timesteps) for part in LEVELS)
        levels = torch.randint(first, last, (count,), generator=generator).to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        noisy = self.process.noised(clean, noise, levels)
        right = self.process.target(clean, noise, levels)
        judges: list[int | None] = [None, *experts]
        with speaking(self.mixture):
            with torch.no_grad():
                text = torch.cat([self.teachers.text(p, j) for j in judges for p in prompts])
            speak(self.mixture, one_hot(self.mixture, [j for j in judges for _ in prompts]))
            said: Tensor = self.model.unet(
                torch.cat([noisy] * len(judges)).to(self.model.dtype),
                levels.repeat(len(judges)),
                encoder_hidden_states=text,
                return_dict=False,
            )[0].float()
        errors = (said - torch.cat([right] * len(judges))).square().mean(1)
        errors = errors.reshape(len(judges), count, -1)  # of each place
        whole = errors.mean(-1).clamp_min(_TINY).log()
        strange = errors.amin(0).mean(-1).clamp_min(_TINY).log()
        return whole[0] - whole[1:], strange
