"""Fusions of predictions: a step's prediction is made of several passes of the U-Net.

A pass runs the U-Net with weights of its own for the LoRAs. Text encoders take the LoRAs added up,
once for all passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from composer.experts import Expert

Encode = Callable[[Sequence[str]], Tensor]
"""Prompts to the means over tokens of what the text encoders make of them: (prompts, width)."""


@dataclass(kw_only=True)
class Passes:
    """Which passes a step takes, and what is made of their predictions.

    weights: float32, (experts,): those that the user gave in the U-Net.
    triggers: the words that call each expert; empty for none. characters: which of them are one.
    steady: which of them change much of a picture and little of its detail: styles, backgrounds.
    """

    weights: Tensor
    triggers: Sequence[str]
    characters: Sequence[bool]
    steady: Sequence[bool]

    def begin(self, prompts: Sequence[str], encode: Encode) -> None:
        """Look at the prompts of the pictures to come."""

    def rows(self, index: int, total: int) -> tuple[Tensor, Tensor]:
        """Weights of each pass without and with the prompt, (passes, 1 or pictures, experts) each.

        index: the number of the step, from 0.
        """
        raise NotImplementedError

    def mix(self, without: Tensor, with_prompt: Tensor) -> tuple[Tensor, Tensor]:
        """From predictions of the passes, (passes, pictures, channels, height, width) each, to the
        two that guidance takes, (pictures, channels, height, width)."""
        return without.mean(0), with_prompt.mean(0)

    @property
    def alone(self) -> Tensor:
        """Each expert alone with its weight: (experts, 1, experts)."""
        return torch.diag(self.weights)[:, None]

    @property
    def none(self) -> Tensor:
        """The model without experts, (1, 1, experts)."""
        return torch.zeros_like(self.weights)[None, None]


def passes_of(
    kind: type[Passes], experts: Sequence[Expert], weights: Sequence[float], **parameters: Any
) -> Passes:
    """The passes of a recipe for these experts."""
    return kind(
        weights=torch.tensor(weights),
        triggers=tuple(expert.info.trigger.strip() for expert in experts),
        characters=tuple(expert.info.role == "character" for expert in experts),
        steady=tuple(expert.info.role in ("style", "background") for expert in experts),
        **parameters,
    )


@dataclass(kw_only=True)
class EachAlone(Passes):
    """LoRA Composite (arXiv 2402.16843): the mean of what guidance makes of each LoRA alone."""

    def rows(self, index: int, total: int) -> tuple[Tensor, Tensor]:
        """A pass for each."""
        return self.alone, self.alone


@dataclass(kw_only=True)
class OneAhead(Passes):
    """CMLoRA (arXiv 2502.04923) without its cache, which saves time: with k LoRAs one, in turn, is
    weighed (k - 1/2) b and the others b = k / (2 k - 3/2), so that all have mean weight 1. Until
    `late` of the steps those take turns that draw detail, then the others."""

    late: float = 0.6
    _ahead: int = 0

    def rows(self, index: int, total: int) -> tuple[Tensor, Tensor]:
        """A pass for each."""
        wanted = index >= self.late * total
        turns = [n for n, steady in enumerate(self.steady) if steady == wanted]
        turns = turns or list(range(len(self.steady)))
        self._ahead = turns[index % len(turns)]
        return self.alone, self.alone

    def mix(self, without: Tensor, with_prompt: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted means."""
        count = len(without)
        ahead = count - 0.5
        shares = torch.full((count,), 1 / (ahead + count - 1), device=without.device)
        shares[self._ahead] *= ahead
        return _weighed(shares, without), _weighed(shares, with_prompt)


@dataclass(kw_only=True)
class Patches(Passes):
    """LoRAtorio (arXiv 2508.11624): in each patch the LoRAs by how unlike the bare model they
    predict,

        omega_i = softmax_i(-cos(eps_i, eps_0) / tau),    eps = sum_i omega_i eps_i,

    and of the predictions without the prompt `bare` of the bare model's."""

    patch: int = 4
    tau: float = 0.1
    bare: float = 0.5

    def rows(self, index: int, total: int) -> tuple[Tensor, Tensor]:
        """The bare model, then each."""
        every = torch.cat([self.none, self.alone])
        return every, every

    def mix(self, without: Tensor, with_prompt: Tensor) -> tuple[Tensor, Tensor]:
        """Patch by patch."""
        mixed = self._mixed(without)
        return torch.lerp(mixed, without[0], self.bare), self._mixed(with_prompt)

    def _mixed(self, predictions: Tensor) -> Tensor:
        passes, pictures, channels, height, width = predictions.shape
        side = self.patch
        padded = functional.pad(
            predictions.flatten(0, 1), (0, -width % side, 0, -height % side), mode="replicate"
        )
        high, wide = padded.shape[2] // side, padded.shape[3] // side
        cells = padded.reshape(passes, pictures, channels, high, side, wide, side)
        cells = cells.permute(0, 1, 3, 5, 2, 4, 6).flatten(4)  # (passes, pictures, high, wide, n)
        alike = functional.cosine_similarity(cells[1:], cells[:1], dim=-1)
        shares = torch.softmax(-alike / self.tau, dim=0)
        shares = shares.repeat_interleave(side, 2).repeat_interleave(side, 3)
        return (shares[:, :, None, :height, :width] * predictions[1:]).sum(0)


