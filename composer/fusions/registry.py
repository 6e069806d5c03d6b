"""All ways of fusing LoRAs, and which one a form, a command or a picture's record means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from composer.errors import ComposerError
from composer.fusions.learned import Gates
from composer.fusions.recipe import Recipe
from composer.fusions.sums import MixLora, Normalised, Regions, Sum

RECIPES: dict[str, type[Recipe]] = {
    recipe.kind: recipe for recipe in (Sum, Normalised, Regions, Gates, MixLora)
}
PLAIN: tuple[Recipe, ...] = tuple(kind() for kind in RECIPES.values() if not kind.source)
"""Those that need no file, the usual one first."""


def read_recipe(key: object) -> Recipe:
    """The recipe whose `key` this is; it may come from a page, and be anything.

    Raises:
        ComposerError: there is none.
    """
    kind, colon, file = key.partition(":") if isinstance(key, str) else ("", "", "")
    if kind not in RECIPES or (bool(colon), bool(file)) != (bool(RECIPES[kind].source),) * 2:
        plain = ", ".join(recipe.kind for recipe in PLAIN)
        raise ComposerError(f"There is no fusion {str(key)[:40]!r}. Choose one of: {plain}.")
    return RECIPES[kind](file=file)


def recorded_recipe(fusion: Mapping[str, Any]) -> Recipe | None:
    """The recipe that a picture's record names, by the file's name then; None if none is known."""
    kind = RECIPES.get(str(fusion.get("name", "")))
    if kind is None:
        return None
    return kind(file=str(fusion.get(kind.source, "")) or "?") if kind.source else kind()
