"""All files at hand: LoRAs, gates, MixLoRAs and tuned weights, in the same folders."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from composer.errors import ComposerError
from composer.experts.card import Card
from composer.experts.library import Library
from composer.fusions.gate_library import GateLibrary
from composer.fusions.mixlora_library import MixLoraLibrary
from composer.fusions.own_library import OwnLibrary
from composer.fusions.recipe import Recipe
from composer.fusions.tuned_weights import TunedWeights
from composer.fusions.weight_library import WeightLibrary


class Libraries:
    """The libraries of the LoRA folders. Safe to use from several threads.

    folders: of LoRA files; gates are in their folders `gates/`, MixLoRAs in `mixlora/`, tuned
        weights in `weights/`.
    """

    def __init__(self, folders: Iterable[str | Path]) -> None:
        folders = tuple(folders)
        self.loras = Library(folders)
        self.weights = WeightLibrary(folders)
        self.own: dict[str, OwnLibrary[Any]] = {
            "gates": GateLibrary(folders),
            "mixlora": MixLoraLibrary(folders),
        }
        self._lock = threading.Lock()

    def cards(self, *, refresh: bool = False) -> tuple[Card, ...]:
        """The LoRAs, those with an error included.

        Raises:
            ComposerError: a folder is missing.
        """
        with self._lock:
            return self.loras.scan() if refresh else self.loras.cards()

    def known(self) -> Library:
        """The LoRAs, none where a folder is missing: they are then missing one by one."""
        with contextlib.suppress(ComposerError):
            self.cards()
        return self.loras

    def lora(self, name: str) -> Card:
        """The card of the LoRA of that name.

        Raises:
            ComposerError: there is none, or it cannot be used; the message names close ones.
        """
        with self._lock:
            self.loras.cards()
            return self.loras.find(name)

    def files(self, source: str) -> tuple[Any, ...]:
        """The cards of all gates or MixLoRAs as they are now, those with an error included."""
        with self._lock:
            return self.own[source].cards()

    def tuned(self) -> tuple[tuple[TunedWeights, ...], tuple[str, ...]]:
        """The tuned weights that can be used, and what is wrong with the others."""
        with self._lock:
            return self.weights.all()

    def find(self, recipe: Recipe) -> Any:
        """The card of a recipe's file.

        Raises:
            ComposerError: there is none of that name, or it cannot be used.
        """
        with self._lock:
            return self.own[recipe.source].find(recipe.file)

    def hash(self, recipe: Recipe, card: Any) -> str:
        """The hash of a recipe's file."""
        with self._lock:
            return self.own[recipe.source].hash(card)

    def lend(self, source: str, path: Path) -> str:
        """Add one file from anywhere, for whoever may name paths. Returns its name.

        Raises:
            ComposerError: it is of another kind.
        """
        with self._lock:
            return self.own[source].lend(path).name
