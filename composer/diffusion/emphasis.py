"""How strongly each word of a prompt counts, as A1111 writes it.

`(word)` counts 1.1 times, `[word]` 1/1.1 times, `(word:1.3)` 1.3 times; brackets may be nested, and
one that is never closed reaches to the end. `\\(` is a bracket of the text itself. The word BREAK
begins a new chunk of tokens. Brackets in which the prompt changes from step to step are read
before, by `composer.diffusion.editing`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from composer.errors import ComposerError

ROUND, SQUARE = 1.1, 1 / 1.1
MOST = 100.0
"""Weights beyond this are no emphasis, but a mistake: the picture would be lost."""

_PIECE = re.compile(
    r"\\(?P<literal>[()\[\]\\])"
    r"|(?P<open>[(\[])"
    r"|:\s*(?P<weight>[+-]?[.\d]+)\s*\)"
    r"|(?P<close>[)\]])"
    r"|(?P<text>[^\\()\[\]:]+|.)",
    re.DOTALL,
)
_BREAK = re.compile(r"\s*\bBREAK\b\s*")


@dataclass(frozen=True, kw_only=True)
class Emphasised:
    """A stretch of a prompt and its weight; `new_chunk`: a BREAK stands before it."""

    text: str
    weight: float = 1.0
    new_chunk: bool = False


def parse_emphasis(prompt: str) -> list[Emphasised]:
    """The stretches of a prompt, in their order; neighbours of one weight are one.

    Raises:
        ComposerError: a weight is no number or beyond all use.
    """
    pieces = list(_PIECE.finditer(prompt))
    factors, ends = _brackets(pieces)
    # brackets of one kind are nested, and may overlap those of the other
    around = {"(": [1.0], "[": [1.0]}
    found: list[Emphasised] = []
    for index, piece in enumerate(pieces):
        if opening := piece["open"]:
            around[opening].append(around[opening][-1] * factors[index])
        elif index in ends:
            around[ends[index]].pop()
        else:
            weight = around["("][-1] * around["["][-1]
            _add(found, piece["literal"] or piece[0], weight)
    for stretch in found:
        if not abs(stretch.weight) <= MOST:
            raise ComposerError(
                f"The emphasis of {stretch.text[:40]!r} in the prompt is {stretch.weight:g}: give "
                f"at most {MOST:g}; 0.5 to 1.5 is usual."
            )
    return found


def _brackets(pieces: list[re.Match[str]]) -> tuple[dict[int, float], dict[int, str]]:
    """By the place of each opening bracket, how strongly what is in it counts; and by the place of
    each closing one, which kind it closes. One without an opening bracket is part of the text."""
    factors: dict[int, float] = {}
    ends: dict[int, str] = {}
    opened: dict[str, list[int]] = {"(": [], "[": []}
    for index, piece in enumerate(pieces):
        if opening := piece["open"]:
            opened[opening].append(index)
            factors[index] = ROUND if opening == "(" else SQUARE
        elif piece["weight"] is not None or piece["close"]:
            kind = "[" if piece["close"] == "]" else "("
            if opened[kind]:
                begun = opened[kind].pop()
                ends[index] = kind
                if piece["weight"] is not None:
                    factors[begun] = _number(piece["weight"])
    return factors, ends


def _number(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise ComposerError(
            f"The prompt has {text[:40]!r} where an emphasis is needed: write a number, (word:1.2)."
        )
    return weight


def _add(found: list[Emphasised], text: str, weight: float) -> None:
    """Text of that weight; at each BREAK in it a new chunk begins."""
    first, *others = _BREAK.split(text)
    if found and found[-1].weight == weight:
        before = found.pop()
        found.append(
            Emphasised(text=before.text + first, weight=weight, new_chunk=before.new_chunk)
        )
    elif first:
        found.append(Emphasised(text=first, weight=weight))
    found += [Emphasised(text=other, weight=weight, new_chunk=True) for other in others]
