"""A step's prediction of several passes of the U-Net, for fusions that mix predictions."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from composer.diffusion.conditioning import Text, encode_texts
from composer.diffusion.denoise import guide, predict
from composer.diffusion.model import Model
from composer.experts.embedding import Embedding
from composer.fusions.passes import Passes
from composer.mixture import Mixture


class PassedPrediction:
    """What the U-Net predicts in the passes of a fusion, mixed.

    mixture: in the model, with the experts of the passes.
    """

    def __init__(self, model: Model, mixture: Mixture, passes: Passes) -> None:
        self.model, self.mixture, self.passes = model, mixture, passes

    def of(
        self, prompts: Sequence[str], *, clip_skip: int = 1, embeddings: Sequence[Embedding] = ()
    ) -> PassedPrediction:
        """For one batch of pictures of these prompts."""

        def encode(texts: Sequence[str]) -> Tensor:
            rows: list[Tensor] = []
            for text in texts:  # one by one, so that none is filled up to another's length
                (read,) = encode_texts(
                    self.model, [text], clip_skip=clip_skip, embeddings=embeddings
                )
                rows.append(read.states.mean(1))
            return torch.cat(rows).float()

        passes = copy.copy(self.passes)
        passes.begin(prompts, encode)
        return PassedPrediction(self.model, self.mixture, passes)

    def predict(
        self,
        noisy: Tensor,
        timestep: Tensor,
        step: tuple[int, int],
        text: Text,
        cfg_scale: float,
    ) -> Tensor:
        """As `denoise.predict` of `noisy` (batch, channels, h, w).

        step: its number, and how many there are.
        """
        batch = len(noisy)
        guided = len(text) == 2 * batch
        without, with_prompt = self.passes.rows(*step)
        rows = [(weights, text[-batch:]) for weights in with_prompt]
        if guided:
            rows = [(weights, text[:batch]) for weights in without] + rows
        made: list[Tensor] = []
        # no more rows at once than a step of one pass has
        at_once = 2 if guided else 1
        with self.mixture.weighing_rows():
            for first in range(0, len(rows), at_once):
                some = rows[first : first + at_once]
                weights = torch.cat([given.expand(batch, -1) for given, _ in some])
                self.mixture.weigh_rows(weights.to(noisy.device))
                words = Text.joined(words for _, words in some)
                times = timestep.repeat(len(some)) if timestep.ndim else timestep
                output = predict(self.model, noisy.repeat(len(some), 1, 1, 1), times, words)
                made += output.chunk(len(some))
        split = len(without) if guided else 0
        whole = torch.stack(made)
        if not guided:
            return self.passes.mix(whole, whole)[1]
        return guide(*self.passes.mix(whole[:split], whole[split:]), cfg_scale)
