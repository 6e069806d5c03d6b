r"""Prompts that change from step to step, as A1111 writes them.

`[from:to:when]` is one text up to a step and another after it; `[to:when]` and `[from::when]` begin
or end there. A `when` with a point, 0.5, is a part of the steps; one without is a step.
`[one|other]` takes turns. All may be nested, also within brackets of emphasis. Brackets that are no
such thing are left as they are, for `composer.diffusion.emphasis`.

A1111's grammar has no place for a `|` outside of such brackets, nor for a `\` before nothing: a
prompt with one of them does not change at all, whatever else it holds. Of a prompt with brackets
that are never closed it can be read in two ways; here what can change does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from composer.errors import ComposerError

MOST_CHARACTERS = 2**18
"""Of the different texts that one prompt comes to, together."""

_PIECE = re.compile(
    r"(?P<opening>[(\[])|(?P<closing>[)\]])|(?P<between>[:|])|(?P<lone>\\(?:\n|$))"
    # the colon that belongs to an embedding's name is text
    r"|(?:\\.|(?:(?<=<embed)|(?<=\bembedding)):|[^\\()\[\]:|])+",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*")


@dataclass(frozen=True)
class _Change:
    """One text up to a step and another after it."""

    before: list[_Item]
    after: list[_Item]
    when: str


@dataclass(frozen=True)
class _Choice:
    """Texts that take turns."""

    texts: list[list[_Item]]


_Item = str | list["_Item"] | _Change | _Choice


@dataclass
class _Open:
    """A bracket that is not closed yet, where it stands, and what is in it: sections, with what
    stands between them."""

    bracket: str = ""
    place: int = 0
    sections: list[list[_Item]] = field(default_factory=lambda: [[]])
    between: str = ""

    def flat(self) -> list[_Item]:
        """What is in it as it was written, with the bracket."""
        first, *others = self.sections
        items: list[_Item] = [self.bracket, first]
        for sign, section in zip(self.between, others, strict=True):
            items += [sign, section]
        return items

    def closed(self, bracket: str) -> _Item | None:
        """What it is with this bracket at its end; None where that is no part of the grammar."""
        if self.bracket + bracket not in ("()", "[]"):
            return None
        if not self.between or (self.between == ":" and self.bracket == "("):
            return [*self.flat(), bracket]
        if self.bracket == "(":
            return None
        if set(self.between) == {"|"}:
            return _Choice(self.sections)
        if self.between in (":", "::") and len(self.sections[-1]) == 1:
            (last,) = self.sections[-1]
            if isinstance(last, str) and (number := _NUMBER.fullmatch(last)):
                before = self.sections[0] if self.between == "::" else []
                return _Change(before, self.sections[-2], number[1])
        return None


@dataclass
class _Parsed:
    """A prompt as items, the changes in it, and the first of these as it was written."""

    items: list[_Item]
    changes: list[_Change | _Choice]
    first: str = ""


def _parse(prompt: str) -> _Parsed:
    """A bracket that is never closed, or closes none, may stand outside of all others only, so that
    those around it are none either."""
    opened = [_Open()]
    whole = opened[0].sections[0]
    parsed = _Parsed([prompt], [])
    unchanging = False

    def dissolve() -> bool:
        """The brackets that are open are text; whether the grammar has a place for it."""
        inner = opened[1:]
        whole.extend(item for each in inner for item in each.flat())
        del opened[1:]
        return "|" not in "".join(each.between for each in inner)

    for piece in _PIECE.finditer(prompt):
        inmost = opened[-1]
        if piece["opening"]:
            opened.append(_Open(piece[0], piece.start()))
        elif piece["closing"]:
            item = inmost.closed(piece[0])
            if item is None:
                unchanging |= not dissolve()
                whole.append(piece[0])
            else:
                opened.pop()
                opened[-1].sections[-1].append(item)
                if isinstance(item, _Change | _Choice):
                    parsed.changes.append(item)
                    parsed.first = parsed.first or prompt[inmost.place : piece.end()]
        elif piece["between"] and len(opened) > 1:
            inmost.between += piece[0]
            inmost.sections.append([])
        else:
            unchanging |= piece[0] == "|" or piece["lone"] is not None
            inmost.sections[-1].append(piece[0])
    unchanging |= not dissolve()
    if unchanging or not parsed.changes:
        return _Parsed([prompt], [])
    parsed.items = whole
    return parsed


def texts_at_steps(
    prompt: str, steps: int, passes: int | None = None, *, before: int | None = None
) -> list[str]:
    """The text of a prompt at each of so many passes of the U-Net, by default one for each step.

    As A1111 counts, a text that ends with step n is still that of pass n, the passes being counted
    from 0: the first one lasts a pass longer than the number says.

    before: the steps of the pass before, of a second one. Its first steps and fractions are then
        those: `[a:b:0.5]` is over, and `[a:b:1.5]` changes in the middle.

    Raises:
        ComposerError: the texts come to more than MOST_CHARACTERS.
    """
    count = steps if passes is None else passes
    parsed = _parse(prompt)
    if not parsed.changes:
        return [prompt] * count
    ends = {
        id(change): _end(change.when, steps, before)
        for change in parsed.changes
        if isinstance(change, _Change)
    }
    changing = any(isinstance(change, _Choice) for change in parsed.changes)
    known: dict[str, str] = {}
    texts: list[str] = []
    for number in range(count):
        step = min(max(number, 1), steps)
        if texts and not (changing or any(end == step - 1 for end in ends.values())):
            texts.append(texts[-1])
            continue
        text = _text(parsed.items, step, ends)
        texts.append(known.setdefault(text, text))
        if len(known) > 1 and sum(map(len, known)) > MOST_CHARACTERS:
            raise ComposerError(
                f"The prompt has {len(known)} different texts in its first {number + 1} steps, of "
                f"more than {MOST_CHARACTERS} characters together. Take some of the brackets out "
                f"in which it changes, such as {parsed.first[:80]!r}."
            )
    return texts


def check_unchanging(prompt: str) -> None:
    """Refuse a prompt that changes from step to step, where there are no steps.

    Raises:
        ComposerError: it does; the message names the first such brackets.
    """
    if first := _parse(prompt).first:
        raise ComposerError(
            f"{first[:80]!r} in the prompt changes from step to step, which is possible only where "
            "a picture is composed. Write one of its words, or \\[ for a bracket that is part of "
            "the text."
        )


def _end(when: str, steps: int, before: int | None) -> int:
    """The last step, counted from 1, of what comes first."""
    if "." in when:
        end = (float(when) - (before is not None)) * steps
    else:
        end = float(when) - (before or 0)
    return int(max(min(end, steps), -1))


def _text(items: list[_Item], step: int, ends: dict[int, int]) -> str:
    """The text at a step, counted from 1. No recursion: brackets may be nested by thousands."""
    text: list[str] = []
    waiting: list[_Item] = [items]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            text.append(item)
        elif isinstance(item, list):
            waiting += reversed(item)
        elif isinstance(item, _Choice):
            waiting.append(item.texts[(step - 1) % len(item.texts)])
        else:
            waiting.append(item.before if step <= ends[id(item)] else item.after)
    return "".join(text)
