"""Gates that let only the strongest LoRAs speak, trained, kept, used, and shown in the map."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gate_training import STEPS, experts_for, run, training
from tiny_loras import write_lora
from typer.testing import CliRunner

from composer.cli import app
from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.errors import ComposerError
from composer.fusions.gate_file import read_gates
from composer.fusions.gate_record import GateListener
from composer.mixture import GateSettings, attach
from composer.mixture.stand_in import Weights

NAMES = ("ada", "ink", "sea")
TWO = GateSettings(
    reduce="tokens", activation="scaled", normalise="layer", time=True, bias=True, top_k=2
)
THREE: dict[str, Any] = {
    "prompts": ("ada in ink at sea",),
    "alone": {name: (name,) for name in NAMES},
    "gate": TWO,
    "router_balance": 0.01,
}


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> Model:
    return load_model(tiny_sd)


def test_they_are_trained_kept_and_shown(model: Model, tmp_path: Path) -> None:
    experts = experts_for(model, tmp_path, *NAMES)
    config = training(tmp_path, **THREE)
    made = run(model, experts, config)
    assert len(made) == config.steps and all(report.loss is not None for report in made.values())
    file = read_gates(config.output)
    assert file.settings["unet"].top_k == 2
    assert file.training["settings"]["router_balance"] == 0.01
    sites = {expert.name: expert.sites for expert in reversed(experts)}  # in another order
    with attach(model.models, sites, granularity=file.granularity) as mixture:
        file.fit(mixture)
        listener = GateListener(mixture, guided=False)
        said: Weights = []

        def sampling() -> Iterator[None]:
            generator = torch.Generator().manual_seed(0)
            latents = torch.randn(2, model.latent_channels, 8, 8, generator=generator)
            text = torch.randn(2, 5, model.cross_attention_dim, generator=generator)
            with torch.no_grad():
                model.unet(latents, 500, text)
                yield
                with mixture.listen() as heard:
                    model.unet(latents, 500, text)
                said.extend(heard)

        list(listener.follow(sampling()))
        for unit, weights in said:
            here = sum(mixture.units[unit].present)
            assert ((weights != 0).sum(-1) == min(2, here)).all()
        (record, _) = listener.take()
        assert record.units == tuple(unit for unit, _ in said) and record.experts == NAMES[::-1]
        for place, (_, weights) in enumerate(said):
            mean = weights[0].mean(0).tolist()
            assert record.with_prompt[0, place].tolist() == pytest.approx(mean, abs=1e-5)


def test_the_balance_of_loads_is_part_of_the_loss(model: Model, tmp_path: Path) -> None:
    experts = experts_for(model, tmp_path, *NAMES)
    losses = [
        run(model, experts, training(tmp_path / name, **{**THREE, "router_balance": value}))
        for name, value in (("without", 0.0), ("with", 1.0))
    ]
    first, second = ([made[step].loss for step in (1, STEPS)] for made in losses)
    assert None not in (*first, *second)
    # both begin with the same gates; loads that are even cost 2, one for each choice
    assert second[0] - first[0] == pytest.approx(2, rel=0.5)
    assert second[1] != pytest.approx(first[1])


@pytest.mark.parametrize(
    "gate", [GateSettings(bias=True), GateSettings(bias=True, top_k=2, activation="free")]
)
def test_even_loads_are_for_gates_that_choose_by_shares(gate: GateSettings, tmp_path: Path) -> None:
    with pytest.raises(ComposerError, match="router_balance is for gates that choose"):
        training(tmp_path, gate=gate, router_balance=0.1)


def test_the_command_trains_them(tiny_sd: Path, tmp_path: Path) -> None:
    for seed, name in enumerate(NAMES):
        told = {"modelspec.trigger_phrase": name}
        write_lora(tmp_path / "loras" / f"{name}.safetensors", seed=seed, **told)
    output = tmp_path / "gates.safetensors"
    words = [
        "train-gates", *NAMES, "--top-k", 1, "--activation", "scaled", "--router-balance", 0.01,
        "--steps", 2, "--trajectories", 1, "--teacher-steps", 2, "--batch-size", 2,
        "--model", tiny_sd, "--lora-dir", tmp_path / "loras", "--output", output,
        "--prompt", "ada ink sea", "--device", "cpu",
    ]  # fmt: skip
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    assert read_gates(output).settings["unet"].top_k == 1
