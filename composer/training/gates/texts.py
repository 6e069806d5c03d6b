"""Prompts as the gated model reads them while its gates learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from composer.diffusion.conditioning import encode_prompts, split_into_chunks
from composer.diffusion.model import Model


@dataclass
class Texts:
    """Text vectors of prompts of one chunk each.

    learning: whether the text encoder's gates learn: then each call reads the prompts anew, with a
        gradient; otherwise each prompt is read once.
    """

    model: Model
    learning: bool
    _known: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """(prompts, tokens, dim), as `encode_prompts` gives them."""
        if self.learning:
            ids = torch.tensor([split_into_chunks(self.model, prompt)[0] for prompt in prompts])
            read = self.model.text_encoder(ids.to(self.model.device))
            return read.last_hidden_state.to(self.model.dtype)
        with torch.no_grad():
            for prompt in set(prompts) - self._known.keys():
                self._known[prompt] = encode_prompts(self.model, prompt, None).positive
        return torch.cat([self._known[prompt] for prompt in prompts])
