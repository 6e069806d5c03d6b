"""What a person saw in generated pictures, beside what the oracle sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from PIL import Image

from benchmarks.toybox import looked
from benchmarks.toybox.looked import Look, agreement_rows, cut, looked_cases, read_answers
from composer.errors import ComposerError
from toybox.measure import cases
from toybox.oracle import HEADS, SLOTS, Verdict
from toybox.world import ELEMENTS


class Said:
    """An oracle that says what it is told."""

    def __init__(self, verdicts: Sequence[Verdict]) -> None:
        self.verdicts = list(verdicts)

    def judge(self, images: Sequence[Image.Image]) -> list[Verdict]:
        assert len(images) == len(self.verdicts)
        return self.verdicts


def verdict(*figures: str, place: str, style: str | None = None) -> Verdict:
    answers: dict[str, Any] = dict.fromkeys(HEADS)
    answers |= dict(zip(SLOTS, figures, strict=False))
    return Verdict({**answers, "background": place, "style": style})


def test_each_figure_place_and_style_is_compared() -> None:
    looks = read_answers("cat / beach\n cat, unclear/unclear / neon\ncat,dog/night\n")
    assert looks[1] == Look(figures=("cat", "unclear"), place="unclear", style="neon")
    oracle: Any = Said(
        [
            verdict("cat", "dog", place="beach"),  # a figure more
            verdict("cat", "unclear", place="beach", style="neon"),
            verdict("dog", "dog", place="night", style="neon"),
        ]
    )
    images = [Image.new("RGB", (4, 4))] * 3
    rows = {row["answers"]: row for row in agreement_rows(oracle, images, looks)}
    counts = {what: (row["n"], row["alike"]) for what, row in rows.items()}
    assert counts == {
        "figures": (6, pytest.approx(4 / 6, abs=1e-4)),
        "places": (3, pytest.approx(2 / 3, abs=1e-4)),
        "styles": (3, pytest.approx(2 / 3, abs=1e-4)),
        "all": (12, pytest.approx(8 / 12, abs=1e-4)),
    }
    with pytest.raises(ComposerError, match="has 3 lines, and there are 2 pictures"):
        agreement_rows(oracle, [Image.new("RGB", (4, 4))] * 2, looks)


@pytest.mark.parametrize(
    ("line", "kind", "word"),
    [("cot / beach", "figure", "cot"), ("cat", "place", ""), ("cat / beach / oil", "style", "oil")],
)
def test_what_the_world_has_not_is_named_with_its_line(line: str, kind: str, word: str) -> None:
    with pytest.raises(ComposerError, match=f"line 2: there is no {kind} {word!r} in this world"):
        read_answers(f"cat / beach\n{line}")


def test_there_are_a_hundred_pictures_with_and_without_loras() -> None:
    made = looked_cases(ELEMENTS)
    assert len(made) == looked.COUNT
    assert [bool(case.weights) for case in made] == [False] * looked.BASE + [True] * 60
    assert made == looked_cases(ELEMENTS)
    assert len({case.seed for case in made}) == looked.COUNT
    assert not {case.seed for case in made} & {case.seed for case in cases(200)}
    assert len({case.weights for case in made[looked.BASE :]}) == 60
    assert {len(case.weights) for case in made[looked.BASE :]} == {2, 3}


def test_a_sheet_is_cut_row_by_row() -> None:
    sheet = Image.new("RGB", (80, 16))
    for number in range(20):
        sheet.paste((number, 0, 0), (number % 10 * 8, number // 10 * 8, number % 10 * 8 + 8, 16))
    assert [image.getpixel((3, 3))[0] for image in cut(sheet)] == list(range(20))  # type: ignore[index]


def test_what_is_kept_can_be_read() -> None:
    if looked.ANSWERS.exists():
        with Image.open(looked.SHEET) as sheet:
            images = cut(sheet.convert("RGB"))
        assert len(images) == len(read_answers(looked.ANSWERS.read_text("utf-8"))) == looked.COUNT
