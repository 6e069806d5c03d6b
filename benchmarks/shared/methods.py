"""docs/methods.md: every way of fusing, from the recipes themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.shared.markdown import markdown_table
from composer.fusions import RECIPES
from composer.settings import choices_of, fields_of

HEAD = """# Ways of fusing LoRAs

All that Composer can do with several LoRAs, on the page and by `--fusion NAME`; parameters follow
a colon, `--fusion ties:density=0.3,rank=8`. `python -m benchmarks.tables` writes this page from
the recipes in `composer/fusions/`, whose docstrings have the equations; the tests compare each
with PEFT, with a whole SVD or with its definition.

Text encoders are treated alike: they take the LoRAs added up with their weights, and read the
prompt once. (Of the sums with other weights, NLA and Total strength weigh there too.)

"Passes" are those of the U-Net for each step, as many times as of one fused model; k is the
number of LoRAs. A merge is made once, when its LoRAs, weights or parameters change."""

ELSEWHERE = """## Beside a method

Weights by block (`lbw=` in a tag, or pins of units), by step (`start=`, `stop=`,
`--lora NAME=1@0:0.5`) and by depth go with the weighted sum, NLA, Total strength, trigger regions,
FreeFuse and gates. Methods that take all LoRAs as one refuse them."""


def methods_page(advice: Sequence[str] = ()) -> str:
    """The page's text. advice: paragraphs on which to use, from what was measured."""
    parts = [HEAD, markdown_table(list(_rows()))]
    parts += ["## Which should I use?", *advice] if advice else []
    parts += ["## Parameters", markdown_table(list(_parameters())), ELSEWHERE]
    return "\n\n".join(parts) + "\n"


def _rows() -> Iterator[Mapping[str, Any]]:
    for kind, recipe in RECIPES.items():
        name = f"`--{recipe.source} FILE`" if recipe.source else f"`{kind}`"
        yield {
            "way": f"[{recipe.title}]({recipe.paper})",
            "name": name,
            "what it does": recipe.description,
            "passes": recipe.passes_needed,
            "LoRAs": str(recipe.exactly or "any"),
        }


def _parameters() -> Iterator[Mapping[str, Any]]:
    for kind, recipe in RECIPES.items():
        if recipe.source:
            continue
        about = fields_of(recipe)
        for name, usual in recipe().parameters.items():
            choices = choices_of(about[name][0])
            yield {
                "name": f"`{kind}:{name}`",
                "what it is": about[name][1].help,
                "range": " or ".join(choices) if choices else about[name][1].range,
                "default": str(usual),
            }
