"""Counts of work: how much a function does for a text, whatever the machine's speed.

Counted are the byte codes that Python runs in Composer's own modules, and the steps of a
backtracking matcher in every regular expression that they use. Library calls such as `str.find`
count as one step, so a parser that cuts the rest of its text off in each round is not found out.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from types import FrameType
from typing import Any

# of the standard library, and without types there
_NEW = sys.version_info >= (3, 11)
parser: Any = import_module("re._parser" if _NEW else "sre_parse")
compiler: Any = import_module("re._compiler" if _NEW else "sre_compile")

Next = Callable[[int], bool]
DEEP = 100_000


def work(function: Callable[[str], object], text: str, monkeypatch: Any) -> int:
    """The steps that a function needs for a text; an error that it raises is an answer too."""
    counter = _Counter()
    with monkeypatch.context() as patched:
        for name, module in list(sys.modules.items()):
            if name.startswith("composer."):
                values: dict[str, Any] = dict(vars(module))
                for key, value in values.items():
                    if isinstance(value, re.Pattern):
                        patched.setattr(module, key, _Pattern(value, counter))
                if getattr(module, "re", None) is re:
                    patched.setattr(module, "re", _Re(counter))
        limit, tracer = sys.getrecursionlimit(), sys.gettrace()
        sys.setrecursionlimit(DEEP)
        sys.settrace(counter.trace)
        try:
            function(text)
        except ValueError:
            pass
        finally:
            sys.settrace(tracer)
            sys.setrecursionlimit(limit)
    return counter.steps


def growth(
    function: Callable[[str], object], text: Callable[[int], str], monkeypatch: Any, size: int = 60
) -> float:
    """How many times as much work twice the text is: 2 where it grows with the length."""
    once, twice = (work(function, text(n), monkeypatch) for n in (size, 2 * size))
    return twice / once


class _Counter:
    def __init__(self) -> None:
        self.steps = 0

    def trace(self, frame: FrameType, event: str, arg: object) -> Any:
        if not frame.f_globals.get("__name__", "").startswith("composer."):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        self.steps += event == "opcode"
        return self.trace


class _Re:
    """The module `re` for patterns that are compiled on the way."""

    def __init__(self, counter: _Counter) -> None:
        self._counter = counter

    def __getattr__(self, name: str) -> Any:
        if name == "compile":
            return lambda *arguments: _Pattern(re.compile(*arguments), self._counter)
        if name not in ("match", "fullmatch", "search", "sub", "subn", "split", "findall"):
            return getattr(re, name)

        def call(pattern: str, *arguments: Any, **options: Any) -> Any:
            compiled = re.compile(pattern, options.pop("flags", 0))
            return getattr(_Pattern(compiled, self._counter), name)(*arguments, **options)

        return call


class _Pattern:
    """A pattern that answers as `re` does, and counts."""

    def __init__(self, pattern: re.Pattern[str], counter: _Counter) -> None:
        self._pattern, self._counter = pattern, counter
        self._nodes = list(parser.parse(pattern.pattern, pattern.flags))
        self.pattern = pattern.pattern

    def match(self, text: str, place: int = 0) -> re.Match[str] | None:
        self._from(text, place)
        return self._pattern.match(text, place)

    def fullmatch(self, text: str) -> re.Match[str] | None:
        self._from(text, 0, lambda place: place == len(text))
        return self._pattern.fullmatch(text)

    def search(self, text: str, place: int = 0) -> re.Match[str] | None:
        found = self._pattern.search(text, place)
        self._between(text, place, found.start() if found else len(text))
        return found

    def finditer(self, text: str) -> Any:
        self._everywhere(text)
        return self._pattern.finditer(text)

    def findall(self, text: str) -> Any:
        self._everywhere(text)
        return self._pattern.findall(text)

    def split(self, text: str) -> Any:
        self._everywhere(text)
        return self._pattern.split(text)

    def sub(self, new: Any, text: str) -> str:
        self._everywhere(text)
        return self._pattern.sub(new, text)

    def subn(self, new: Any, text: str) -> tuple[str, int]:
        self._everywhere(text)
        return self._pattern.subn(new, text)

    def _everywhere(self, text: str) -> None:
        place = 0
        for found in self._pattern.finditer(text):
            self._between(text, place, found.start())
            place = max(found.end(), found.start() + 1)
        self._between(text, place, len(text))

    def _between(self, text: str, start: int, end: int) -> None:
        for place in range(start, end + 1):
            self._from(text, place)

    def _from(self, text: str, place: int, then: Next = lambda place: True) -> None:
        tracer = sys.gettrace()
        sys.settrace(None)  # the matcher's own work is no work
        self._run(self._nodes, 0, text, place, then)
        sys.settrace(tracer)

    def _run(self, nodes: Sequence[Any], index: int, text: str, place: int, then: Next) -> bool:
        """Whether the nodes from `index` on match at a place, and `then` what follows them."""
        self._counter.steps += 1
        if index == len(nodes):
            return then(place)
        kind, value = nodes[index]
        name = str(kind)

        def after(end: int) -> bool:
            return self._run(nodes, index + 1, text, end, then)

        if name in ("MAX_REPEAT", "MIN_REPEAT"):
            least, most, inner = value
            return self._repeat(list(inner), least, int(most), text, place, after)
        if name == "SUBPATTERN":
            return self._run(list(value[3]), 0, text, place, after)
        if name == "BRANCH":
            return any(self._run(list(inner), 0, text, place, after) for inner in value[1])
        if name in ("ASSERT", "ASSERT_NOT"):
            direction, inner = value
            start = place if direction > 0 else place - inner.getwidth()[0]
            there = start >= 0 and self._run(list(inner), 0, text, start, lambda end: True)
            return there == (name == "ASSERT") and after(place)
        flags = self._pattern.flags & ~re.DEBUG
        tree = parser.SubPattern(parser.State(), [nodes[index]])
        single = _compiled(tree, flags).match(text, place)
        return single is not None and after(single.end())

    def _repeat(
        self, inner: list[Any], least: int, most: int, text: str, place: int, after: Next
    ) -> bool:
        self._counter.steps += 1
        if most:

            def again(end: int) -> bool:
                return end > place and self._repeat(
                    inner, max(0, least - 1), most - 1, text, end, after
                )

            if self._run(inner, 0, text, place, again):
                return True
        return not least and after(place)


def _compiled(tree: Any, flags: int) -> re.Pattern[str]:
    """The pattern of one node: a letter, a class, a place."""
    key = (str(tree.data), flags)
    if key not in _KNOWN:
        tree.state.flags, tree.state.str = flags, ""
        _KNOWN[key] = compiler.compile(tree, flags)
    return _KNOWN[key]


_KNOWN: dict[tuple[str, int], Any] = {}
