"""What the page and the command line ask of the studio, and which LoRAs are active in the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from composer.diffusion.prompt import MAX_LORAS, LoraTag, parse_negative, parse_prompt
from composer.diffusion.record import LoraRecord
from composer.diffusion.request import Request, Start
from composer.errors import ComposerError
from composer.fusions import LoraRow, Pin, Recipe, Sum, with_blocks
from composer.fusions.recipe import NONE


def row_of(lora: LoraTag | LoraRecord) -> LoraRow:
    """The row that a tag in a prompt, or a picture's record, stands for."""
    apart = None if lora.text_encoder == lora.unet else lora.text_encoder
    return LoraRow(name=lora.name, weight=lora.unet, text_encoder=apart)


@dataclass(frozen=True, kw_only=True)
class ComposeRequest:
    """Pictures with several LoRAs: the rows, how they are fused, and how to sample.

    The prompt may hold tags, `<lora:name:weight>`: a tag rules over the row of the same name, and
    adds a row where there is none. Its block weights become pins of the U-Net's blocks.

    recipe: how the LoRAs are fused.
    gate_map: whether the weights that gates give are kept beside each picture.
    pins: weights of units by hand, whatever the gates or the fusion would give there; the later one
        holds where two are for one unit.
    start: a picture to begin from.
    """

    request: Request = field(default_factory=Request)
    rows: tuple[LoraRow, ...] = ()
    recipe: Recipe = field(default_factory=Sum)
    gate_map: bool = False
    pins: tuple[Pin, ...] = ()
    start: Start | None = None

    def __post_init__(self) -> None:
        if len(self.rows) > MAX_LORAS:
            raise ComposerError(
                f"{len(self.rows)} LoRAs are chosen; {MAX_LORAS} are the most. Take some of them "
                "out."
            )
        count = Counter(row.name for row in self.rows)
        if twice := next((name for name, times in count.items() if times > 1), None):
            raise ComposerError(f"The LoRA {twice!r} is chosen twice. Remove one of its rows.")

    def with_rows(self, rows: Iterable[LoraRow]) -> ComposeRequest:
        """The same request with these rows instead of those of their names, and besides."""
        rows = tuple(rows)
        ruled = {row.name for row in rows}
        return replace(self, rows=(*(row for row in self.rows if row.name not in ruled), *rows))

    def with_recipe(
        self,
        recipe: Recipe,
        *,
        pins: tuple[Pin, ...] = (),
        usual: Mapping[str, float] = NONE,
    ) -> ComposeRequest:
        """The same LoRAs fused otherwise; their units may be called otherwise then, so pins are for
        the new recipe. usual: as for `Recipe.chosen_again`."""
        rows = self.recipe.chosen_again(self.rows, recipe, usual)
        return replace(self, recipe=recipe, rows=rows, gate_map=recipe.gated, pins=pins)

    def merged(self, full_name: Callable[[str], str]) -> ComposeRequest:
        """The same request with the prompt's tags turned into rows.

        full_name: what the library calls a LoRA that was named more shortly; it refuses a name
            that it does not know. Rows that are off are not looked up, unless gates are asked to
            leave them out, or pins may make them active.

        Raises:
            ComposerError: a tag is malformed, stands in the negative prompt, or asks for what the
                recipe cannot do.
        """
        parsed = parse_prompt(self.request.prompt)
        parse_negative(self.request.negative_prompt)
        named = [
            replace(row, name=full_name(row.name))
            if row.active or self.recipe.gated or self.pins
            else row
            for row in self.rows
        ]
        limited = {
            row.name: {"steps": row.steps, "depth": row.depth, "place": row.place} for row in named
        }
        tags: dict[str, LoraTag] = {}
        for tag in parsed.loras:
            name = full_name(tag.name)
            tags[name] = tags[name].plus(tag) if name in tags else tag
        tagged = [
            replace(row_of(tag), name=name, **(limited.get(name, {}) | self._own_span(tag)))
            for name, tag in tags.items()
        ]
        names = {name: full_name(name) for pin in self.pins for name in pin.weights}
        merged = replace(
            self,
            request=replace(self.request, prompt=parsed.text),
            rows=tuple(named),
            pins=tuple(pin.renamed(names) for pin in self.pins),
        ).with_rows(tagged)
        blocks = {name: tag.blocks for name, tag in tags.items() if tag.blocks}
        if blocks and not self.recipe.by_blocks:
            raise ComposerError(
                f"The tag {str(tags[next(iter(blocks))])!r} has block weights, which hold in a "
                f"weighted sum and not in {self.recipe.title!r}. Choose the weighted sum, or take "
                "lbw= out."
            )
        rows, pins = with_blocks(merged.rows, blocks)
        return replace(merged, rows=rows, pins=(*pins, *merged.pins))

    def _own_span(self, tag: LoraTag) -> dict[str, Any]:
        """The steps of a tag that says them."""
        if tag.start is None and tag.stop is None:
            return {}
        return {"steps": tag.span(self.request.steps)}
