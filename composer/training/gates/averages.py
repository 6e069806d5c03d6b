"""What gates give on average while pictures are sampled with them, and how far others are from it.

A gate with a weight for each place has its largest weights where its expert has something to do.
The plain mean over places would take most of an expert's weight if that is a small part of the
picture, though the expert changes hardly anything elsewhere. So the constant weights w of a unit
are those that change its sites' outputs least, over all inputs x that they saw:

    minimise  sum_x || sum_j (g_j(x) - w_j) D_j(x) ||^2

which has the normal equations G w = h, G_jk = sum <D_j, D_k>, h_j = sum <D_j, sum_k g_k D_k>.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from composer.diffusion.conditioning import Text, count_chunks, encode_prompts
from composer.diffusion.denoise import (
    denoise,
    draw_noise,
    latent_shape,
    predict,
    scheduler_for,
)
from composer.diffusion.model import Model
from composer.diffusion.regions import Regions
from composer.errors import ComposerError
from composer.mixture import ExpertLinear, Mixture, Site
from composer.mixture.stand_in import Weights
from composer.training.gates.sampling import SAMPLER

AT_ONCE = 8
"""Pictures in one batch."""
RIDGE = 1e-3
"""How much the plain mean counts; it decides alone for an expert that is not in the unit."""


class Nearest:
    """Sums over what the sites of gated units see, step by step.

    steps: of one sampling.
    """

    def __init__(self, mixture: Mixture, steps: int) -> None:
        count = len(mixture.names)
        self._mixture = mixture
        self._left = {name: torch.zeros(steps, count, count) for name in mixture.gates}
        self._right = {name: torch.zeros(steps, count) for name in mixture.gates}

    @contextmanager
    def watching(self, step: int, pictures: int) -> Generator[None, None, None]:
        """Meanwhile the last `pictures` rows of what runs are added to this step's sums."""
        handles: list[Any] = []
        for unit in self._left:
            for name in self._mixture.units[unit].plan.sites:

                def hook(site: Any, inputs: tuple[Any, ...], unit: str = unit) -> None:
                    self._add(unit, step, site, inputs[0], pictures)

                site = cast(Any, self._mixture.sites[name])
                handles.append(site.register_forward_pre_hook(hook))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def _add(self, unit: str, step: int, site: Any, hidden: Tensor, pictures: int) -> None:
        if site.routing.off:
            return
        count = len(self._mixture.names)
        gated, low = (each[-pictures:] for each in (site.low(hidden), low_of(site, hidden)))
        self._left[unit][step] += products(site, low, low, count)
        self._right[unit][step] += products(site, low, gated, count).sum(1)

    def weights(self, steps: range, means: Mapping[str, list[float]]) -> dict[str, list[float]]:
        """Each unit's weights over these steps, in the experts' order.

        means: what the gates gave on average, to which `RIDGE` draws; a unit whose sites were not
            seen in these steps keeps it.
        """
        some = slice(steps.start, steps.stop)
        found: dict[str, list[float]] = {}
        for unit, given in means.items():
            mean = torch.tensor(given)
            left, right = self._left[unit][some].sum(0), self._right[unit][some].sum(0)
            strength = RIDGE * left.diagonal()
            # an expert that changes nothing here has no equation: any number solves it
            strength = torch.where(strength > 0, strength, torch.ones_like(strength))
            solved: Tensor = cast(Any, torch.linalg).solve(
                left + strength.diag(), right + strength * mean
            )
            found[unit] = [float(number) for number in solved]
        return found


def low_of(site: Site, hidden: Tensor) -> Tensor:
    """A x of all experts, whatever their gate gives: as the site's own `low` is shaped."""
    if isinstance(site, ExpertLinear):
        return functional.linear(hidden, site.down, site.offset)
    conv = cast(nn.Conv2d, site.base)
    return conv._conv_forward(hidden, site.down, site.offset)  # pyright: ignore[reportPrivateUsage]


def products(site: Site, low: Tensor, other: Tensor, count: int) -> Tensor:
    """<U_j low_j, U_k other_k>, (experts, experts), summed over batch and tokens; float32 on the
    CPU. low, other: what stands between the factors of a site, from the same inputs."""
    low, other = (_by_token(site, each) for each in (low, other))
    up = site.up.flatten(1).float()  # (out, ranks)
    both = (low.T @ other) * (up.T @ up)
    owners = functional.one_hot(site.owner, count).float()  # (ranks, experts)
    return (owners.T @ both @ owners).cpu()


def _by_token(site: Site, low: Tensor) -> Tensor:
    """(tokens of the batch, ranks)."""
    if isinstance(site, ExpertLinear):
        return low.flatten(0, -2).float()
    return low.transpose(0, 1).flatten(1).T.float()