@dataclass(kw_only=True)
class PromptTurns(Passes):
    """W-Switch (arXiv 2606.03792): LoRA Switch whose turns are as long as the prompt needs each
    LoRA. With e the mean of the text encoders' vectors,

        PAW_i = max(0.05, 1 - cos(e(prompt), e(prompt without the trigger of i))),
        turn_i = max(1, round(turn PAW_i / max_j PAW_j)),

    and the last `tail` steps are the characters'."""

    turn: int = 5
    tail: int = 5
    _turns: tuple[tuple[int, ...], ...] = ()
    LEAST: ClassVar[float] = 0.05

    def begin(self, prompts: Sequence[str], encode: Encode) -> None:
        """Measure how much each prompt needs each expert."""
        from composer.experts.triggers import without_words

        found: list[tuple[int, ...]] = []
        for prompt in prompts:
            less = [without_words(prompt, words) if words else None for words in self.triggers]
            vectors = encode([prompt, *(prompt if some is None else some for some in less)])
            alike = functional.cosine_similarity(vectors[1:], vectors[:1], dim=-1)
            needed = (1 - alike).clamp_min(self.LEAST)
            turns = (self.turn * needed / needed.max()).round().clamp_min(1)
            found.append(tuple(int(turn) for turn in turns))
        self._turns = tuple(found)

    def rows(self, index: int, total: int) -> tuple[Tensor, Tensor]:
        """One pass, of another expert for each picture."""
        order = sorted(range(len(self.triggers)), key=lambda n: not self.characters[n])
        tail = [n for n in order if self.characters[n]]
        rows = torch.zeros(1, len(self._turns), len(order))
        for picture, turns in enumerate(self._turns):
            if tail and index >= total - self.tail:
                now = tail[index % len(tail)]
            else:
                cycle = [n for n in order for _ in range(turns[n])]
                now = cycle[index % len(cycle)]
            rows[0, picture, now] = self.weights[now]
        return rows, rows


@dataclass(kw_only=True)
class PromptAlone(Passes):
    """Asymmetric guidance: the bare model without the prompt, the weighted sum with it."""

    def rows(self, index: int, total: int) -> tuple[Tensor, Tensor]:
        """One pass of each."""
        return self.none, self.weights[None, None]


@dataclass(kw_only=True)
class InPlaces(Passes):
    """Each LoRA in its place: with v_0 the prediction of the LoRAs that have none, and v_i that of
    them and LoRA i,

        v = v_0 + sum_i m_i (v_i - v_0),    m_i 1 in the place of LoRA i and 0 outside.

    places: of each expert (side, side), over the whole picture; None for everywhere.
    """

    places: Sequence[Tensor | None]

    def rows(self, index: int, total: int) -> tuple[Tensor, Tensor]:
        """Those without a place, then they and each that has one."""
        everywhere = torch.tensor([place is None for place in self.places]) * self.weights
        placed = [n for n, place in enumerate(self.places) if place is not None]
        rows = torch.cat([self.none, self.alone[placed]]) + everywhere
        return rows, rows

    def mix(self, without: Tensor, with_prompt: Tensor) -> tuple[Tensor, Tensor]:
        """Place by place."""
        cells = torch.stack([place for place in self.places if place is not None])
        size = (with_prompt.shape[-2], with_prompt.shape[-1])
        maps = functional.interpolate(cells[:, None], size=size, mode="bilinear", antialias=True)
        maps = maps[:, None].to(with_prompt)
        return self._mixed(without, maps), self._mixed(with_prompt, maps)

    @staticmethod
    def _mixed(predictions: Tensor, maps: Tensor) -> Tensor:
        everywhere = predictions[0]
        return everywhere + (maps * (predictions[1:] - everywhere)).sum(0)


def _weighed(shares: Tensor, predictions: Tensor) -> Tensor:
    return torch.einsum("p,pnchw->nchw", shares, predictions)
