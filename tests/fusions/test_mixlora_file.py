"""A MixLoRA's file: it comes back as it was, and what is wrong with one is told before its use."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_mixlora import tiny_mixlora, write_mixlora

from composer.diffusion.load import load_model
from composer.errors import ComposerError
from composer.experts import LORAS, Library, read_header
from composer.fusions.libraries import MIXLORAS
from composer.fusions.mixlora_file import (
    ADAPTER,
    KIND,
    MixLoraFile,
    read_mixlora,
    read_mixlora_facts,
)


@pytest.fixture(scope="module")
def file(tiny_sd: Path) -> MixLoraFile:
    return tiny_mixlora(tiny_sd)


@pytest.fixture
def path(file: MixLoraFile, tmp_path: Path) -> Path:
    return write_mixlora(tmp_path / "loras" / "mixlora" / "both.safetensors", file)


def test_it_comes_back_as_it_was(file: MixLoraFile, path: Path, tiny_sd: Path) -> None:
    found = read_mixlora(path)
    assert (found.settings, found.sets, found.model_hash) == (
        file.settings,
        file.sets,
        file.model_hash,
    )
    assert {entry.dtype for entry in read_header(path).tensors.values()} == {"F16"}
    model = load_model(tiny_sd)
    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    text = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(2))

    def predict() -> torch.Tensor:
        with torch.no_grad():
            return model.unet(noisy, 500, text).sample

    bare = predict()
    with file.attach(model.unet):
        whole = predict()
    with found.attach(model.unet) as mixlora:
        assert torch.allclose(predict(), whole, atol=2e-2)
        assert mixlora.state_dict(ADAPTER).keys() == file.tensors.keys()
    assert torch.equal(predict(), bare)
    assert (whole - bare).abs().max() > 0.1


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    """The file with other tensors, or other words of itself."""
    told = json.loads(read_header(path).metadata[KIND.key])
    tensors = load_file(path)
    change(told, tensors)
    save_file(tensors, path, {KIND.key: json.dumps(told)})
    return path


HOST = "mixlora.down_blocks.0.attentions.0.transformer_blocks.0.ff"


def drop(told: dict[str, Any], tensors: dict[str, Any]) -> None:
    del tensors[f"{HOST}.net.0.proj.experts.1.lora_A.weight"]


def add(told: dict[str, Any], tensors: dict[str, Any]) -> None:
    tensors["mixlora.wings.weight"] = torch.zeros(2, 2)


def fewer(told: dict[str, Any], tensors: dict[str, Any]) -> None:
    told["settings"]["router"]["experts"] = 2


def wider(told: dict[str, Any], tensors: dict[str, Any]) -> None:
    told["settings"]["convolutions"]["rank"] = 3


def integers(told: dict[str, Any], tensors: dict[str, Any]) -> None:
    tensors[f"{HOST}.moe_gate.weight"] = torch.zeros(3, 32, dtype=torch.int32)


def nameless(told: dict[str, Any], tensors: dict[str, Any]) -> None:
    told["sets"] = []


def strange(told: dict[str, Any], tensors: dict[str, Any]) -> None:
    told["sets"] = [{"trigger": 7}]


def later(told: dict[str, Any], tensors: dict[str, Any]) -> None:
    told["version"] = 9


def unknown(told: dict[str, Any], tensors: dict[str, Any]) -> None:
    told["settings"]["wings"] = 2


def halved(told: dict[str, Any], tensors: dict[str, Any]) -> None:
    told["sets"][0]["title"] = "Zibo \ud800"


def many(told: dict[str, Any], tensors: dict[str, Any]) -> None:
    told["settings"]["router"]["experts"] = 10**9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, "lora_A.weight is missing"),
        (add, "wings.weight"),
        (fewer, "2 experts"),
        (wider, "rank 3"),
        (integers, "I32"),
        (nameless, "no image set"),
        (strange, "image set"),
        (later, "version 9"),
        (unknown, "wings"),
        (many, "1000000000 experts"),
        (halved, "lone surrogate"),
    ],
)
def test_wrong_files_are_refused_by_their_headers(path: Path, change: Any, message: str) -> None:
    rewritten(path, change)
    with pytest.raises(ComposerError, match=message):
        read_mixlora_facts(path)
    with pytest.raises(ComposerError, match=message):
        read_mixlora(path)


def test_cut_short_or_something_else(path: Path, tmp_path: Path) -> None:
    short = path.with_name("short.safetensors")
    short.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ComposerError, match="cut off"):
        read_mixlora(short)
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ComposerError, match="holds no MixLoRA"):
        read_mixlora(tmp_path / "a.safetensors")


def test_an_integer_without_end_is_a_problem_in_the_library(path: Path) -> None:
    save_file(load_file(path), path, {KIND.key: '{"version": ' + "9" * 5000 + "}"})
    for read in (read_mixlora_facts, read_mixlora):
        with pytest.raises(ComposerError, match="is no JSON"):
            read(path)
    (card,) = Library([path.parent.parent], MIXLORAS).cards()
    assert "is no JSON" in (card.error or "")


def test_tensors_that_do_not_fit_leave_the_model(path: Path, tiny_sd: Path) -> None:
    def nan(told: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors[f"{HOST}.moe_gate.weight"][0, 0] = float("nan")

    model = load_model(tiny_sd)
    modules = [id(module) for module in model.unet.modules()]
    with pytest.raises(ComposerError, match=r"both.*NaN"):
        read_mixlora(rewritten(path, nan)).attach(model.unet, str(path))
    assert [id(module) for module in model.unet.modules()] == modules


def test_another_model_and_numbers_without_room(file: MixLoraFile, tmp_path: Path) -> None:
    with pytest.raises(ComposerError, match=r"trained on tiny_sd.*here is other"):
        file.check_model("other", "0" * 64)
    name, tensor = next(iter(file.tensors.items()))
    huge = replace(file, tensors={**file.tensors, name: tensor + 1e6})
    with pytest.raises(ComposerError, match="no room"):
        huge.write(tmp_path / "huge.safetensors")
    assert not list(tmp_path.iterdir())


def test_the_libraries_keep_them_apart_from_loras(path: Path) -> None:
    folder = path.parent.parent
    (path.parent / "bad.safetensors").write_bytes(b"bad")
    assert not Library([folder], LORAS).cards()
    library = Library([folder], MIXLORAS)
    assert [(card.name, card.error is None) for card in library.cards()] == [
        ("bad", False),
        ("both", True),
    ]
    assert [one.trigger for one in library.find("Both").info.sets] == ["zibo fox", "tavo robot"]
    with pytest.raises(ComposerError, match="Did you mean 'both'"):
        library.find("boht")
    stray = folder / "stray.safetensors"
    stray.write_bytes(path.read_bytes())
    (card,) = Library([folder], LORAS).cards()
    assert "holds a MixLoRA and no LoRA" in str(card.error)
