"""The expressions by which PEFT's configs name modules, matched in bounded time.

A config from a stranger may hold an expression that keeps Python's `re` busy for ever. Here all
places where a part of an expression can end are followed at once, so nothing is tried twice, and
the work is counted: what takes too much is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_MAX_PATTERN = 300
_MAX_STEPS = 100_000
_CLASSES = {"d": re.compile(r"\d"), "w": re.compile(r"\w"), "s": re.compile(r"\s")}
_Places = frozenset[int]
_Node = Callable[["_Text", _Places], _Places]


class _Text:
    """A text in which an expression is looked for, and how much work that was."""

    def __init__(self, text: str) -> None:
        self.text, self.steps = text, 0

    def work(self, amount: int) -> None:
        self.steps += amount + 1
        if self.steps > _MAX_STEPS:
            raise ValueError("takes too long")


def is_expression(pattern: str) -> bool:
    """Whether it is more than a name, in which a dot stands for any character."""
    return re.fullmatch(r"[\w.]+", pattern) is None


def compile_pattern(pattern: str) -> Callable[[str], bool]:
    """Whether a module's name ends with what an expression means, at a dot or as a whole, as PEFT
    looks for it: `re.match(rf"(.*\\.)?({pattern})$", name)`.

    Raises:
        ValueError: the expression, or the search, has more than what is read here: characters, `.`,
            `[...]`, `\\d`, `\\w`, `\\s`, `(...)`, `|`, `*`, `+`, `?`, `{2,3}`, `^` and `$`.
    """
    if len(pattern) > _MAX_PATTERN:
        raise ValueError(f"is longer than {_MAX_PATTERN} characters")
    if not is_expression(pattern):  # quick, for configs name every module
        return lambda name: _ends_with(name, pattern)
    node = _Parser(pattern).parse()

    def matches(name: str) -> bool:
        text = _Text(name)
        starts = frozenset({0} | {at + 1 for at, character in enumerate(name) if character == "."})
        return len(name) in node(text, starts)

    return matches


def _ends_with(name: str, wanted: str) -> bool:
    start = len(name) - len(wanted)
    return (start == 0 or (start > 0 and name[start - 1] == ".")) and all(
        character in (there, ".") for character, there in zip(wanted, name[start:], strict=True)
    )


class _Parser:
    """Recursive descent over an expression; groups nest at most as deep as it is long."""

    def __init__(self, pattern: str) -> None:
        self.pattern, self.at = pattern, 0

    def parse(self) -> _Node:
        node = self._choice(0)
        if self.at < len(self.pattern):
            raise ValueError("has a bracket too many")
        return node

    def _peek(self) -> str:
        return self.pattern[self.at : self.at + 1]

    def _choice(self, depth: int) -> _Node:
        if depth > 10:
            raise ValueError("has brackets in brackets too deep")
        choices = [self._sequence(depth)]
        while self._peek() == "|":
            self.at += 1
            choices.append(self._sequence(depth))
        return choices[0] if len(choices) == 1 else _any(choices)

    def _sequence(self, depth: int) -> _Node:
        nodes: list[_Node] = []
        while self._peek() not in ("", "|", ")"):
            nodes.append(self._repeated(self._atom(depth)))
        return _all(nodes)

    def _repeated(self, node: _Node) -> _Node:
        mark = self._peek()
        found = re.compile(r"\{(\d{1,2})(,)?(\d{1,2})?\}").match(self.pattern, self.at)
        if mark and mark in "*+?":
            self.at += 1
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[mark]
        elif found:
            self.at = found.end()
            least = int(found[1])
            most = int(found[3]) if found[3] else None if found[2] else least
        else:
            return node
        if self._peek() and self._peek() in "*+?{":
            if self._peek() != "?":  # what is as short as can be ends at the same places
                raise ValueError("repeats a repetition")
            self.at += 1
        return _repeat(node, least, most)

    def _atom(self, depth: int) -> _Node:
        character = self._peek()
        self.at += 1
        if character == "(":
            if self._peek() == "?":
                if self.pattern[self.at : self.at + 2] != "?:":
                    raise ValueError("has a bracket of a kind that is not read")
                self.at += 2
            node = self._choice(depth + 1)
            if self._peek() != ")":
                raise ValueError("has a bracket too few")
            self.at += 1
            return node
        if character == "[":
            # The library parses the class alone: one character cannot take long.
            end = self.pattern.find("]", self.at + (2 if self._peek() == "^" else 1))
            if end < 0:
                raise ValueError("has a bracket too few")
            inside, self.at = self.pattern[self.at - 1 : end + 1], end + 1
            try:
                return _one(re.compile(inside, re.DOTALL))
            except re.error as error:
                raise ValueError(f"is no expression ({error})") from None
        if character == "\\":
            escaped = self._peek()
            self.at += 1
            if escaped in _CLASSES and escaped:
                return _one(_CLASSES[escaped])
            if not escaped or escaped.isalnum():
                raise ValueError("has an escape that is not read")
            return _one(re.compile(re.escape(escaped)))
        if character == ".":
            return _one(re.compile("."))
        if character in "^$":
            return _edge(at_end=character == "$")
        if character in "*+?{":
            raise ValueError("repeats nothing")
        return _one(re.compile(re.escape(character)))


def _one(character: re.Pattern[str]) -> _Node:
    def node(text: _Text, places: _Places) -> _Places:
        text.work(len(places))
        return frozenset(
            at + 1
            for at in places
            if at < len(text.text) and character.fullmatch(text.text[at]) is not None
        )

    return node


def _edge(*, at_end: bool) -> _Node:
    return lambda text, places: places & {len(text.text) if at_end else 0}


def _all(nodes: list[_Node]) -> _Node:
    def node(text: _Text, places: _Places) -> _Places:
        for part in nodes:
            places = part(text, places)
        return places

    return node


def _any(choices: list[_Node]) -> _Node:
    return lambda text, places: frozenset[int]().union(*(one(text, places) for one in choices))


def _repeat(part: _Node, least: int, most: int | None) -> _Node:
    def node(text: _Text, places: _Places) -> _Places:
        for _ in range(least):
            places = part(text, places)
        reached = new = places
        times = least
        while new and (most is None or times < most):
            text.work(1)
            new = part(text, new) - reached
            reached |= new
            times += 1
        return reached

    return node
