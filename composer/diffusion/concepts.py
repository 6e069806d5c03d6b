"""FreeFuse (arXiv 2510.23515): each place belongs to one LoRA, as attention shows it once.

A third of the steps is made first, with every LoRA everywhere. There, in a block on the way up, the
places' cross-attention to the trigger words of LoRA i (a mean over words and heads) is s_i, and

    c_i = n s_i - sum_{j != i} s_j                      over the n LoRAs that have a place
    m_i = softmax over places (mean_a h_a . h / 1000)   a: the tenth of the places with most c_i

with h what the self-attention before gives. A place belongs to the LoRA with the largest m_i. Then
the pictures are made anew: a LoRA acts in its places alone, it changes no keys and values of the
others' words, and in every cross-attention 1 is added to the logits of a place and the words of its
LoRA, and taken from those of the others' words. LoRAs that act everywhere (a style) have no place.
The authors' code also evens out how many places each LoRA has; this does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from composer.diffusion.conditioning import split_into_chunks
from composer.diffusion.denoise import Denoised
from composer.diffusion.model import Model
from composer.diffusion.regions import RegionMaps, Regions
from composer.experts.embedding import Embedding

PART = 1 / 3
"""Of the steps, made first."""
ANCHORS, TEMPERATURE, BIAS = 0.1, 1000.0, 1.0
LEAST_PLACES = 64
"""Of the block that is looked at, and a sixteenth of the latents' at least."""


class Concepts(Regions):
    """Finds the places of each expert of a mixture once for each batch of pictures."""

    def of(
        self, prompts: Sequence[str], *, clip_skip: int = 1, embeddings: Sequence[Embedding] = ()
    ) -> ConceptMaps:
        """For one batch of pictures of these prompts."""
        return ConceptMaps(self, prompts, embeddings)


