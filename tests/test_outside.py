"""What comes from outside is read within limits, and with work that grows as its length."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable

import pytest
from work import growth

from composer.diffusion.editing import texts_at_steps
from composer.diffusion.other_programs import from_texts
from composer.diffusion.parameters import from_parameters, read_pairs
from composer.diffusion.prompt import parse_prompt
from composer.experts.embedding import asked_in, named_in
from composer.experts.triggers import taken_back, with_words, without_words
from composer.fusions import read_pins
from composer.outside import MAX_DEPTH, MAX_DIGITS, MAX_JSON, parse_json, parse_object, whole

SETTINGS = "Steps: 20, Sampler: Euler, Seed: 1"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": [1, -2.5, true, null, "x"]}', {"a": [1, -2.5, True, None, "x"]}),
        (b'\xef\xbb\xbf{"a": "\xc3\xa4"}', {"a": "ä"}),
        ('"\\ud83d\\ude00"', "😀"),
        ("[" * MAX_DEPTH + "]" * MAX_DEPTH, None),
        ('"' + "[" * 1000 + '\\""', "[" * 1000 + '"'),
        ("9" * MAX_DIGITS, int("9" * MAX_DIGITS)),
    ],
)
def test_json_as_programs_write_it(text: str | bytes, value: object) -> None:
    found = parse_json(text)
    assert value is None or found == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting"),
        ("NaN", "NaN is not JSON"),
        ("-Infinity", "Infinity is not JSON"),
        ("1e999", "too large"),
        ("1" * 5000, "5000 digits; 300 are the most"),
        ("0." + "1" * 5000, "5002 digits"),
        ("[" * 65 + "]" * 65, "nested deeper than 64"),
        ("[" * 500_000, "nested deeper than 64"),
        ('{"a":' * 400 + "1" + "}" * 400, "nested deeper than 64"),
        ('["\\ud800"]', "lone surrogate"),
        ('{"\\uDFFF": 1}', "lone surrogate"),
        ('"\ud800"', "lone surrogate"),
        (b"\xff\xfe\xff", "is not utf-16"),
        (b'"\xff"', "is not utf-8"),
        (" " * MAX_JSON + "1", "is the most"),
        ("[]", "not a JSON object"),
        ('{"a": 1, "a": 2}', "twice"),
    ],
)
def test_json_beyond_the_limits_is_refused_with_a_reason(text: str | bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_object(text, unique=True)


@pytest.mark.parametrize("value", [True, 2.7, 2.0, "2", None, [2]])
def test_what_is_no_whole_number(value: object) -> None:
    with pytest.raises(ValueError, match="not a whole number"):
        whole(value)
    assert whole(2) == 2


def test_pairs_are_those_of_a1111s_own_expression() -> None:
    theirs = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
    draw = random.Random(1)
    for _ in range(20_000):
        line = "".join(draw.choices('ab :,"\\-/.\t(1', k=draw.randrange(24))).strip()
        assert list(read_pairs(line)) == theirs.findall(line), line


def test_json_lists_and_objects_are_values_of_pairs() -> None:
    line = (
        'Steps: 8, Hashes: {"lora:a, b": "1:2"}, Empty: [], Civitai resources: [{"a": "]"}], '
        'Open: [1, "x", Seed: 5'
    )
    assert dict(read_pairs(line)) == {
        "Steps": "8",
        "Hashes": '{"lora:a, b": "1:2"}',
        "Empty": "[]",
        "Civitai resources": '[{"a": "]"}]',
        "Open": "[1",
        "Seed": "5",
    }


def comfy(text: str) -> object:
    return from_texts({"prompt": text})


def chain(n: int, **inputs: object) -> str:
    """A ComfyUI graph with a node that samples and others that come each from the next."""
    sampler = {"steps": 8, "sampler_name": "euler", "seed": ["n0", 0], "positive": ["n0", 0]}
    sampler |= {"negative": ["n0", 1], "latent_image": ["n0", 0]}
    nodes = {
        f"n{i:03}": {"class_type": "X", "inputs": {**inputs, "a": [f"n{(i + 1) % n:03}", 0]}}
        for i in range(n)
    }
    return json.dumps({"s": {"class_type": "KSampler", "inputs": sampler}, **nodes}).replace(
        '"n0"', '"n000"'
    )


def with_trigger(prompt: str) -> object:
    trigger = "zibo fox, pink bow"
    return (
        without_words(prompt, trigger),
        with_words(prompt, [trigger]),
        taken_back(prompt, trigger),
    )


def changed(prompt: str) -> list[str]:
    return texts_at_steps(prompt, 4)


def embedded(prompt: str) -> object:
    names = ("bad hand", "hand", "<s1>")
    return named_in([prompt], names), asked_in([prompt], names)


HOSTILE: dict[str, tuple[Callable[[str], object], Callable[[int], str]]] = {
    "a key that never ends": (from_parameters, lambda n: "a" * n),
    "words and no key": (from_parameters, lambda n: "a -/" * n),
    "short keys": (from_parameters, lambda n: "a:" * n),
    "pairs": (from_parameters, lambda n: "ab: 1, " * n + SETTINGS),
    "quotes that open": (from_parameters, lambda n: f'{SETTINGS}, ab: "' + '\\"' * n),
    "quotes of several": (from_parameters, lambda n: f"{SETTINGS}, " + 'ab: "\\" , ' * n),
    "spaces after a key": (from_parameters, lambda n: f"{SETTINGS}, ab:" + " " * n + "x"),
    "hashes": (
        from_parameters,
        lambda n: f'x <lora:a:1>\n{SETTINGS}, Lora hashes: "{"a: 1, " * n}"',
    ),
    "lists": (from_parameters, lambda n: f"{SETTINGS}, " + "ab: [], " * n),
    "lists that never end": (from_parameters, lambda n: f"{SETTINGS}, " + "ab: [" * n),
    "texts in lists that never end": (from_parameters, lambda n: f"{SETTINGS}, " + 'ab: ["' * n),
    "escapes in lists": (from_parameters, lambda n: f'{SETTINGS}, ab: ["' + '\\"' * n),
    "resources": (
        from_parameters,
        lambda n: f"{SETTINGS}, Civitai resources: [{'{}, ' * n}1]",
    ),
    "files": (
        from_parameters,
        lambda n: f'{SETTINGS}, Lora weights: "{", ".join(f"a{i:03}: 1" for i in range(n // 2))}"',
    ),
    "keys": (
        from_parameters,
        lambda n: ", ".join(f"k{i:03}: 1" for i in range(n)) + f", {SETTINGS}",
    ),
    "nodes": (comfy, chain),
    "nodes with links": (comfy, lambda n: chain(n, seed=["s", 0], text=["s", 0])),
    "nodes with LoRAs": (comfy, lambda n: chain(n // 2, lora_name="a", strength_model=1)),
    "lines": (from_parameters, lambda n: "a\n" * n + SETTINGS),
    "tags": (parse_prompt, lambda n: "".join(f"<lora:{i:03}:1>" for i in range(n // 2))),
    "tags that open": (parse_prompt, lambda n: "<lora:" * n),
    "words that open": (parse_prompt, lambda n: "<lora " * n),
    "weights": (parse_prompt, lambda n: "<lora:a" + ":1" * n + ">"),
    "arguments": (parse_prompt, lambda n: "<lora:a" + ":te=1" * n + ">"),
    "spaces": (parse_prompt, lambda n: "<lora:a>" + " " * n + "x" + " \t" * n),
    "commas": (parse_prompt, lambda n: "<lora:a>" + ", " * n + "x" + " ," * n),
    "breaks": (parse_prompt, lambda n: "<lora:a>x" + " \n," * n),
    "brackets that open": (changed, lambda n: "[a:1]" + "[" * n),
    "brackets that close": (changed, lambda n: "[a:1]" + "]" * n),
    "brackets of two kinds": (changed, lambda n: "[a:1]" + "[(" * n + "])" * n),
    "brackets in brackets": (changed, lambda n: "[" * n + "a" + ":2]" * n),
    "changes": (changed, lambda n: "[a:b:1]" * n),
    "choices": (changed, lambda n: "[a" + "|b" * n + "]"),
    "signs": (changed, lambda n: "[a:1]" + ":" * n),
    "digits": (changed, lambda n: "[a:" + "1" * n + ":1]"),
    "spaces before a step": (changed, lambda n: "[a:" + " " * n + "1]"),
    "embeddings": (embedded, lambda n: "bad hand, " * n),
    "halves of embeddings": (embedded, lambda n: "bad " * n),
    "spaces in an embedding": (embedded, lambda n: "bad" + " " * n + "x"),
    "embeddings that open": (embedded, lambda n: "<embed:" * n + " " * n),
    "embeddings that are missing": (embedded, lambda n: "embedding:x " * n),
    "spaces about a trigger": (with_trigger, lambda n: "x" + " " * n + "zibo" + " " * n + "y"),
    "triggers": (with_trigger, lambda n: "zibo fox, " * n),
    "halves of triggers": (with_trigger, lambda n: "zibo " * n),
    "commas about a trigger": (with_trigger, lambda n: "zibo fox" + " , " * n + "x"),
    "pins": (read_pins, lambda n: "u: a=1\n" * n),
    "a pin": (read_pins, lambda n: "u: " + "a=1, " * n),
    "a pin of spaces": (read_pins, lambda n: "u: a" + " " * n),
    "a pin of names": (read_pins, lambda n: "u: " + "a " * n + "=1"),
    "strings": (parse_json, lambda n: '[""' + ', "a"' * n + "]"),
    "escapes": (parse_json, lambda n: '"' + '\\"' * n + '"'),
    "arrays": (parse_json, lambda n: f"[{'[], ' * n}0]"),
}


@pytest.mark.parametrize(("function", "text"), HOSTILE.values(), ids=HOSTILE)
def test_twice_the_text_is_twice_the_work(
    monkeypatch: pytest.MonkeyPatch,
    function: Callable[[str], object],
    text: Callable[[int], str],
) -> None:
    assert growth(function, text, monkeypatch) < 2.3


def test_work_that_grows_as_the_square_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = re.compile(r"(\w[\w \-/]+):")
    monkeypatch.setattr("composer.outside._STRING", slow)
    assert growth(lambda text: parse_json(f'"{text}"'), lambda n: "a" * n, monkeypatch) > 3