@dataclass(frozen=True, kw_only=True, eq=False)
class Means:
    """Sums of gates' weights in the rows that saw the prompt, by unit.

    steps: of one sampling.
    sums: (steps, experts); of a gate that was asked before any step, (1, experts).
    counts: how many weights each sum holds, (steps, 1) or (1, 1).
    """

    steps: int
    sums: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    counts: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def add(self, given: Weights, pictures: int, step: int | None = None) -> None:
        """Those of the last `pictures` rows, which saw the prompt; `step` None is before any."""
        for unit, weights in given:
            rows = weights.detach().float().cpu()
            if rows.ndim == 3:  # (batch, tokens, experts)
                rows = rows.mean(1)
            rows = rows[-pictures:]
            places = 1 if step is None else self.steps
            if unit not in self.sums:
                self.sums[unit] = torch.zeros(places, rows.shape[1])
                self.counts[unit] = torch.zeros(places, 1)
            self.sums[unit][step or 0] += rows.sum(0)
            self.counts[unit][step or 0] += len(rows)

    def mean(self, steps: range) -> dict[str, list[float]]:
        """Each unit's weights averaged over pictures and these steps, in the experts' order."""
        found: dict[str, list[float]] = {}
        for unit, sums in self.sums.items():
            some = slice(None) if len(sums) < self.steps else slice(steps.start, steps.stop)
            counts = self.counts[unit][some].sum(0).clamp_min(1)
            found[unit] = [float(weight) for weight in sums[some].sum(0) / counts]
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectories:
    """One batch of pictures, sampled under gates by DDIM; all on the CPU in float32.

    latents, predictions: of each step, (batch, channels, height, width); predictions are guided.
    timesteps: of each step.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    cfg_scale: float
    latents: list[Tensor] = field(default_factory=list[Tensor])
    predictions: list[Tensor] = field(default_factory=list[Tensor])
    timesteps: list[Tensor] = field(default_factory=list[Tensor])

    def text(self, model: Model) -> Text:
        """Text of batch or 2 batch rows as the model is; without the prompt first."""
        guided = self.cfg_scale > 1
        known = {p: encode_prompts(model, p, "" if guided else None) for p in self.prompts}
        texts = [known[prompt] for prompt in self.prompts]
        without = [each.negative for each in texts if each.negative is not None]
        return Text.joined([*without, *(each.positive for each in texts)])

    def sample(
        self,
        model: Model,
        mixture: Mixture,
        means: Means,
        nearest: Nearest,
        regions: Regions | None = None,
    ) -> Iterator[None]:
        """Sample with the mixture's gates; yields after each step.

        means, nearest: get the gates' weights, and what their sites see meanwhile.
        regions: finds out where each expert's words act, for gates that need it.

        Raises:
            ComposerError: the latents are no longer numbers.
        """
        with mixture.record_weights() as given:
            for prompt in self.prompts:
                encode_prompts(model, prompt, None)
        means.add(given, 1)
        maps = regions and regions.of(self.prompts)
        text = self.text(model)

        def predicted(latents: Tensor, timestep: Tensor, index: int) -> Tensor:
            if maps is not None:
                maps.update(latents, timestep, index)
            with mixture.record_weights() as given, nearest.watching(index, len(self.prompts)):
                output = predict(model, latents, timestep, text, self.cfg_scale)
            means.add(given, len(self.prompts), index)
            return output

        noise, _ = draw_noise(self.seeds, latent_shape(model))
        scheduler = scheduler_for(model, SAMPLER, means.steps)
        for step in denoise(scheduler, noise.to(model.device), predicted):
            self.latents.append(step.noisy.cpu())
            self.timesteps.append(step.timestep.cpu())
            self.predictions.append(step.output.cpu())
            if not bool(step.output.isfinite().all()):
                raise ComposerError(
                    f"What the gates predict at step {step.index + 1} is no longer numbers: load "
                    "the model in float32, or train the gates again."
                )
            yield

    @torch.no_grad()
    def distance(self, model: Model, step: int, text: Text) -> Tensor:
        """||v_gated - v||^2 of each picture, (batch,), with v as the model is now.

        text: what `text` gives as the model is now.
        """
        latents = self.latents[step].to(model.device)
        timestep = self.timesteps[step].to(model.device)
        now = predict(model, latents, timestep, text, self.cfg_scale).cpu()
        return (now - self.predictions[step]).square().flatten(1).sum(1)


def plan_trajectories(
    model: Model, prompts: Sequence[str], *, pictures: int, seed: int, cfg_scale: float
) -> list[Trajectories]:
    """Batches of `pictures` pictures, each with the next prompt and the next seed.

    Prompts of several lengths (in chunks of tokens) are not in one batch.
    """
    by_length: dict[int, list[int]] = {}
    for index in range(pictures):
        length = count_chunks(model, prompts[index % len(prompts)])
        by_length.setdefault(length, []).append(index)
    return [
        Trajectories(
            prompts=tuple(prompts[i % len(prompts)] for i in some[first : first + AT_ONCE]),
            seeds=tuple(seed + i for i in some[first : first + AT_ONCE]),
            cfg_scale=cfg_scale,
        )
        for some in by_length.values()
        for first in range(0, len(some), AT_ONCE)
    ]
