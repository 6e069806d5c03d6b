"""The default objective: each expert must recognise itself in what the gated model draws.

    D_i(z) = log ||v_C(z_s, s, c) - v||^2 - log ||v_C+i(z_s, s, c) - v||^2
    loss   = sum_i max(0, 1 - D_i(z) / D_i*)^2 + near * mean (g - 1)^2

z is the clean picture that the gated model's guided prediction points to, z_s the same with fresh
noise up to a random level s, and v what a right prediction from there would be. v_T is that of the
model with the experts T, each with weight 1, under the whole prompt c. So D_i says by how much
better the picture is explained with expert i than without it; no word of the prompt has to be known
as a trigger for it. D_i* is the same for pictures that expert i draws alone, at the same step of
the sampling and judged alone: an expert that recognises itself as well as there asks for no more,
and the least recognised one counts most.

C is the company that i is judged in: the other experts, for they change what it drew. A unicorn in
neon is not what the unicorn's LoRA knows by itself, so alone it would ask for more unicorn where
there is enough. Only figures are never judged together: they leave each other's places alone, and
the plain sum blends two of them into one that neither knows.

The gradient goes through the frozen judges into the picture, and through it into the gates. g are
the gates' weights: judges do not see everything (that one unicorn became two, or that a style
faded), so the weights are drawn to the plain sum of the experts, which keeps some of what they
miss. The gates learn on the pictures that they make themselves. Nothing but the frozen model is
needed: no photograph, no CLIP, no decoding.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from composer.diffusion.conditioning import count_chunks
from composer.diffusion.denoise import (
    advance,
    denoise,
    latent_shape,
    predict,
    scheduler_for,
    to_clean,
)
from composer.diffusion.model import Model
from composer.diffusion.regions import Regions
from composer.mixture import Mixture
from composer.mixture.stand_in import Weights
from composer.training.draws import generator_for
from composer.training.gates import sampling
from composer.training.gates.losses import Batch, distance_from_sum
from composer.training.gates.sampling import Sums, Texts, Together, draw_alone
from composer.training.gates.settings import Company, GateTraining
from composer.training.objective import Objective

FIGURES = ("character", "clothing", "object")
"""Roles that draw a figure, or something on one."""
NEAR = 0.3
"""How much it counts that weights stay near 1, the plain sum."""
LEVELS = (0.35, 0.85)
"""Where judges look, as parts of all noise levels: below they see texture alone, above nothing."""
LEAST = 0.05
"""Of D_i*: an expert that hardly knows its own pictures is not to ask for the impossible."""
_TINY = 1e-8


def companies(kind: Company, roles: Sequence[str]) -> tuple[Together, ...]:
    """In whose company each expert is judged, by index.

    kind: "fitting", all others, but for a figure no figures; "nobody".
    roles: of the experts, in their order.
    """

    def fits(one: int, other: int) -> bool:
        apart = roles[one] in FIGURES and roles[other] in FIGURES
        return one != other and kind == "fitting" and not apart

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
    sums: Sums = field(init=False)

    def __post_init__(self) -> None:
        self.process = Objective.from_scheduler(self.model.scheduler_config)
        self.sums = Sums(self.model, self.mixture)

    def recognise(
        self,
        clean: Tensor,
        prompts: Sequence[str],
        experts: Sequence[int],
        generator: torch.Generator,
        company: Sequence[Together] | None = None,
    ) -> Tensor:
        """D of each of `experts` and picture, (experts, pictures), with a gradient to `clean`.

        Call it, and take the gradient, inside of `Mixture.weighing_rows`: under gradient
        checkpointing layers run again for the backward pass.

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
        predicted = self.sums.predict(noisy, levels, prompts, judges)
        errors = (predicted - right).square().mean(2).flatten(2)  # of each place
        logs = errors.mean(-1).clamp_min(_TINY).log()
        known = dict(zip(judges, logs, strict=True))
        return torch.stack([known[without] - known[with_it] for without, with_it in pairs])


