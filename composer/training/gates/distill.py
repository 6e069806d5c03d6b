"""The default objective: the frozen experts teach the gates; no photograph, CLIP or decoding.

keep:    || v_g(x, t, c_i)   - v_i(x, t, c_i) ||^2    on expert i's prompts stay with it alone
compose: || v_g(x, t, c_all) - v* ||^2                on composed prompts follow all of them
rest:    || v_g(x, t, c_0)   - v_0(x, t, c_0) ||^2    on other prompts stay with the base
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from composer.diffusion.conditioning import encode_prompts, split_into_chunks
from composer.diffusion.model import Model
from composer.mixture import Mixture
from composer.training.draws import generator_for
from composer.training.gates.config import GateTraining
from composer.training.gates.losses import distance, mean_by_group
from composer.training.gates.memory import COMPOSED, NEUTRAL, Memory
from composer.training.gates.trainer import Said


@dataclass
class Distillation:
    """Draws rows of the memory and compares the gated model with the teachers there."""

    model: Model
    mixture: Mixture
    memory: Memory
    config: GateTraining
    _texts: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def __post_init__(self) -> None:
        self._rows = {g: self.memory.rows_of(g) for g in dict.fromkeys(self.memory.groups)}
        self._strengths = {group: self.memory.strength(group) for group in self._rows}
        loud = [s for g, s in self._strengths.items() if g != NEUTRAL]
        # the base teaches its own group: there, noise is measured by what experts would change
        self._strengths[NEUTRAL] = sum(loud) / max(len(loud), 1) or 1.0

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
        with self.mixture.listen() as said:
            text = self._text([memory.prompts[row] for row in rows])
            predicted: Tensor = self.model.unet(
                memory.latents[list(rows)].to(device, self.model.dtype),
                memory.timesteps[list(rows)].to(device),
                encoder_hidden_states=text,
                return_dict=False,
            )[0]
        strength = torch.tensor([self._strengths[group] for group in groups], device=device)
        errors = distance(predicted, memory.targets[list(rows)].to(device), strength)
        return Said(
            loss=errors.mean(), figures=mean_by_group(errors.detach(), groups), weights=said
        )

    def _text(self, prompts: Sequence[str]) -> Tensor:
        """(rows, tokens, dim). Encoded once where the text encoder's gates do not learn."""
        if self.config.text_encoder:
            return encode_with_gradient(self.model, prompts)
        with torch.no_grad():
            for prompt in set(prompts) - self._texts.keys():
                self._texts[prompt] = encode_prompts(self.model, prompt, None).positive
        return torch.cat([self._texts[prompt] for prompt in prompts])


def encode_with_gradient(model: Model, prompts: Sequence[str]) -> Tensor:
    """Text vectors (prompts, tokens, dim) of prompts of one chunk each, as `encode_prompts`."""
    ids = torch.tensor([split_into_chunks(model, prompt)[0] for prompt in prompts])
    vectors: Tensor = model.text_encoder(ids.to(model.device)).last_hidden_state
    return vectors.to(model.dtype)
