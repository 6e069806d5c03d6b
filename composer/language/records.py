"""What a language model learns from: JSON lines, or a folder that the `datasets` library wrote.

Each line is one object in one of four forms, distinguished by their fields:

    {"instruction": "...", "input": "...", "output": "..."}         input may be left out
    {"prompt": "...", "completion": "..."}
    {"messages": [{"role": "user", "content": "..."}, ...]}         the last is the assistant's
    {"text": "..."}                                                 all of it is learnt
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from composer.errors import ComposerError
from composer.outside import parse_json

ANSWERS = ("output", "answer", "response")
"""Names an answer to an instruction goes by."""
FORMS = (
    'one of {"instruction", "input", "output"}, {"prompt", "completion"}, {"messages"} or {"text"}'
)


@dataclass(frozen=True, kw_only=True)
class Record:
    """One thing to learn: what is asked, and the answer.

    One of `messages` (role and content, all before the answer), `instruction` with `input`, and
    `prompt` says what is asked; `prompt` is taken as it stands, by no template.
    """

    answer: str
    messages: tuple[tuple[str, str], ...] = ()
    instruction: str = ""
    input: str = ""
    prompt: str | None = None
    origin: str = ""
    """Where it came from, for errors: "tasks.jsonl, line 3"."""


def read_records(path: Path, *, split: str = "train") -> list[Record]:
    """All records of a JSONL file, of all JSONL files in a folder, or of one split of a `datasets`
    folder.

    Raises ComposerError, naming file and line, for what is missing, empty or in another form.
    """
    if path.is_dir():
        files = sorted(path.glob("*.jsonl"))
        found = (
            [record for file in files for record in _file(file)]
            if files
            else list(_datasets_folder(path, split))
        )
    elif path.is_file():
        found = list(_file(path))
    else:
        raise ComposerError(f"There is no data at {path}: give a .jsonl file or a folder.")
    if not found:
        raise ComposerError(f"{path} holds nothing to learn: write one JSON object on each line.")
    return found


def record_from(values: Mapping[str, Any], origin: str) -> Record:
    """The record that one object says; ComposerError when a field is missing or no text."""
    if "messages" in values:
        return _chat(values["messages"], origin)
    if "instruction" in values:
        name = next((name for name in ANSWERS if name in values), None)
        if name is None:
            raise ComposerError(f'{origin}: the instruction has no answer: add an "output".')
        return Record(
            instruction=_text(values, "instruction", origin),
            input=_text(values, "input", origin) if values.get("input") is not None else "",
            answer=_answer(values, name, origin),
            origin=origin,
        )
    if "prompt" in values:
        if "completion" not in values:
            raise ComposerError(f'{origin}: the prompt has no answer: add a "completion".')
        return Record(
            prompt=_text(values, "prompt", origin),
            answer=_answer(values, "completion", origin),
            origin=origin,
        )
    if "text" in values:
        return Record(prompt="", answer=_answer(values, "text", origin), origin=origin)
    raise ComposerError(f"{origin}: the fields {sorted(values)} are no record: write {FORMS}.")


def _file(path: Path) -> Iterator[Record]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ComposerError(
            f"{path} cannot be read as UTF-8 text ({error}): save it so."
        ) from error
    # not splitlines: it also parts at U+2028 and the like, which JSON allows within a text
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        origin = f"{path.name}, line {number}"
        try:
            values = parse_json(line)
        except json.JSONDecodeError as error:
            raise ComposerError(
                f"{origin}: {error.msg} at character {error.colno}: write one JSON object on each"
                " line."
            ) from error
        except ValueError as error:
            raise ComposerError(f"{origin}: {error}: leave this line out.") from error
        if not isinstance(values, dict):
            raise ComposerError(f"{origin}: this is no JSON object: write {FORMS}.")
        yield record_from(cast("dict[str, Any]", values), origin)


def _datasets_folder(path: Path, split: str) -> Iterator[Record]:
    marks = ("dataset_dict.json", "dataset_info.json", "state.json")
    if not any((path / mark).is_file() for mark in marks):
        raise ComposerError(
            f"{path} holds neither .jsonl files nor a data set of the datasets library: give one"
            " of these."
        )
    if find_spec("datasets") is None:
        raise ComposerError(
            f"{path} is a folder of the datasets library, which is not installed: pip install"
            " datasets, or write the data as a .jsonl file."
        )
    from importlib import import_module

    opened: Any = import_module("datasets").load_from_disk(str(path))
    if hasattr(opened, "keys"):  # several splits
        if split not in opened:
            raise ComposerError(
                f"{path} has no split {split!r}, only {', '.join(opened)}: give the folder of one."
            )
        opened = opened[split]
    for number, values in enumerate(cast("Iterable[dict[str, Any]]", opened)):
        # a table has all fields in all rows, the missing ones as null
        fields = {key: value for key, value in values.items() if value is not None}
        yield record_from(fields, f"{path.name}, row {number}")


def _chat(messages: Any, origin: str) -> Record:
    remedy = 'write [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}].'
    turns: list[tuple[str, str]] = []
    for message in cast("list[Any]", messages) if isinstance(messages, list) else []:
        values = cast("dict[str, Any]", message) if isinstance(message, dict) else {}
        role, content = values.get("role"), values.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            raise ComposerError(f"{origin}: a message has no role or no content: {remedy}")
        turns.append((role, content))
    if len(turns) < 2 or turns[-1][0] != "assistant" or not turns[-1][1].strip():
        raise ComposerError(
            f"{origin}: the messages do not end with an answer of the assistant: {remedy}"
        )
    return Record(messages=tuple(turns[:-1]), answer=turns[-1][1], origin=origin)


def _text(values: Mapping[str, Any], name: str, origin: str) -> str:
    value = values[name]
    if not isinstance(value, str):
        raise ComposerError(f'{origin}: "{name}" is {value!r}: write a text.')
    return value


def _answer(values: Mapping[str, Any], name: str, origin: str) -> str:
    answer = _text(values, name, origin)
    if not answer.strip():
        raise ComposerError(f'{origin}: "{name}" is empty: write what is to be learnt.')
    return answer
