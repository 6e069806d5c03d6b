"""Prompts made of a few words: do they hold all words, and does the toybox's grammar read them?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.shared.intervals import share_columns
from benchmarks.shared.options import plain_parser, publish
from benchmarks.shared.results import ROOT, Row
from composer.language.complete import with_adapter
from composer.language.expand import ROUNDS, TEMPERATURE, TRIES, Expander
from composer.language.load import load_language_model
from toybox.captions import vocabulary
from toybox.jottings import SKILLS, Example
from toybox.stage_expand import Kept, judge_expander, judge_tries
from toybox.words import WORDS

NAME = "language.expand"
KINDS: dict[str, str] = {
    "base": "the base world",
    "names": "the base world, with an unknown name",
    **{skill: skill for skill in SKILLS},
    "mixed": "all of it together",
}


def asked(kind: str, count: int) -> list[Example]:
    """Jottings of one kind, of pairs of thing and place that training never saw."""
    if kind != "names":
        return WORDS.examples(kind, count, unseen=True, seed=1)
    known = {word.strip(",").lower() for word in vocabulary()} | set(WORDS.idle)
    known |= {"soccer", "background"}
    found: list[Example] = []
    seed = 2
    while len(found) < count:
        for example in WORDS.examples("base", count, unseen=True, seed=seed):
            words = example.jotting.words.replace(",", " ").split()
            if any(word not in known for word in words):
                found.append(example)
        seed += 1
    return found[:count]


def row(kind: str, way: str, kept: Sequence[Kept]) -> Row:
    """What was kept of one kind's jottings."""
    return {
        "words of": KINDS[kind],
        "made by": way,
        "n": len(kept),
        **share_columns("all words kept", [one.words for one in kept]),
        **share_columns("kept and understood", [one.understood and one.words for one in kept]),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write the results."""
    parser = plain_parser(NAME, __doc__)
    parser.add_argument("--count", type=int, default=200, help="jottings of each kind")
    parser.add_argument("--model", type=Path, default=ROOT / "assets/toybox/language")
    given = parser.parse_args(arguments)
    made = {kind: asked(kind, given.count) for kind in KINDS}
    rows: list[Row] = []
    language = load_language_model(given.model)
    for kind, some in made.items():
        rows.append(row(kind, "the base model, one try", judge_tries(language, some)))
    with with_adapter(language, given.model / "adapter"):
        for kind, some in made.items():
            rows.append(row(kind, "with MixLoRA, one try", judge_tries(language, some)))
    expander = Expander.load(given.model, understood=WORDS.is_understood)
    shown: list[str] = []
    for kind, some in made.items():
        kept = judge_expander(expander, some)
        rows.append(row(kind, f"the expander, best of {TRIES} to {TRIES * ROUNDS}", kept))
        shown += [f"`{one.example.jotting.words}` → {one.prompt}" for one in kept[:2]]
    notes = [
        "The words come from captions whose pair of thing and place no training saw. Kept: the "
        "prompt holds every word. Understood: the toybox's grammar reads the prompt as a scene "
        "with each thing, colour, piece of clothing, place and style that the words name. Words "
        "that no try keeps are put after the prompt, or the words stay as they are, so the "
        "expander loses none.",
        "The first prompts of each kind, not chosen: " + "; ".join(shown) + ".",
    ]
    publish(
        NAME,
        rows,
        arguments,
        title="Prompts made of a few words",
        notes=notes,
        settings={"temperature": TEMPERATURE, "tries": TRIES, "rounds": ROUNDS},
        folder=given.results,
    )


if __name__ == "__main__":
    main()
