"""All ways of fusing LoRAs, and which one a form, a command or a picture's record means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from composer.errors import ComposerError
from composer.experts.hashes import LEAST_DIGITS, SHORT
from composer.fusions.learned import Gates
from composer.fusions.merges import (
    Compressed,
    Dare,
    Knots,
    Magnitude,
    PeftLinear,
    Projected,
    RegMean,
    Ssr,
    Ties,
    ZipLora,
)
from composer.fusions.recipe import Recipe
from composer.fusions.schedules import KLora, Switch
from composer.fusions.several_passes import (
    Asymmetric,
    CmLora,
    Composite,
    DrawnPlaces,
    Loratorio,
    PromptSwitch,
)
from composer.fusions.sums import EvenEnergy, FreeFuse, MixLora, Normalised, Regions, Sum

if TYPE_CHECKING:
    from composer.fusions.libraries import Libraries

RECIPES: dict[str, type[Recipe]] = {
    recipe.kind: recipe
    for recipe in (
        Sum,
        Normalised,
        EvenEnergy,
        Regions,
        FreeFuse,
        DrawnPlaces,
        Ties,
        Dare,
        Magnitude,
        Compressed,
        Knots,
        Projected,
        RegMean,
        Ssr,
        ZipLora,
        KLora,
        Switch,
        PromptSwitch,
        Composite,
        CmLora,
        Loratorio,
        Asymmetric,
        PeftLinear,
        Gates,
        MixLora,
    )
}
PLAIN: tuple[Recipe, ...] = tuple(kind() for kind in RECIPES.values() if not kind.source)
"""Those that need no file, the usual one first."""


def read_recipe(key: object) -> Recipe:
    """The recipe whose `key` this is; it may come from a page, and be anything.

    Raises:
        ComposerError: there is none.
    """
    kind, colon, rest = key.partition(":") if isinstance(key, str) else ("", "", "")
    if kind not in RECIPES or bool(colon) != bool(rest) or (RECIPES[kind].source and not rest):
        plain = ", ".join(recipe.kind for recipe in PLAIN)
        raise ComposerError(f"There is no fusion {str(key)[:40]!r}. Choose one of: {plain}.")
    return RECIPES[kind](file=rest) if RECIPES[kind].source else RECIPES[kind].read_parameters(rest)


def recorded_recipe(fusion: Mapping[str, Any]) -> Recipe | None:
    """The recipe that a picture's record names, by the file's name then; None if none is known, or
    not with these parameters."""
    kind = RECIPES.get(str(fusion.get("name", "")))
    if kind is None:
        return None
    if kind.source:
        return kind(file=str(fusion.get(kind.source, "")) or "?")
    try:
        return kind(**{name: fusion[name] for name in kind().parameters if name in fusion})
    except ComposerError:
        return None


def recipe_now(fusion: Mapping[str, Any], libraries: Libraries, notes: list[str]) -> Recipe:
    """The recipe that a picture's record names, by its file's name now: by the hash if none has
    its name, or another one has. The sum where it is gone or not known.

    notes: takes what people should know of it.
    """
    recipe = recorded_recipe(fusion)
    if recipe is None:
        name = str(fusion.get("name", ""))
        notes.append(f"The fusion {name!r} is not known here; the weighted sum is used instead.")
        return Sum()
    if not recipe.source:
        return recipe
    what, are, have, without = recipe.missing
    library = libraries.of(recipe)
    name, digits = str(fusion.get(recipe.source, "")), str(fusion.get("hash", ""))
    named, problem = None, ""
    try:
        named = library.find(name, rescan=False)
    except ComposerError as error:
        problem = str(error)
    if named is not None and (not digits or library.hash(named).startswith(digits)):
        return replace(recipe, file=named.name)
    same = library.with_hash(digits) if len(digits) >= LEAST_DIGITS else ()
    if same:
        notes.append(f"{what} {name!r} {are} called {same[0].name!r} now.")
        return replace(recipe, file=same[0].name)
    if named is not None:
        notes.append(
            f"{what} {named.name!r} {have} changed since, so the picture will differ: it was made "
            f"with the file whose hash begins {digits[:SHORT]}."
        )
        return replace(recipe, file=named.name)
    hashed = f" The file's hash begins {digits[:SHORT]}." if digits else ""
    notes.append(f"{problem}{hashed} {without}")
    return Sum()
