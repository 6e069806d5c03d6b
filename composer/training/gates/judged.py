"""The default objective: each expert must recognise itself in what the gated model draws.

    loss = sum_i max(0, 1 - D_i(z) / D_i*)^2 + near * mean (g - 1)^2
         + familiar * max(0, S(z) - S*)^2                          (where that is asked for)

z is the clean picture that the gated model's guided prediction points to, and D_i how well expert i
recognises its hand in it, in the company of the others (`composer.training.gates.judges`). D_i* is
what it says, alone, of its own pictures at the same step of the sampling: an expert that recognises
itself as well as there asks for no more, and the least recognised one counts most. The gradient
goes through the frozen judges into the picture, and through it into the gates. g are the gates'
weights: judges do not see everything (that one unicorn became two, or that a style faded), so the
weights are drawn to the plain sum of the experts, which keeps some of what they miss. S is how
strange the picture is to them all, and S* what is usual in their own: a hat that swallows its
wearer is known to nobody.

No teacher is followed, so the gates are free to find what no sum of the experts draws; they learn
on the pictures that they make themselves. Nothing but the frozen model is needed: no photograph, no
CLIP, no decoding.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from composer.diffusion.conditioning import split_into_chunks
from composer.diffusion.model import Model
from composer.diffusion.regions import Regions
from composer.mixture import Mixture
from composer.mixture.rows import Routed
from composer.mixture.stand_in import Weights
from composer.training.draws import generator_for
from composer.training.gates.alone import draw_alone
from composer.training.gates.config import GateTraining
from composer.training.gates.judges import Judges, companies, shortfall
from composer.training.gates.losses import distance_from_sum
from composer.training.gates.teachers import (
    Sampling,
    Together,
    guide,
    latent_shape,
    speaking,
    to_clean,
)
from composer.training.gates.texts import Texts
from composer.training.gates.trainer import Said


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
    usual: Tensor
    """S*, (steps,)."""
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
        self._text = Texts(self.model, self.config.text_encoder)
        nothing = torch.zeros(1, *latent_shape(self.model))
        plan = Sampling(self.model, self.config.teacher_steps, nothing, self.config.cfg_scale)
        self._scheduler = plan.scheduler

    @classmethod
    def prepare(
        cls,
        model: Model,
        mixture: Mixture,
        config: GateTraining,
        roles: Mapping[str, str] | None = None,
    ) -> Generator[tuple[int, int], None, Judged]:
        """Let each expert draw itself and judge that; call it before gates are put in. Yields
        (steps done, in all) after each step.

        roles: of the experts by name, as far as known, which say who is judged in whose company.
        """
        known_as = [(roles or {}).get(name, "") for name in mixture.names]
        judges = Judges(model, mixture)
        steps, names = config.teacher_steps, mixture.names
        asked, usual = torch.zeros(len(names), steps), torch.zeros(steps)
        known: list[Sequence[str]] = []
        for name in names:
            # prompts of its own that the text encoder reads at once, as the others have to be
            own = config.alone.get(name, ())
            short = [prompt for prompt in own if len(split_into_chunks(model, prompt)) == 1]
            known.append(short or config.prompts)
        drawing = draw_alone(judges.teachers, config, known, purpose="gates judged alone")
        for drawn in drawing:
            with torch.no_grad(), speaking(mixture):
                known_by, strange = judges.recognise(
                    drawn.clean, drawn.prompts, [drawn.expert], drawn.generator
                )
            asked[drawn.expert, drawn.step] = known_by.mean()
            usual[drawn.step] += strange.mean().cpu() / len(names)
            yield drawn.progress
        return cls(
            model=model,
            mixture=mixture,
            config=config,
            judges=judges,
            asked=asked,
            usual=usual,
            company=companies(config.company, known_as),
        )

    def batch(self, number: int) -> Said:
        """The next step of each picture; what is drawn at random follows from seed and number."""
        turn, lane = divmod(number, self.lanes)
        if lane not in self._latents:
            self._latents[lane] = self._begin(turn, lane)
        latents, prompts = self._latents[lane], self._prompts[lane]
        steps = self._steps(turn, lane)
        timesteps = self._scheduler.timesteps[steps].to(self.model.device)
        if self.regions is not None:
            self.mixture.hear(self.regions.hearing(prompts).maps(latents, timesteps))
        generator = generator_for(self.config.seed, "gates judged", number)
        # A layer that is run again for its backward pass would find what the judges' gates said
        # last; so the gated pass is then made once for the judges, and once for its own gradient.
        twice = self.config.gradient_checkpointing
        with torch.set_grad_enabled(not twice):
            guided, said, routed = self._gated(latents, timesteps, prompts)
            clean = to_clean(self._scheduler, guided, timesteps, latents)
        experts = range(len(self.mixture.names))
        picture = clean.detach().requires_grad_(True)
        with speaking(self.mixture):
            recognised, strange = self.judges.recognise(
                picture, prompts, experts, generator, self.company
            )
            short = shortfall(recognised, self.asked[:, steps].to(recognised.device))
            excess = (strange - self.usual[steps].to(strange.device)).clamp_min(0).square()
            loss = (short.sum(0) + self.config.familiar * excess).mean()
            (slope,) = torch.autograd.grad(loss, picture)
        if twice:
            guided, said, routed = self._gated(latents, timesteps, prompts)
            clean = to_clean(self._scheduler, guided, timesteps, latents)
        surrogate = (clean * slope).sum()
        kept = self.config.near * distance_from_sum(said) if said else torch.zeros(())
        self._advance(turn, lane, guided.detach())
        return Said(
            loss=surrogate + (loss - surrogate).detach() + kept.to(loss.device),
            figures={
                name: float(part)
                for name, part in zip(self.mixture.names, short.detach().mean(1), strict=True)
            },
            weights=said,
            routed=routed,
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
        size, steps = self.config.batch_size, self.config.teacher_steps
        places = range(lane * size, (lane + 1) * size)
        return [(place * steps // (size * self.lanes) + turn) % steps for place in places]

    @torch.no_grad()
    def _begin(self, turn: int, lane: int) -> Tensor:
        """Pictures on their way, each as far as its step."""
        drawn = [self._drawn(turn, lane, row) for row in range(self.config.batch_size)]
        latents = torch.stack([noise for noise, _ in drawn])
        told = self._prompts[lane] = [prompt for _, prompt in drawn]
        goal = self._steps(turn, lane)
        for step, timestep in enumerate(self._scheduler.timesteps):
            rows = [row for row, its in enumerate(goal) if its > step]
            if not rows:
                break
            prompts = [told[row] for row in rows]
            times = timestep.repeat(len(rows))
            if self.regions is not None:
                self.mixture.hear(self.regions.hearing(prompts).maps(latents[rows], times))
            guided = self._predict(latents[rows], times, prompts)
            latents[rows] = self._scheduler.step(
                guided, timestep, latents[rows], return_dict=False
            )[0]
        return latents

    def _drawn(self, turn: int, lane: int, row: int) -> tuple[Tensor, str]:
        """The noise and the prompt of a picture that begins in this row at this turn."""
        place = lane * self.config.batch_size + row
        generator = generator_for(self.config.seed, f"gates judged row {place}", turn)
        chosen = int(torch.randint(len(self.config.prompts), (1,), generator=generator))
        noise = torch.randn(latent_shape(self.model), generator=generator).to(self.model.device)
        return noise * self._scheduler.init_noise_sigma, self.config.prompts[chosen]

    def _advance(self, turn: int, lane: int, guided: Tensor) -> None:
        """Move each picture on by one step of DDIM; put a new one where it was the last.

        A prediction that is not finite is not followed: its picture stays as noisy as it was. The
        training skips that step, and must be able to go on.
        """
        latents, prompts = self._latents[lane].clone(), self._prompts[lane]
        for row, step in enumerate(self._steps(turn, lane)):
            if step == len(self._scheduler.timesteps) - 1:
                latents[row], prompts[row] = self._drawn(turn + 1, lane, row)
                continue
            one = slice(row, row + 1)
            timestep = self._scheduler.timesteps[step]
            moved = self._scheduler.step(guided[one], timestep, latents[one], return_dict=False)[0]
            if bool(moved.isfinite().all()):
                latents[one] = moved
        self._latents[lane] = latents

    def _gated(
        self, latents: Tensor, timesteps: Tensor, prompts: Sequence[str]
    ) -> tuple[Tensor, Weights, list[Routed]]:
        """The guided prediction, what the gates said, and whom those chose that choose."""
        routed: list[Routed] = []
        with self.mixture.listen(routed) as said:
            guided = self._predict(latents, timesteps, prompts)
        return guided, said, routed

    def _predict(self, latents: Tensor, timesteps: Tensor, prompts: Sequence[str]) -> Tensor:
        """The guided prediction of the model with its gates, float32."""
        output: Tensor = self.model.unet(
            torch.cat([latents, latents]).to(self.model.dtype),
            torch.cat([timesteps, timesteps]),
            encoder_hidden_states=self._text([""] * len(prompts) + list(prompts)),
            return_dict=False,
        )[0]
        without, with_prompt = output.float().chunk(2)
        return guide(without, with_prompt, self.config.cfg_scale)