@dataclass
class Judged:
    """Samples pictures with the gates as they are, each at another step, and asks the judges.

    Every batch moves each of its pictures on by one step; one that is finished makes room for the
    next. So a batch holds all noise levels, and no pass of the model is made that is not learnt
    from. With several lanes, each has pictures of its own, which together are as a larger batch's.
    """

    model: Model
    mixture: Mixture
    config: GateTraining
    judges: Judges
    asked: Tensor
    """D_i*, (experts, steps)."""
    company: Sequence[Together]
    """In which each expert is judged, by index."""
    lanes: int = 1
    regions: Regions | None = None
    _latents: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    """By lane, of those that this process follows."""
    _prompts: dict[int, list[str]] = field(default_factory=dict[int, list[str]])
    _text: Texts = field(init=False)
    _scheduler: Any = field(init=False)

    def __post_init__(self) -> None:
        self._text = Texts(self.model, self.config.paper)
        self._scheduler = scheduler_for(self.model, sampling.SAMPLER, sampling.STEPS)

    @classmethod
    def prepare(
        cls,
        model: Model,
        mixture: Mixture,
        config: GateTraining,
        roles: Mapping[str, str] | None = None,
    ) -> Generator[tuple[int, int], None, Judged]:
        """Let each expert draw alone and judge that; call it before gates are put in. Yields
        (steps done, in all) after each step.

        roles: of the experts by name, as far as known, which say who is judged in whose company.
        """
        known_as = [(roles or {}).get(name, "") for name in mixture.names]
        judges = Judges(model, mixture)
        asked = torch.zeros(len(mixture.names), sampling.STEPS)
        known: list[Sequence[str]] = []
        for name in mixture.names:
            # prompts of its own that the text encoder reads at once, as the others have to be
            own = config.alone.get(name, ())
            short = [prompt for prompt in own if count_chunks(model, prompt) == 1]
            known.append(short or config.prompts)
        with mixture.weighing_rows():
            drawing = draw_alone(judges.sums, known, seed=config.seed, purpose="gates judged alone")
            for drawn in drawing:
                with torch.no_grad():
                    recognised = judges.recognise(
                        drawn.clean, drawn.prompts, [drawn.expert], drawn.generator
                    )
                asked[drawn.expert, drawn.step] = recognised.mean()
                yield drawn.progress
        return cls(
            model=model,
            mixture=mixture,
            config=config,
            judges=judges,
            asked=asked,
            company=companies(config.company, known_as),
        )

    def batch(self, number: int) -> Batch:
        """The next step of each picture; what is drawn at random follows from seed and number."""
        turn, lane = divmod(number, self.lanes)
        if lane not in self._latents:
            self._latents[lane] = self._begin(turn, lane)
        latents, prompts = self._latents[lane], self._prompts[lane]
        steps = self._steps(turn, lane)
        timesteps = self._scheduler.timesteps[steps].to(self.model.device)
        if self.regions is not None:
            self.mixture.set_region_maps(self.regions.of(prompts).maps(latents, timesteps))
        generator = generator_for(self.config.seed, "gates judged", number)
        # A layer that is run again for its backward pass would find the judges' weights; so the
        # gated pass is then made once for the judges, and once for its own gradient.
        twice = self.config.gradient_checkpointing
        with torch.set_grad_enabled(not twice):
            guided, weights = self._gated(latents, timesteps, prompts)
            clean = to_clean(self._scheduler, guided, timesteps, latents)
        picture = clean.detach().requires_grad_(True)
        with self.mixture.weighing_rows():
            recognised = self.judges.recognise(
                picture, prompts, range(len(self.mixture.names)), generator, self.company
            )
            short = shortfall(recognised, self.asked[:, steps].to(recognised.device))
            loss = short.sum(0).mean()
            (slope,) = torch.autograd.grad(loss, picture)
        if twice:
            guided, weights = self._gated(latents, timesteps, prompts)
            clean = to_clean(self._scheduler, guided, timesteps, latents)
        surrogate = (clean * slope).sum()
        kept = NEAR * distance_from_sum(weights) if weights else torch.zeros(())
        self._advance(turn, lane, guided.detach())
        return Batch(
            loss=surrogate + (loss - surrogate).detach() + kept.to(loss.device),
            figures={
                name: float(part)
                for name, part in zip(self.mixture.names, short.detach().mean(1), strict=True)
            },
            weights=weights,
        )

    def state(self) -> dict[str, Tensor]:
        """The pictures on their way, and whose they are, of each lane."""
        kept: dict[str, Tensor] = {}
        for lane, latents in self._latents.items():
            known = [self.config.prompts.index(prompt) for prompt in self._prompts[lane]]
            kept |= {f"latents.{lane}": latents.cpu(), f"prompts.{lane}": torch.tensor(known)}
        return kept

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` gave."""
        for name, value in state.items():
            kind, _, lane = name.partition(".")
            if kind == "latents":
                self._latents[int(lane)] = value.to(self.model.device)
            else:
                self._prompts[int(lane)] = [self.config.prompts[int(index)] for index in value]

    def _steps(self, turn: int, lane: int) -> list[int]:
        """At which step each picture is: those of all lanes are spread over the sampling."""
        size, steps = self.config.batch_size, sampling.STEPS
        places = range(lane * size, (lane + 1) * size)
        return [(place * steps // (size * self.lanes) + turn) % steps for place in places]

    @torch.no_grad()
    def _begin(self, turn: int, lane: int) -> Tensor:
        """Pictures on their way, each as far as its step."""
        drawn = [self._drawn(turn, lane, row) for row in range(self.config.batch_size)]
        noise = torch.stack([noise for noise, _ in drawn])
        begun = self._prompts[lane] = [prompt for _, prompt in drawn]
        goal = self._steps(turn, lane)

        def predicted(latents: Tensor, timestep: Tensor, index: int) -> Tensor:
            """Of those pictures alone that have not come as far as they shall."""
            rows = [row for row, its in enumerate(goal) if its > index]
            prompts, times = [begun[row] for row in rows], timestep.repeat(len(rows))
            if self.regions is not None:
                maps = self.regions.of(prompts).maps(latents[rows], times)
                self.mixture.set_region_maps(maps)
            output = torch.zeros_like(latents)
            output[rows] = self._predict(latents[rows], times, prompts)
            return output

        latents = noise * self._scheduler.init_noise_sigma
        for step in islice(denoise(self._scheduler, noise, predicted), max(goal)):
            there = [row for row, its in enumerate(goal) if its == step.index + 1]
            latents[there] = step.latents[there]
        return latents

    def _drawn(self, turn: int, lane: int, row: int) -> tuple[Tensor, str]:
        """The noise and the prompt of a picture that begins in this row at this turn."""
        place = lane * self.config.batch_size + row
        generator = generator_for(self.config.seed, f"gates judged row {place}", turn)
        chosen = int(torch.randint(len(self.config.prompts), (1,), generator=generator))
        noise = torch.randn(latent_shape(self.model), generator=generator).to(self.model.device)
        return noise, self.config.prompts[chosen]

    def _advance(self, turn: int, lane: int, guided: Tensor) -> None:
        """Move each picture on by one step of DDIM; put a new one where it was the last.

        A prediction that is not finite is not followed: its picture stays as noisy as it was. The
        training skips that step, and must be able to go on.
        """
        latents, prompts = self._latents[lane].clone(), self._prompts[lane]
        for row, step in enumerate(self._steps(turn, lane)):
            if step == len(self._scheduler.timesteps) - 1:
                noise, prompts[row] = self._drawn(turn + 1, lane, row)
                latents[row] = noise * self._scheduler.init_noise_sigma
                continue
            one = slice(row, row + 1)
            timestep = self._scheduler.timesteps[step]
            moved = advance(self._scheduler, guided[one], timestep, latents[one])
            if bool(moved.isfinite().all()):
                latents[one] = moved
        self._latents[lane] = latents

    def _gated(
        self, latents: Tensor, timesteps: Tensor, prompts: Sequence[str]
    ) -> tuple[Tensor, Weights]:
        """The guided prediction, (batch, channels, h, w), and the gates' weights by unit."""
        with self.mixture.record_weights() as weights:
            guided = self._predict(latents, timesteps, prompts)
        return guided, weights

    def _predict(self, latents: Tensor, timesteps: Tensor, prompts: Sequence[str]) -> Tensor:
        """The guided prediction of the model with its gates, float32."""
        text = self._text([""] * len(prompts) + list(prompts))
        return predict(self.model, latents, timesteps, text, sampling.CFG_SCALE)