class ConceptMaps(RegionMaps):
    """The maps of one batch of pictures, found before the first step and held."""

    def __init__(
        self, regions: Concepts, prompts: Sequence[str], embeddings: Sequence[Embedding]
    ) -> None:
        self._regions = regions
        model, on = regions.model, regions.mixture.switches
        self._local = [trigger.reaches().local for trigger in regions.triggers]
        self._words: list[list[list[int]]] = []
        called: list[list[bool]] = []
        for name, trigger in zip(regions.mixture.names, regions.triggers, strict=True):
            wordless = not trigger.words.strip()
            found = [words_at(model, prompt, trigger.words, embeddings) for prompt in prompts]
            called.append([on[name] and (wordless or bool(places)) for places in found])
            self._words.append(found)
        self.called = torch.tensor(called)
        tokens = max((p + 1 for each in self._words for found in each for p in found), default=1)
        self._tokens = torch.zeros(*self.called.shape, tokens)
        for index, found in enumerate(self._words):
            for picture, at in enumerate(found):
                self._tokens[index, picture, at] = float(self._apart[index, picture])
        self._held: Tensor | None = None

    @property
    def _apart(self) -> Tensor:
        """(experts, pictures): which have places of their own; fewer than two share none out."""
        apart = self.called & torch.tensor(self._local)[:, None]
        return apart & (apart.sum(0) > 1)

    def prepare(self, noisy: Tensor, again: Callable[[], Iterator[Denoised]]) -> None:
        """Find the places, if they are not known yet."""
        if self._held is not None:
            return
        everywhere = self.called.to(torch.float32).T[..., None, None]
        self._held = everywhere.to(noisy.device)  # (pictures, experts, 1, 1)
        if not bool(self._apart.any()):
            return
        self._regions.mixture.set_region_maps(None)
        size = (noisy.shape[-2], noisy.shape[-1])
        seen: dict[str, Tensor] = {}
        first = None
        with self._watching(seen):
            for step in again():
                first = step.index if first is None else first
                made = len(step.scheduler.timesteps) - first
                if step.index + 1 - first >= math.ceil(made * PART):
                    break
        enough = max(LEAST_PLACES, size[0] * size[1] // 16)
        fine = [owner for owner in seen.values() if owner.shape[-1] >= enough]
        owner = fine[0] if fine else max(seen.values(), key=lambda found: found.shape[-1])
        apart = self._apart.to(owner.device)
        mine = owner[None] == torch.arange(len(apart), device=owner.device)[:, None, None]
        maps = torch.where(apart[..., None], mine, self.called.to(owner.device)[..., None])
        grid = grid_of(owner.shape[-1], size)
        self._held = maps.transpose(0, 1).reshape(len(noisy), len(apart), *grid).float()

    def update(self, noisy: Tensor, timestep: Tensor, step: int) -> None:
        """Where the maps before were of another text."""
        if self._regions.given is not self:
            self._regions.given = self
            self._regions.mixture.set_region_maps(self.maps(noisy, timestep), self._changed(noisy))

    def maps(self, noisy: Tensor, timestep: Tensor) -> Tensor:
        """Where each expert acts, (pictures, experts, h, w)."""
        assert self._held is not None  # `prepare` has run
        return self._held

    def _changed(self, noisy: Tensor) -> Tensor:
        """Which tokens each expert may change, (pictures, experts, tokens): one that has places all
        but the others'."""
        own = self._tokens.transpose(0, 1)
        others = (own.sum(1, keepdim=True) > own) & self._apart.T[..., None]
        return (self.called.T[..., None] & ~others).to(noisy.device, torch.float32)

    @contextmanager
    def _watching(self, seen: dict[str, Tensor]) -> Generator[None, None, None]:
        """Meanwhile note in each block on the way up whose each place is, (pictures, places)."""
        blocks: Any = self._regions.model.unet.up_blocks
        with ExitStack() as hooks:
            for name, block in _transformers(blocks):

                def look(
                    attention: Any, args: Any, kwargs: Any, name: str = name, block: Any = block
                ) -> None:
                    words: Tensor = kwargs["encoder_hidden_states"]
                    weights = _attention(attention, args[0], words)[-len(self.called[0]) :]
                    hidden = features[id(block)][-len(weights) :]
                    seen[name] = self._owners(weights, hidden)

                def keep(_: Any, __: Any, output: Tensor, block: Any = block) -> None:
                    features[id(block)] = output.float()

                hooks.callback(block.attn1.register_forward_hook(keep).remove)
                hooks.callback(block.attn2.register_forward_pre_hook(look, with_kwargs=True).remove)
            features: dict[int, Tensor] = {}
            yield

    def _owners(self, weights: Tensor, hidden: Tensor) -> Tensor:
        """Whose each place is, (pictures, places), by number; -1 of a picture with one or none.

        weights: (pictures, heads, places, tokens), softmax over the tokens.
        hidden: (pictures, places, width).
        """
        pictures, _, places, _ = weights.shape
        owner = torch.full((pictures, places), -1, device=weights.device)
        apart = self._apart
        heed = weights.mean(1)
        for picture in range(pictures):
            experts = [index for index in range(len(apart)) if apart[index, picture]]
            if not experts:
                continue
            scores = torch.stack(
                [heed[picture][:, self._words[index][picture]].mean(1) for index in experts]
            )
            contrast = (len(experts) + 1) * scores - scores.sum(0)
            anchors = contrast.topk(max(1, int(places * ANCHORS)), dim=1).indices
            h = hidden[picture]
            likeness = torch.stack([(h[some] @ h.T).mean(0) for some in anchors])
            best = (likeness / TEMPERATURE).softmax(1).argmax(0)
            owner[picture] = torch.tensor(experts, device=owner.device)[best]
        return owner

    @contextmanager
    def guiding(self) -> Generator[None, None, None]:
        """Meanwhile places heed the words of their LoRA more, and those of the others less."""
        assert self._held is not None  # `prepare` has run
        if not bool(self._apart.any()):
            yield
            return
        held = self._held * self._apart.T[..., None, None].to(self._held)
        known: dict[tuple[int, ...], Tensor] = {}

        def bend(_: Any, args: Any, kwargs: Any) -> Any:
            hidden, words = args[0], kwargs["encoder_hidden_states"]
            shape = (len(hidden), hidden.shape[1], words.shape[1])
            if shape not in known:
                known[shape] = self._bias(held, *shape).to(hidden.dtype)
            given = kwargs.get("attention_mask")
            return args, {
                **kwargs,
                "attention_mask": known[shape] if given is None else known[shape] + given,
            }

        with ExitStack() as hooks:
            for _, block in _transformers(self._regions.model.unet):
                hooks.callback(block.attn2.register_forward_pre_hook(bend, with_kwargs=True).remove)
            yield

    def _bias(self, held: Tensor, rows: int, places: int, tokens: int) -> Tensor:
        """What is added to the logits, (rows, places, tokens): nothing in rows without the prompt,
        which come first."""
        pictures = len(held)
        size = (held.shape[-2], held.shape[-1])
        if size[0] * size[1] != places:
            held = functional.interpolate(held, grid_of(places, size), mode="bilinear")
        words = BIAS * self._tokens.transpose(0, 1).to(held)
        words = functional.pad(words, (0, tokens - words.shape[-1]))
        own = 2 * words - words.sum(1, keepdim=True)
        bias = held.new_zeros(rows, places, tokens)
        bias[rows - pictures :] = torch.einsum("pek,pet->pkt", held.flatten(2), own)
        return bias


def words_at(
    model: Model, prompt: str, words: str, embeddings: Sequence[Embedding] = ()
) -> list[int]:
    """At which tokens of the prompt's text these words stand, counted over all of its chunks."""
    part, encoder = next(iter(model.encoders.items()))
    tokenizer: Any = encoder.tokenizer
    wanted: list[int] = tokenizer(words.strip(), add_special_tokens=False).input_ids
    ids = [token for c in split_into_chunks(model, prompt, embeddings)[part] for token in c.ids]
    starts = (n for n in range(len(ids)) if wanted and ids[n : n + len(wanted)] == wanted)
    return sorted({place for start in starts for place in range(start, start + len(wanted))})


def grid_of(places: int, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of so many places, of the shape most like `size`."""
    divisors = [n for n in range(1, places + 1) if places % n == 0]
    height = min(divisors, key=lambda n: abs(math.log(n * n * size[1] / (places * size[0]))))
    return height, places // height


def _transformers(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """The blocks with attention to themselves and to the text, in the order they run."""
    for name, module in cast(Any, network).named_modules():
        if getattr(module, "attn1", None) is not None and getattr(module, "attn2", None):
            yield name, module


def _attention(attention: Any, hidden: Tensor, words: Tensor) -> Tensor:
    """Of each place to each token, (rows, heads, places, tokens), softmax over the tokens."""

    def by_heads(x: Tensor) -> Tensor:
        width = x.shape[-1] // attention.heads
        return x.reshape(*x.shape[:2], attention.heads, width).transpose(1, 2).float()

    if attention.norm_cross:
        words = attention.norm_encoder_hidden_states(words)
    query, key = by_heads(attention.to_q(hidden)), by_heads(attention.to_k(words))
    return (query @ key.transpose(-1, -2) * attention.scale).softmax(-1)
