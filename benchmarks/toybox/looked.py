"""Draw a hundred pictures for a person to look at, and see whether the oracle sees the same.

Two fifths are of the base model, the others sums of LoRAs with weights of 1. The pictures are kept
as one sheet beside this module. A person who does not know the prompts writes a line for each into
the answers, row by row: the figures from left to right, the place, and the style if there is one,
as in "panda, unclear / city / neon"; "unclear" is a figure or a place that no one can name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path

from PIL import Image

from benchmarks.shared.intervals import share_columns
from benchmarks.shared.options import options, parser
from benchmarks.shared.pictures import Case, Studio
from benchmarks.shared.results import Row
from benchmarks.shared.sets import KINDS, cases, sets_of, weighed
from composer.errors import ComposerError
from toybox import measure
from toybox.oracle import HEADS, SLOTS, Oracle
from toybox.world import MOST_FIGURES, Element

NAME = "toybox.looked"
SHEET = Path(__file__).parent / "looked.png"
ANSWERS = SHEET.with_suffix(".txt")
COUNT, ACROSS, BASE, STEPS = 100, 10, 40, 20
AGREE = "≥ 95 %"
_KNOWN = {
    "figure": {str(name) for slot in SLOTS for name in HEADS[slot] if name} | {"unclear"},
    "place": {str(name) for name in HEADS["background"] if name} | {"unclear"},
    "style": {str(name) for name in HEADS["style"] if name},
}


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a person sees in one picture."""

    figures: tuple[str, ...]
    place: str
    style: str | None = None


def looked_cases(elements: Sequence[Element]) -> list[Case]:
    """The pictures, always the same for the same LoRAs: prompts and seeds of no other purpose."""
    each = -(-BASE // MOST_FIGURES)
    base = [Case(**vars(case)) for case in measure.cases(each)[:BASE]]
    base = [replace(case, seed=case.seed + 5000) for case in base]
    by_kind = [sets_of(elements, kinds, COUNT, order="looked") for kinds in KINDS]
    in_turn = [some for some in chain(*zip_longest(*by_kind)) if some is not None]
    fused = [
        weighed(cases(some, 1, "looked", 95_000 + number)[0], some, [1.0] * len(some))
        for number, some in enumerate(in_turn[: COUNT - BASE])
    ]
    return [*base, *fused]


def cut(sheet: Image.Image) -> list[Image.Image]:
    """The pictures of the sheet, row by row."""
    side = sheet.width // ACROSS
    return [
        sheet.crop((x, y, x + side, y + side))
        for y in range(0, sheet.height, side)
        for x in range(0, sheet.width, side)
    ]


def read_answers(text: str) -> list[Look]:
    """One for each line.

    Raises:
        ComposerError: a line is not written so, or names what the world does not have.
    """
    found: list[Look] = []
    for number, line in enumerate(text.strip().splitlines(), 1):
        parts = [part.strip() for part in line.split("/")]
        figures = tuple(word.strip() for word in parts[0].split(","))
        look = Look(
            figures=figures,
            place=parts[1] if len(parts) > 1 else "",
            style=parts[2] if len(parts) > 2 else None,
        )
        named = [("figure", one) for one in figures] + [("place", look.place)]
        named += [("style", look.style)] if look.style else []
        for kind, word in named:
            if word not in _KNOWN[kind]:
                raise ComposerError(
                    f"{ANSWERS.name}, line {number}: there is no {kind} {word!r} in this world."
                )
        found.append(look)
    return found


def agreement_rows(
    oracle: Oracle, images: Sequence[Image.Image], looks: Sequence[Look]
) -> list[Row]:
    """How often the oracle says what the person says: of each figure that either of them sees, of
    places and of styles.

    Raises:
        ComposerError: there are more pictures than answers, or fewer.
    """
    if len(images) != len(looks):
        raise ComposerError(
            f"{ANSWERS.name} has {len(looks)} lines, and there are {len(images)} pictures."
        )
    alike: dict[str, list[bool]] = {"figures": [], "places": [], "styles": []}
    for look, verdict in zip(looks, oracle.judge(images), strict=True):
        for index, slot in enumerate(SLOTS):
            seen = look.figures[index] if index < len(look.figures) else None
            if seen or verdict.answers[slot]:
                alike["figures"].append(seen == verdict.answers[slot])
        alike["places"].append(look.place == verdict.answers["background"])
        alike["styles"].append(look.style == verdict.answers["style"])
    every = [answer for answers in alike.values() for answer in answers]
    return [
        {
            "table": "The oracle beside a person",
            "answers": what,
            "n": len(answers),
            **share_columns("alike", answers),
            "asked for": AGREE if what == "all" else None,
        }
        for what, answers in {**alike, "all": every}.items()
    ]


def rows_of(oracle: Oracle) -> list[Row]:
    """Of the sheet and the answers that are kept; none without answers."""
    if not ANSWERS.exists():
        return []
    with Image.open(SHEET) as sheet:
        images = cut(sheet.convert("RGB"))
    return agreement_rows(oracle, images, read_answers(ANSWERS.read_text(encoding="utf-8")))


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the sheet; the answers are a person's work."""
    asked = parser(NAME, __doc__ or "", count=COUNT, what="pictures, always as many")
    asked.set_defaults(steps=STEPS)
    given = asked.parse_args(arguments)
    studio = Studio(options(NAME, given, arguments))
    judged = studio.judge(looked_cases(studio.elements()))
    side = judged[0].image.width
    sheet = Image.new("RGB", (ACROSS * side, -(-len(judged) // ACROSS) * side))
    for number, one in enumerate(judged):
        sheet.paste(one.image, (number % ACROSS * side, number // ACROSS * side))
    sheet.save(SHEET, optimize=True)
    print(f"{SHEET} is drawn: write what each picture shows into {ANSWERS.name}, a line for each.")


if __name__ == "__main__":
    main()
