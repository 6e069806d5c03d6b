"""Gates over LoRAs on a language model: MoLE's other half (arXiv 2404.13628, section 4.2).

The mechanism is that of pictures; what is particular here is what a gate may look at: the mean of
the request alone, once, for the whole answer. In training a mean over the answer would see words
that are still to be written, and in generation it would change with each of them. So training,
generation with a cache and generation without one give the same weights.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from composer.errors import ComposerError
from composer.experts import Expert
from composer.language.parts import parts_of
from composer.mixture import GateSettings, Granularity, Mixture, Unit, attach

_READS_ENCODER = re.compile(r"EncDecAttention\.[kv]")
"""Modules of a decoder that see the encoder's tokens."""


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What gates may look at in one batch.

    request: (rows, tokens), nonzero for the tokens of the request in what the causal model or the
        decoder reads: for a decoder its first token.
    given: (rows, tokens), nonzero for the tokens that an encoder reads; None without an encoder.
    """

    request: Tensor
    given: Tensor | None = None


def attach_loras(
    model: nn.Module, experts: Sequence[Expert], *, granularity: Granularity = "block"
) -> Mixture:
    """Attach LoRAs to a causal language model or to one of T5's kind.

    Raises:
        ComposerError: a LoRA does not fit, or changes what lies outside of the layers; the model is
            as before.
    """
    sites = {expert.name: expert.sites for expert in experts}
    mixture = attach(parts_of(model), sites, granularity=granularity)
    outside = [unit for unit in mixture.units.values() if unit.module is None]
    if outside:
        mixture.detach()
        raise ComposerError(
            f"{outside[0].plan.sites[0]} lies in none of the model's layers, where gates stand: "
            'choose LoRAs on the layers alone, or the granularity "network" or "matrix".'
        )
    return mixture


def check_settings(settings: GateSettings) -> None:
    """Refuse gates that words give nothing to look at.

    Raises:
        ComposerError: which setting it is, and what to choose.
    """
    if settings.input == "placed" or settings.time:
        raise ComposerError("Language models know no places and no timestep: leave both out.")
    if settings.reduce != "mean":
        raise ComposerError(
            f"A gate that takes {settings.reduce!r} of a text is bound to its length: choose mean."
        )


def look(mixture: Mixture, sight: Sight) -> None:
    """Tell the gates of a language model what they may look at in the batch to come."""
    counted: dict[str, Tensor] = {}
    for name, unit in mixture.units.items():
        encoded = unit.plan.part == "encoder" or _reads_encoder(unit)
        if encoded and sight.given is None:
            raise ComposerError(f"{name} reads what an encoder gives: pass its mask as well.")
        counted[name] = sight.given if encoded and sight.given is not None else sight.request
    mixture.look_at(counted)


@contextmanager
def answering(mixture: Mixture, sight: Sight) -> Generator[None, None, None]:
    """While an answer is generated: gates look at the request, and their weights there hold."""
    look(mixture, sight)
    try:
        with mixture.deciding_once():
            yield
    finally:
        mixture.look_at({})


def sight_of(mask: Tensor, *, encoder: bool) -> Sight:
    """For requests alone, before any answer. mask: (rows, tokens), nonzero where there is one."""
    if not encoder:
        return Sight(request=mask)
    return Sight(request=torch.ones_like(mask[:, :1]), given=mask)


def _reads_encoder(unit: Unit) -> bool:
    """Whether the unit's own input is the encoder's output."""
    path = unit.plan.path or ""
    return unit.plan.part == "decoder" and _READS_ENCODER.search(path) is not None
