"""Gates for a single expert: they are that LoRA, and nothing is learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gate_training import assert_untouched, state_of, training
from tiny_loras import experts_for, write_lora
from typer.testing import CliRunner

from composer.cli import app
from composer.diffusion.conditioning import encode_prompts
from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.diffusion.request import Request
from composer.diffusion.sample import Picture, generate
from composer.errors import ComposerError
from composer.experts import Expert, ModuleNames, read_expert
from composer.fusions.gate_file import GateFile, read_gates
from composer.mixture import GateSettings, Mixture, attach
from composer.training.gates.settings import GateProgress, GateTraining
from composer.training.gates.train import train_gates


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(tiny_sd: Path, request: pytest.FixtureRequest) -> Model:
    return load_model(tiny_sd, dtype=request.param)


def one(folder: Path, **settings: Any) -> GateTraining:
    values = {"prompts": ("ada", "a cat, ada"), "alone": {"ada": ("ada",)}}
    return training(folder, **{**values, **settings})


def attached(model: Model, expert: Expert, file: GateFile) -> Mixture:
    return attach(model.models, {expert.name: expert.sites}, granularity=file.granularity)


@torch.no_grad()
def predictions(model: Model) -> torch.Tensor:
    """Of a picture twice as wide as the model's, early and late."""
    text = encode_prompts(model, "a cat, ada", None).positive.states
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, model.latent_channels, 8, 16, generator=generator).to(model.dtype)
    return model.unet(latents, torch.tensor([900, 40]), text.expand(2, -1, -1)).sample


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"input": "placed", "granularity": "matrix"},
        {"paper": True},
        {"paper": True, "input": "experts", "granularity": "network"},
    ],
    ids=["recommended", "placed", "without a CLIP", "network"],
)
def test_the_prediction_is_that_of_the_lora(
    model: Model, tmp_path: Path, settings: dict[str, Any]
) -> None:
    (expert,) = experts_for(model, tmp_path, "ada")
    config, before = one(tmp_path, steps=50, checkpoint_every=1, **settings), state_of(model)
    reports = list(train_gates(model, [expert], config))
    assert_untouched(model, before)
    assert_orderly(reports, config)
    file = read_gates(config.output)
    parts = {unit.partition(".")[0] for unit in file.tensors}
    assert parts == ({"unet", "text_encoder"} if config.paper else {"unet"})
    with attach(model.models, {expert.name: expert.sites}):
        wanted = predictions(model)
    assert not torch.allclose(predictions(model), wanted, atol=0.05)  # it does something
    with attached(model, expert, file) as mixture:
        file.fit(mixture)
        with mixture.record_weights() as said:
            found = predictions(model)
        assert {unit for unit, _ in said} == set(file.tensors)
        assert all(bool((weights == 1).all()) for _, weights in said)
        assert torch.equal(found, wanted)
        mixture.toggle("ada", False)
        off = predictions(model)
    assert torch.equal(off, predictions(model))


def assert_orderly(reports: list[GateProgress], config: GateTraining) -> None:
    """No LoRA draws, no judge, no training."""
    (saved,) = reports
    assert (saved.stage, saved.path, saved.step, saved.total) == ("saved", config.output, 0, 0)


def test_the_file_says_what_was_done(model: Model, tmp_path: Path) -> None:
    experts = experts_for(model, tmp_path, "ada")
    config = one(tmp_path, steps=50)
    *_, last = train_gates(model, experts, config)
    file = read_gates(config.output)
    assert file.settings["unet"] == GateSettings()
    assert file.training["steps"] == 0 and file.training["losses"] == {}
    told = file.training["settings"]
    assert (told["steps"], told["prompts"]) == (0, list(config.prompts))
    assert last.path == config.output


def test_there_is_nothing_to_go_on_from(model: Model, tmp_path: Path) -> None:
    config = one(tmp_path, resume=True)
    config.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    config.checkpoint.write_bytes(b"of a training that was stopped long ago")
    *_, last = train_gates(model, experts_for(model, tmp_path, "ada"), config)
    assert last.stage == "saved" and not config.checkpoint.exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": ()}, "no prompt that names all"),
        ({"alone": {"ada": ("ada",), "ink": ("ink",)}}, "prompts for 'ink'"),
    ],
)
def test_bad_input_is_still_told(
    model: Model, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ComposerError, match=message):
        train_gates(model, experts_for(model, tmp_path, "ada"), one(tmp_path, **settings))


def test_the_command(tiny_sd: Path, tmp_path: Path) -> None:
    lora = write_lora(tmp_path / "loras" / "sea.safetensors", seed=0)
    output = tmp_path / "gates.safetensors"
    places = ("--lora-dir", lora.parent, "--model", tiny_sd, "--output", output, "--device", "cpu")
    words = ("train-gates", "sea", "--prompt", "a cat at sea", *places)
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(output)
    assert "saved 0/0" in done.stderr and "step" not in done.stderr
    model, file = load_model(tiny_sd), read_gates(output)
    modules = ModuleNames.of(model.models, model=model.name)
    expert = read_expert(lora, modules, name="sea")
    with attach(model.models, {expert.name: expert.sites}):
        wanted = picture(model)
    with attached(model, expert, file) as mixture:
        file.fit(mixture)
        found = picture(model)
    np.testing.assert_array_equal(found, wanted)
    assert not np.array_equal(picture(model), wanted)


def picture(model: Model) -> Any:
    request = Request(prompt="a cat at sea", seed=1, steps=3, cfg_scale=4.0)
    return np.asarray(next(e.image for e in generate(model, request) if isinstance(e, Picture)))
