"""Where the words that call each expert act in the pictures being made: asked between the steps.

It costs one row of the U-Net for the prompt and one for each expert that it names, at every
`EVERY`-th step; a step of guided sampling has two rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from composer.diffusion.conditioning import Text, encode_texts
from composer.diffusion.denoise import Denoised, predict
from composer.diffusion.model import Model
from composer.experts.embedding import Embedding
from composer.experts.triggers import without_words
from composer.mixture import Mixture, Reach, region_maps

EVERY = 3

REACHES: Mapping[str, Reach] = {
    "character": Reach(local=True, emphasis=1.5),
    "clothing": Reach(local=True, emphasis=2.0),
    "object": Reach(local=True, emphasis=1.5),
    "background": Reach(local=True, emphasis=1.5),
}
"""By role; any other acts everywhere with weight 1. Chosen on prompts that no benchmark uses."""


@dataclass(frozen=True, kw_only=True)
class Trigger:
    """The words that call one expert, and where it acts.

    words: without any it is called by every prompt, and acts everywhere.
    reach: None takes that of its role.
    """

    words: str
    role: str
    reach: Reach | None = None

    def reaches(self) -> Reach:
        """Its reach."""
        if self.reach is not None:
            return self.reach
        known = REACHES.get(self.role) if self.words.strip() else None
        return known or Reach(local=False)


class Regions:
    """Finds out where each expert of a mixture acts.

    triggers: of every expert of the mixture, by name.
    """

    def __init__(self, model: Model, mixture: Mixture, triggers: Mapping[str, Trigger]) -> None:
        self.model, self.mixture = model, mixture
        self.triggers = [triggers[name] for name in mixture.names]
        self.given: RegionMaps | None = None
        """Whose maps the gates have."""

    def of(
        self, prompts: Sequence[str], *, clip_skip: int = 1, embeddings: Sequence[Embedding] = ()
    ) -> RegionMaps:
        """For one batch of pictures of these prompts."""
        return RegionMaps(self, prompts, clip_skip, embeddings)


class Called(Protocol):
    """Whatever says how an expert is called: one of a gate file, or of a training."""

    @property
    def name(self) -> str: ...
    @property
    def trigger(self) -> str: ...
    @property
    def role(self) -> str: ...


def regions_of(model: Model, mixture: Mixture, experts: Iterable[Called]) -> Regions | None:
    """What finds out where the words of these experts act; None where no gate needs it."""
    if not mixture.needs_regions:
        return None
    triggers = {e.name: Trigger(words=e.trigger, role=e.role) for e in experts}
    if mixture.needs_concepts:
        from composer.diffusion.concepts import Concepts

        return Concepts(model, mixture, triggers)
    return Regions(model, mixture, triggers)


class RegionMaps:
    """The maps of one batch of pictures; prompts that are alike share their text vectors.

    Pictures whose prompt changes have maps for each text that it comes to.
    """

    def __init__(
        self,
        regions: Regions,
        prompts: Sequence[str],
        clip_skip: int,
        embeddings: Sequence[Embedding],
    ) -> None:
        self._regions = regions
        self._reading: dict[str, Any] = {"clip_skip": clip_skip, "embeddings": embeddings}
        triggers, device = regions.triggers, regions.model.device
        on = regions.mixture.switches
        self.called = torch.zeros(len(triggers), len(prompts), dtype=torch.bool, device=device)
        asked: list[list[str | None]] = []
        for index, (name, trigger) in enumerate(zip(regions.mixture.names, triggers, strict=True)):
            words = trigger.words
            wordless = not words.strip()
            less = [None if wordless else without_words(prompt, words) for prompt in prompts]
            called = [on[name] and (wordless or some is not None) for some in less]
            self.called[index] = torch.tensor(called)
            asked.append([some if c else None for some, c in zip(less, called, strict=True)])
        # only of an expert that has a place is it asked where that is
        self._asked = [
            (index, less)
            for index, less in enumerate(asked)
            if triggers[index].reaches().local and any(some is not None for some in less)
        ]
        self._text = self._encode(prompts) if self._asked else None

    def prepare(self, noisy: Tensor, again: Callable[[], Iterator[Denoised]]) -> None:
        """Before each step of these latents; `again` makes the same pictures from their beginning,
        with no maps."""

    def guiding(self) -> AbstractContextManager[None]:
        """Around each prediction: what the maps change besides gates."""
        return nullcontext()

    def update(self, noisy: Tensor, timestep: Tensor, step: int) -> None:
        """Give the gates the maps of these latents, (pictures, channels, height, width), at the
        first step, at every EVERY-th and where the maps before were of another text."""
        if step % EVERY == 0 or self._regions.given is not self:
            self._regions.given = self
            self._regions.mixture.set_region_maps(self.maps(noisy, timestep))

    @torch.no_grad()
    def maps(self, noisy: Tensor, timestep: Tensor) -> Tensor:
        """Where each expert acts, (pictures, experts, h, w)."""
        reaches = [trigger.reaches() for trigger in self._regions.triggers]
        changes = noisy.new_zeros(len(reaches), *noisy.shape, dtype=torch.float32)
        if self._text is not None and len(reaches) > 1:
            model = self._regions.model
            rows = torch.cat([noisy] * (1 + len(self._asked)))
            times = timestep.repeat(1 + len(self._asked)) if timestep.ndim else timestep
            with self._regions.mixture.without_gates():
                output = predict(model, rows, times, self._text)
            whole, *less = output.chunk(1 + len(self._asked))
            for (index, _), part in zip(self._asked, less, strict=True):
                changes[index] = whole - part
        return region_maps(changes, self.called, reaches)

    def _encode(self, prompts: Sequence[str]) -> Text:
        """Text of (1 + asked) * pictures rows: the prompts, then without words."""
        known: dict[tuple[str, str], tuple[Text, Text]] = {}
        whole: list[Text] = []
        parts: list[Text] = []
        for _, less in self._asked:
            for prompt, some in zip(prompts, less, strict=True):
                pair = (prompt, prompt if some is None else some)
                if pair not in known:
                    one, other = encode_texts(self._regions.model, pair, **self._reading)
                    known[pair] = one, other
                parts.append(known[pair][1])
        by_prompt = {prompt: vectors for (prompt, _), (vectors, _) in known.items()}
        whole += [by_prompt[prompt] for prompt in prompts]
        return Text.joined([*whole, *parts])
