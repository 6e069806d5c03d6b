"""Scenes with the elements to be measured, and which answers belong to what."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from toybox.oracle import SLOTS, judgeable
from toybox.world import (
    MOST_FIGURES,
    THINGS,
    WEARERS,
    Element,
    Figure,
    Scene,
    random_background,
    random_figure,
    random_scene,
)

FIGURE_KINDS = ("character", "clothing", "object")


def scene_with(elements: Sequence[Element], rng: random.Random, *, dressed: bool = False) -> Scene:
    """A scene that shows every one of `elements`, and otherwise only the base world.

    Characters, objects and wearers of clothing are figures of their own, in any order. They take
    the places of figures of a scene of the base world, so some scenes have others beside them.

    dressed: characters wear the clothing, those that can.
    """
    scene = random_scene(rng)
    clothing = [taught.name for taught in elements if taught.kind == "clothing"]
    figures: list[Figure] = []
    for taught in elements:
        if taught.kind in FIGURE_KINDS and taught.kind != "clothing":
            wears = clothing.pop(0) if dressed and clothing and taught.name in WEARERS else None
            figures.append(Figure(name=taught.name, wears=wears))
    for name in clothing:
        taken = {figure.name for figure in (*figures, *scene.figures)}
        wearer = rng.choice([w for w in WEARERS if w in THINGS and w not in taken])
        figures.append(Figure(name=wearer, wears=name))
    figures += scene.figures[len(figures) :]
    rng.shuffle(figures)
    named = {taught.kind: taught.name for taught in elements}
    return Scene(
        figures=tuple(figures),
        background=named.get("background") or scene.background,
        style=named.get("style"),
    )


def fits(elements: Sequence[Element], *, dressed: bool = False) -> bool:
    """Whether a scene has room for the figures that `scene_with` needs."""
    figures = [taught for taught in elements if taught.kind in FIGURE_KINDS]
    clothing = sum(taught.kind == "clothing" for taught in figures)
    wearers = sum(taught.name in WEARERS for taught in figures)
    return len(figures) - (min(clothing, wearers) if dressed else 0) <= MOST_FIGURES


def without(scene: Scene, taught: Element, rng: random.Random) -> Scene:
    """The same scene with `taught` replaced by something of the base world, or left out."""
    if taught.kind == "style":
        return dataclasses.replace(scene, style=None)
    if taught.kind == "background":
        return dataclasses.replace(scene, background=random_background(rng))
    figures = list(scene.figures)
    at = _place_of(scene, taught)
    if taught.kind == "clothing":
        figures[at] = dataclasses.replace(figures[at], wears=None)
    else:
        names = {figure.name for figure in figures}
        while figures[at].name in names:
            figures[at] = random_figure(rng)
    return dataclasses.replace(scene, figures=tuple(figures))


def element_heads(scene: Scene, taught: Element) -> frozenset[str]:
    """The oracle's heads that say whether `taught` is in the picture, where it should be."""
    if taught.kind in ("style", "background"):
        return frozenset((taught.kind,))
    side = SLOTS[_place_of(scene, taught)]
    return frozenset((f"{side}_wears" if taught.kind == "clothing" else side,))


def rest_heads(scene: Scene, elements: Sequence[Element]) -> frozenset[str]:
    """All other heads that can be asked of the scene."""
    return judgeable(scene).difference(*(element_heads(scene, taught) for taught in elements))


def _place_of(scene: Scene, taught: Element) -> int:
    for index, figure in enumerate(scene.figures):
        if taught.name in (figure.name, figure.wears):
            return index
    raise ValueError(f"the scene shows no {taught.name}")


def look(count: int, seed: str) -> list[Scene]:
    """Scenes of the base world for a benchmark, always the same for the same seed."""
    rng = random.Random(f"benchmark {seed}")
    return [random_scene(rng) for _ in range(count)]
