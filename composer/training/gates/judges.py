"""The experts as judges: how well does each recognise its own hand in a picture?

    r_T(x) = || v_T(z_s, s, c)(x) - v(x) ||^2               at each place x of the picture
    D_i(z) = log mean_x r_C(x) - log mean_x r_C+i(x)        C the company that i is judged in
    S(z)   = log mean_x min_T r_T(x)                        over all that are asked

z_s are the clean latents z with fresh noise up to a random level s, and v what a right prediction
from there would be. v_T is that of the model with the experts T, each with weight 1, told the whole
prompt c: D_i says by how much better the picture is explained with expert i than without it. No
word of the prompt has to be known as a trigger for it. S is how strange the picture is to all of
them: small where at each place x somebody knows what is there.

An expert is judged in the company of the others, for they change what it drew: a unicorn in neon
is not what the unicorn's LoRA knows by itself, so alone it would ask for more unicorn where there
is enough. Only a figure is judged beside no other figure: they leave each other's places alone, and
the plain sum of two, which melts them, knows neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from composer.diffusion.model import Model
from composer.mixture import Mixture
from composer.training.gates.build import FIGURES
from composer.training.gates.config import Company
from composer.training.gates.teachers import Teachers, Together
from composer.training.objective import Objective

LEVELS = (0.35, 0.85)
"""Where judges look, as parts of all noise levels: below they see texture alone, above nothing."""
_TINY = 1e-8
LEAST = 0.05
"""Of D_i*: an expert that hardly knows its own pictures is not to ask for the impossible."""


def companies(kind: Company, roles: Sequence[str]) -> tuple[Together, ...]:
    """In whose company each expert is judged.

    kind: "fitting", all others, but for a figure no figures; "everybody", all others; "nobody".
    roles: of the experts, in their order.
    """

    def fits(one: int, other: int) -> bool:
        apart = kind == "fitting" and roles[one] in FIGURES and roles[other] in FIGURES
        return one != other and kind != "nobody" and not apart

    known = range(len(roles))
    return tuple(tuple(other for other in known if fits(one, other)) for one in known)


def shortfall(recognised: Tensor, asked: Tensor) -> Tensor:
    """max(0, 1 - D / D*)^2 of each expert and picture.

    recognised, asked: D and D*, (experts, pictures) each.
    """
    return (1 - recognised / asked.clamp_min(LEAST)).clamp_min(0).square()


@dataclass
class Judges:
    """The model with each expert and without it, asked about clean latents in one pass."""

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
        company: Sequence[Together] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """D of each of `experts` and picture, (experts, pictures), and S, (pictures,), asked of
        those that these experts need; with a gradient to `clean`.

        The mixture says what the judges said until it is told otherwise: ask, and take the
        gradient, while `speaking` is held, for under gradient checkpointing they are asked again.

        generator: of the noise and its levels, on the CPU.
        company: of every expert of the mixture, by index; None, each is judged alone, against the
            bare model.
        """
        count, device = len(clean), clean.device
        first, last = (int(part * self.process.timesteps) for part in LEVELS)
        levels = torch.randint(first, last, (count,), generator=generator).to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        noisy = self.process.noised(clean, noise, levels)
        right = self.process.target(clean, noise, levels)
        beside = company or companies("nobody", self.mixture.names)
        pairs = [(beside[index], tuple(sorted((*beside[index], index)))) for index in experts]
        judges = list(dict.fromkeys(some for pair in pairs for some in pair))
        said = self.teachers.predict(noisy, levels, prompts, judges)
        errors = (said - right).square().mean(2).flatten(2)  # of each place
        whole = errors.mean(-1).clamp_min(_TINY).log()
        strange = errors.amin(0).mean(-1).clamp_min(_TINY).log()
        known = dict(zip(judges, whole, strict=True))
        return torch.stack([known[without] - known[with_it] for without, with_it in pairs]), strange
