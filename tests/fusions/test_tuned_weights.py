"""Tuned weights: what a file brings back, and that nothing a stranger wrote is believed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from composer.errors import ComposerError
from composer.experts import Library
from composer.experts.hashes import tensor_hash_of
from composer.fusions.gate_file import read_facts
from composer.fusions.libraries import WEIGHTS
from composer.fusions.tuned_weights import (
    MOST_BYTES,
    TunedLora,
    TunedWeights,
    file_name_for,
    read_tuned_weights,
)

ADA, INK = "a" * 64, "b" * 64
TUNED = TunedWeights(
    loras=(
        TunedLora(name="ada", tensor_hash=ADA, weight=0.8),
        TunedLora(name="ink", tensor_hash=INK, weight=1.2),
    ),
    model="tiny",
    model_hash="c" * 64,
    judge="CLIP",
    pictures=8,
    points=16,
    grid=(0.8, 1.0, 1.2, 1.4),
    score=0.31,
    score_of_ones=0.3,
)


def told(folder: Path) -> dict[str, Any]:
    TUNED.write(folder / "sound.json")
    return json.loads((folder / "sound.json").read_text())


def refused(folder: Path, text: str | bytes) -> str:
    path = folder / "hostile.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ComposerError) as error:
        read_tuned_weights(path)
    return str(error.value)


def test_a_file_brings_everything_back(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    TUNED.write(path)
    assert read_tuned_weights(path) == TUNED
    assert TUNED.weights() == {"ada": 0.8, "ink": 1.2} and TUNED.found_by == "best of 16 by CLIP"


def test_a_file_is_called_after_its_loras() -> None:
    assert file_name_for(["zibo", "mine/neon"]) == "neon+zibo.json"
    assert file_name_for(["../a:b", "c"]) == "a_b+c.json"
    assert len(file_name_for(["x" * 200, "y"])) < 130


@pytest.mark.parametrize(
    "change",
    [
        {"loras": []},
        {"loras": "ada"},
        {"loras": [3]},
        {"loras": [{"name": "ada"}]},
        {"loras": [{"name": "ada", "tensor_hash": "../../etc", "weight": 1}]},
        {"loras": [{"name": "a\nb", "tensor_hash": ADA, "weight": 1}]},
        {"loras": [{"name": "a" * 999, "tensor_hash": ADA, "weight": 1}]},
        {"loras": [{"name": "ada", "tensor_hash": ADA, "weight": 1e9}]},
        {"loras": [{"name": "ada", "tensor_hash": ADA, "weight": "1"}]},
        {"loras": [{"name": "ada", "tensor_hash": ADA, "weight": True}]},
        {"loras": [{"name": "ada", "tensor_hash": ADA, "weight": float("nan")}]},
        {"loras": [{"name": n, "tensor_hash": ADA, "weight": 1} for n in "ab"]},
        {"loras": [{"name": "ada", "tensor_hash": ADA, "weight": 1, "run": "rm"}]},
        {"loras": [{"name": "a", "tensor_hash": f"{n:064x}", "weight": 1} for n in range(17)]},
        {"judge": ""},
        {"judge": {"name": "CLIP"}},
        {"model_hash": 7},
        {"points": -1},
        {"points": True},
        {"pictures": 1e400},
        {"grid": [None]},
        {"score": "good"},
        {"score": float("inf")},
        {"more": 1},
        {"format": "other"},
    ],
)
def test_what_is_wrong_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    message = refused(tmp_path, json.dumps(told(tmp_path) | change))
    assert "holds no tuned weights that can be used" in message and len(message) < 600


def test_what_is_no_json_or_too_large_or_later_is_refused(tmp_path: Path) -> None:
    for text in ("", "{", "[]", "3", b"\xff\xfe", "[" * 5000, "NaN"):
        assert "holds no tuned weights" in refused(tmp_path, text)
    assert "larger than" in refused(tmp_path, " " * (MOST_BYTES + 1))
    assert "of version 2" in refused(tmp_path, json.dumps(told(tmp_path) | {"version": 2}))
    incomplete = told(tmp_path)
    del incomplete["judge"]
    assert "judge" in refused(tmp_path, json.dumps(incomplete))
    with pytest.raises(ComposerError, match="cannot be read"):
        read_tuned_weights(tmp_path / "missing.json")


@pytest.mark.parametrize("key", ["version", "h\\ud800"])
def test_half_a_letter_is_refused(tmp_path: Path, key: str) -> None:
    path = tmp_path / "weights.json"
    path.write_text(f'{{"format": "composer.tuned_weights", "{key}": "\\ud800"}}')
    with pytest.raises(ComposerError, match="it is no JSON") as error:
        read_tuned_weights(path)
    assert str(error.value).encode()


def test_the_library_reads_what_is_sound_and_tells_the_rest(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    library = Library([first, second, first], WEIGHTS)
    assert library.scan() == ()
    for folder in (first, second):
        (folder / "weights").mkdir(parents=True)
        TUNED.write(folder / "weights" / "pair.json")
    (first / "weights" / "broken.json").write_text("{")
    (first / "weights" / "folder.json").mkdir()
    (first / "weights" / "notes.txt").write_text("mine")
    outside = tmp_path / "outside.json"
    TUNED.write(outside)
    os.symlink(outside, first / "weights" / "out.json")
    os.symlink(first / "weights" / "circle.json", first / "weights" / "circle.json")
    cards = library.scan()
    assert [card.facts for card in cards if card.error is None] == [TUNED, TUNED]
    assert [card.name for card in cards if card.error] == ["broken", "circle", "folder", "out"]
    for card in cards:
        assert card.error is None or card.error.startswith(f"{card.path}: ")
    TUNED.write(first / "weights" / "broken.json")
    assert sum(card.error is None for card in library.scan()) == 3


def test_the_shipped_weights_are_for_the_shipped_loras_and_model() -> None:
    loras = Path(__file__).parents[2] / "loras"
    found = [card.info for card in Library([loras], WEIGHTS).scan()]
    assert found
    for tuned in found:
        for lora in tuned.loras:
            assert tensor_hash_of(loras / f"{lora.name}.safetensors") == lora.tensor_hash
    facts = [read_facts(path) for path in (loras / "gates").glob("*.safetensors")]
    assert {tuned.model_hash for tuned in found} == {gates.model_hash for gates in facts}
