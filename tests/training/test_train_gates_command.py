"""`composer train-gates`: which prompts it needs, and what it refuses before it loads a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_loras import write_lora
from typer.testing import CliRunner, Result

from composer.cli import app
from composer.fusions.gate_file import read_gates

QUICK = ("--steps", 1, "--batch-size", 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """LoRAs without trigger words, ada and ink, and one that has some, sea."""
    folder = tmp_path / "loras"
    told = {"sea": {"modelspec.trigger_phrase": "sea"}}
    for seed, name in enumerate(("ada", "ink", "sea")):
        write_lora(folder / f"{name}.safetensors", seed=seed, **told.get(name, {}))
    return folder


def train(folder: Path, model: Path, *arguments: object) -> Result:
    output = folder.parent / "gates.safetensors"
    places = ("--lora-dir", folder, "--model", model, "--output", output, "--device", "cpu")
    words = ("train-gates", *arguments, *places, *QUICK)
    return CliRunner().invoke(app, list(map(str, words)))


def settings_in(folder: Path) -> dict[str, Any]:
    found = read_gates(folder.parent / "gates.safetensors").training["settings"]
    assert isinstance(found, dict)
    return found


def test_without_trigger_words_a_prompt_that_names_all_is_enough(
    tiny_sd: Path, folder: Path
) -> None:
    done = train(folder, tiny_sd, "ada", "sea", "--prompt", "ada at sea")
    assert done.exit_code == 0, done.output
    settings = settings_in(folder)
    assert settings["prompts"] == ["ada at sea"]
    assert set(settings["alone"]) == {"sea"}  # what can be drafted is


def test_prompts_of_each_alone_are_given_or_drafted(tiny_sd: Path, folder: Path) -> None:
    own = ("--alone", "ada=a cat, x=y", "--alone", "ada=ada", "--alone", "ink=in ink")
    done = train(folder, tiny_sd, "ada", "ink", "--prompt", "ada in ink", *own)
    assert done.exit_code == 0, done.output
    settings = settings_in(folder)
    assert settings["prompts"] == ["ada in ink"]
    assert settings["alone"] == {"ada": ["a cat, x=y", "ada"], "ink": ["in ink"]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ada", "sea"), "'ada' names no trigger word, so no prompt can be drafted for it: write"),
        (("ada", "sea"), "your own, --prompt PROMPT."),
        (("ada", "ink", "--prompt", "a", "--paper"), "--alone ada=PROMPT"),
        (("ada", "ink", "--alone", "sea=sea"), "NAME is one of ada, ink"),
        (("ada", "ink", "--alone", "ada= "), "write --alone NAME=PROMPT"),
        (("sea", "sea"), "'sea' is named twice"),
        (("sea", "Sea"), "'Sea' is named twice"),
        (("ada", "--company", "friends"), "company 'friends' is unknown"),
        (("ada", "--learning-rate", "nan"), "learning_rate is nan"),
        (("ada", "--input", "experts"), "give paper too"),
        (("ada", "--paper", "--company", "nobody"), "leave one of them out"),
    ],
)  # fmt: skip
def test_refuses_before_it_loads_a_model(
    folder: Path, arguments: tuple[object, ...], message: str
) -> None:
    done = train(folder, folder / "no model", *arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())
