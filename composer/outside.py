"""Text from outside: JSON and words that anybody may have written, read within limits.

Everything that comes from a picture, a file, a page or the command line goes through here once, and
is a checked value afterwards or a message.
"""

from __future__ import annotations

import json
import math
import re
from itertools import accumulate
from typing import Any, cast

MAX_JSON = 24 * 2**20  # characters: some LoRA files hold 15 MB of tags
MAX_DEPTH = 64
MAX_DIGITS = 300  # of a number: an integer that is shorter fits into a float

_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"')
_HALF_LETTER = re.compile(r"\\u[dD][89a-fA-F]")
_DEEPER = {"[": 1, "{": 1, "]": -1, "}": -1}


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8.

    JSON and the command line can spell half a letter ("\\ud800"): Python reads it, and no tokenizer
    and no page can show it.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_json(text: str | bytes, *, unique: bool = False) -> object:
    """The value that a JSON text holds: finite numbers and whole letters, not nested too deeply.

    Work and memory grow with the length of the text and no faster.

    unique: whether an object may not have one name twice.

    Raises:
        ValueError: it is not JSON, or beyond these limits; what is wrong, for a message.
    """
    if len(text) > MAX_JSON:
        raise ValueError(f"it has {len(text)} characters; {MAX_JSON} is the most")
    try:
        if isinstance(text, bytes):
            text = text.decode(json.detect_encoding(text))
        value: object = json.loads(
            text,
            object_pairs_hook=_unique if unique else None,
            parse_constant=_refuse,
            parse_float=_float,
            parse_int=_int,
        )
    except RecursionError:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not {error.encoding} text") from None
    brackets = re.findall(r"[\[\]{}]", _STRING.sub("", text))
    if max(accumulate(map(_DEEPER.__getitem__, brackets)), default=0) > MAX_DEPTH:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
    if not is_unicode(text) or (
        _HALF_LETTER.search(text) and not is_unicode(json.dumps(value, ensure_ascii=False))
    ):
        raise ValueError("it holds half a letter (a lone surrogate), which is no text")
    return value


def parse_object(text: str | bytes, *, unique: bool = False) -> dict[str, Any]:
    """The same of a text that holds a JSON object.

    Raises:
        ValueError: as `parse_json`, or it holds something else.
    """
    value = parse_json(text, unique=unique)
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object with names and values")
    return cast("dict[str, Any]", value)


def number(value: object) -> float:
    """A finite number that JSON brought; `true` is none.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{str(value)[:40]!r} is not a number")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise ValueError("a number is too large")
    return found


def whole(value: object) -> int:
    """A whole number that JSON brought; neither `true` nor 2.7 is one.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{str(value)[:40]!r} is not a whole number")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("a name appears twice")
    return names


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _float(digits: str) -> float:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits; {MAX_DIGITS} are the most")
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {digits[:20]} is too large")
    return number


def _int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits; {MAX_DIGITS} are the most")
    return int(digits)
