"""The gates that ship fit the LoRAs and the model that ship: whoever makes one of these anew must
train the gates again."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.diffusion.regions import regions_of
from composer.diffusion.request import Request
from composer.diffusion.sample import Picture, generate
from composer.errors import ComposerError
from composer.experts import ModuleNames, read_expert
from composer.experts.hashes import tensor_hash_of
from composer.fusions.gate_file import read_gates
from composer.mixture import attach

ROOT = Path(__file__).parents[2]
LORAS = ROOT / "loras"
GATES = sorted((LORAS / "gates").glob("*.safetensors"))


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(ROOT / "assets" / "toybox")


def test_some_ship() -> None:
    assert GATES


@pytest.mark.parametrize("path", GATES, ids=lambda path: path.stem)
def test_they_are_of_the_shipped_loras_and_model(path: Path, model: Model) -> None:
    file = read_gates(path)
    names = [expert.name for expert in file.experts]
    file.check_model(model.name, model.hash)
    file.check_experts({name: tensor_hash_of(LORAS / f"{name}.safetensors") for name in names})
    for expert in file.experts:
        modules = ModuleNames.of(model.models, model=model.name)
        info = read_expert(LORAS / f"{expert.name}.safetensors", modules).info
        assert (expert.trigger, expert.role) == (info.trigger, info.role)


@pytest.mark.parametrize("path", GATES, ids=lambda path: path.stem)
def test_their_picture_is_another_than_the_plain_sum(path: Path, model: Model) -> None:
    file = read_gates(path)
    modules = ModuleNames.of(model.models, model=model.name)
    experts = [read_expert(LORAS / f"{e.name}.safetensors", modules) for e in file.experts]
    asked = Request(prompt=file.training["settings"]["prompts"][0], seed=1, steps=2)
    sites = {expert.name: expert.sites for expert in experts}
    with attach(model.models, sites, granularity=file.granularity) as mixture:

        def drawn() -> np.ndarray:
            regions = regions_of(model, mixture, file.experts)
            made = [e for e in generate(model, asked, regions=regions) if isinstance(e, Picture)]
            return np.asarray(made[0].image, dtype=np.float32)

        plain = drawn()
        file.fit(mixture)
        assert mixture.gates.keys() == file.tensors.keys() <= mixture.units.keys()
        gated = drawn()
        for name in mixture.names:
            mixture.toggle(name, False)
        without = drawn()
    # of 255 each: about 40, and 105 from the bare model
    assert 5 < np.abs(gated - plain).mean() < np.abs(without - plain).mean()


@pytest.mark.parametrize("path", GATES, ids=lambda path: path.stem)
def test_what_was_made_anew_is_refused(path: Path, model: Model, tmp_path: Path) -> None:
    file = read_gates(path)
    hashes = {e.name: tensor_hash_of(LORAS / f"{e.name}.safetensors") for e in file.experts}
    for name in hashes:
        other = Path(shutil.copy(LORAS / f"{name}.safetensors", tmp_path))
        data = bytearray(other.read_bytes())
        data[-1] ^= 1  # the last bit of the last factor
        other.write_bytes(data)
        with pytest.raises(ComposerError, match=f"'{name}' is another file"):
            file.check_experts(hashes | {name: tensor_hash_of(other)})
    weights = Path(shutil.copy(model.weights[0], tmp_path))
    with weights.open("ab") as opened:
        opened.write(b" ")
    trained_anew = dataclasses.replace(model, weights=(weights,))
    with pytest.raises(ComposerError, match="were trained on toybox"):
        file.check_model(trained_anew.name, trained_anew.hash)
