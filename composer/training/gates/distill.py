"""The objective distill: the frozen experts teach the gates; no photograph, CLIP or decoding.

keep:    || v_g(x, t, c_i)   - v_i(x, t, c_i) ||^2    on expert i's prompts stay with it alone
compose: || v_g(x, t, c_all) - v* ||^2                on composed prompts follow all of them
rest:    || v_g(x, t, c_0)   - v_0(x, t, c_0) ||^2    on other prompts stay with the base

Each v stands for two: the prediction with the prompt, and the guided one, w + s (v - w) with w
without prompt. Sampling follows the guided one, in which an error of v counts s times; that of w
may undo it or add to it, so both are asked at the same latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from composer.diffusion.model import Model
from composer.mixture import Mixture
from composer.mixture.rows import Routed
from composer.training.draws import generator_for
from composer.training.gates.config import GateTraining
from composer.training.gates.losses import distance, mean_by_group
from composer.training.gates.memory import COMPOSED, NEUTRAL, Memory
from composer.training.gates.teachers import guide
from composer.training.gates.texts import Texts
from composer.training.gates.trainer import Said


@dataclass
class Distillation:
    """Draws rows of the memory and compares the gated model with the teachers there."""

    model: Model
    mixture: Mixture
    memory: Memory
    config: GateTraining
    _text: Texts = field(init=False)

    def __post_init__(self) -> None:
        self._text = Texts(self.model, self.config.text_encoder)
        self._rows = {g: self.memory.rows_of(g) for g in dict.fromkeys(self.memory.groups)}
        scale = self.config.cfg_scale
        self._strengths = {group: self.memory.strength(group, scale) for group in self._rows}
        loud = [s for g, s in self._strengths.items() if g != NEUTRAL]
        # the base teaches its own group: there, noise is measured by what experts would change
        means = [sum(each) / len(loud) for each in zip(*loud, strict=True)] or [1.0, 1.0]
        self._strengths[NEUTRAL] = means[0] or 1.0, means[1] or 1.0

    def batch(self, number: int) -> Said:
        """A function of the seed and the number alone, so a resumed training draws the same."""
        return self._compare(self.rows(number))

    def state(self) -> dict[str, Tensor]:
        """Nothing: the memory follows from the seed."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """There is nothing to put back."""

    def rows(self, number: int) -> list[int]:
        """The rows of the `number`-th batch, counted over all processes; groups by their weight.

        A function of the seed and the number alone, so a resumed training draws the same.
        """
        generator = generator_for(self.config.seed, "gate batch", number)
        weights = self._group_weights()
        groups = list(weights)
        shares = torch.tensor([weights[group] for group in groups]).cumsum(0)
        places = (torch.rand(1, generator=generator) + torch.arange(self.config.batch_size)) / (
            self.config.batch_size
        )
        found: list[int] = []
        for place in places.remainder(1.0):
            index = int(torch.searchsorted(shares / shares[-1], place, right=True))
            known = self._rows[groups[min(index, len(groups) - 1)]]
            found.append(known[int(torch.randint(len(known), (1,), generator=generator))])
        return found

    def _group_weights(self) -> dict[str, float]:
        """How much of a batch each group gets: an expert its part of `keep`."""
        config, names = self.config, self.mixture.names
        weights = dict.fromkeys(names, config.keep / len(names))
        weights |= {COMPOSED: config.compose, NEUTRAL: config.rest}
        return {group: w for group, w in weights.items() if w > 0}

    def _compare(self, rows: Sequence[int]) -> Said:
        memory, device = self.memory, self.model.device
        groups = [memory.groups[row] for row in rows]
        if memory.regions is not None:
            self.mixture.hear(memory.regions[list(rows)].to(device))
        routed: list[Routed] = []
        with self.mixture.listen(routed) as said:
            text = self._text([""] * len(rows) + [memory.prompts[row] for row in rows])
            latents, timesteps = memory.latents[list(rows)], memory.timesteps[list(rows)]
            predicted: Tensor = self.model.unet(
                torch.cat([latents, latents]).to(device, self.model.dtype),
                torch.cat([timesteps, timesteps]).to(device),
                encoder_hidden_states=text,
                return_dict=False,
            )[0]
        strength = torch.tensor([self._strengths[group] for group in groups], device=device)
        targets = memory.targets[list(rows)].to(device)
        without, with_prompt = (
            now - then for now, then in zip(predicted.chunk(2), targets.unbind(1), strict=True)
        )
        guided = guide(without, with_prompt, self.config.cfg_scale)
        errors = 0.5 * (distance(with_prompt, strength[:, 0]) + distance(guided, strength[:, 1]))
        return Said(
            loss=errors.mean(),
            figures=mean_by_group(errors.detach(), groups),
            weights=said,
            routed=routed,
        )
