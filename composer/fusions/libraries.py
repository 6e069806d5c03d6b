"""All files at hand: LoRAs, gates, MixLoRAs, tuned weights and embeddings, in the same folders."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from composer.errors import ComposerError
from composer.experts.card import LORAS, Card
from composer.experts.embedding import EMBEDDINGS, EmbeddingCard, asked_in, named_in
from composer.experts.hashes import file_hash_of
from composer.experts.info import LoraInfo
from composer.experts.library import (
    GATES_FOLDER,
    MIXLORA_FOLDER,
    WEIGHTS_FOLDER,
    Entry,
    Kind,
    Library,
)
from composer.fusions.gate_file import GateFacts, read_facts
from composer.fusions.mixlora_file import MixLoraFacts, read_mixlora_facts
from composer.fusions.recipe import Recipe
from composer.fusions.tuned_weights import read_tuned_weights

GateCard = Entry[GateFacts]
MixLoraCard = Entry[MixLoraFacts]

# Their words matter as much as their tensors: the hash is that of the whole file.
GATES = Kind(
    place=GATES_FOLDER,
    suffixes=(".safetensors",),
    read=read_facts,
    hash=file_hash_of,
    unknown="Gates {name}: there are no such gates.",
    remedy="Train them, or put their file into {folders}.",
)
MIXLORAS = Kind(
    place=MIXLORA_FOLDER,
    suffixes=(".safetensors",),
    read=read_mixlora_facts,
    hash=file_hash_of,
    unknown="MixLoRA {name}: there is no such MixLoRA.",
    remedy="Train one, or put its file into {folders}.",
)
WEIGHTS = Kind(
    place=WEIGHTS_FOLDER,
    suffixes=(".json",),
    read=read_tuned_weights,
    hash=file_hash_of,
    unknown="Tuned weights {name}: there are no such weights.",
    remedy="Find them with `composer tune-weights`, or put their file into {folders}.",
    by_name=False,  # the first of several for the same LoRAs holds
)


class Libraries:
    """The libraries of the LoRA folders. Safe to use from several threads.

    Trainings write gates and MixLoRAs, so these are looked for anew each time.

    folders: of LoRA files; the others are in their folders `gates/`, `mixlora/`, `weights/` and
        `embeddings/`.
    """

    def __init__(self, folders: Iterable[str | Path]) -> None:
        folders = tuple(folders)
        self.loras = Library(folders, LORAS)
        self.weights = Library(folders, WEIGHTS)
        self.embeddings = Library(folders, EMBEDDINGS)
        self.own: dict[str, Library[Any]] = {
            kind.place: Library(folders, kind) for kind in (GATES, MIXLORAS)
        }

    def cards(self, *, refresh: bool = False) -> tuple[Card, ...]:
        """The LoRAs, those with an error included.

        Raises:
            ComposerError: a folder is missing.
        """
        return self.loras.scan() if refresh else self.loras.cards()

    def known(self) -> Library[LoraInfo]:
        """The LoRAs, none where a folder is missing: they are then missing one by one."""
        with contextlib.suppress(ComposerError):
            self.loras.cards()
        return self.loras

    def lora(self, name: str) -> Card:
        """The card of the LoRA of that name.

        Raises:
            ComposerError: there is none, or it cannot be used; the message names close ones.
        """
        return self.loras.find(name)

    def embeddings_in(
        self, prompts: Collection[str], loras: Collection[Path]
    ) -> tuple[EmbeddingCard, ...]:
        """The embeddings that prompts name, but those that one of these LoRA files brings along.

        Raises:
            ComposerError: one cannot be used, or is asked for and not there.
        """
        cards = {card.name: card for card in self.embeddings.scan()}
        infos = [card.facts for card in self.known().seen if card.path in loras]
        brought = [word for info in infos if info is not None for word in info.embeddings]
        for name in asked_in(prompts, (*cards, *brought)):
            self.embeddings.find(name, rescan=False)
        known = {word.casefold() for word in brought}
        found = [cards[name] for name in named_in(prompts, cards) if name.casefold() not in known]
        for card in found:
            _ = card.info
        return tuple(found)

    def of(self, recipe: Recipe | type[Recipe]) -> Library[Any]:
        """The files of which a recipe needs one, as they are now."""
        library = self.own[recipe.source]
        library.scan()
        return library

    def clean(self) -> None:
        """Delete what was being written when an earlier process was killed."""
        for library in (self.loras, self.weights, self.embeddings, *self.own.values()):
            library.clean()
