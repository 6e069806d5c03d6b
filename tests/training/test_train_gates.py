"""Gate training: what it learns, what it leaves alone, and what it writes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from gate_training import (
    BETTER,
    assert_every_gate_learns,
    assert_untouched,
    experts_for,
    run,
    state_of,
    training,
)
from safetensors.torch import load_file

from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.errors import ComposerError
from composer.fusions.gate_file import read_gates
from composer.mixture import REGIONS, GateSettings, LearnedGate, attach
from composer.training.gates import RECOMMENDED, train_gates
from composer.training.gates.build import decided
from composer.training.trainer import Diverged

READING = dataclasses.replace(BETTER, reduce="tokens")


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> Model:
    return load_model(tiny_sd)


def test_the_loss_falls_and_nothing_but_gates_is_changed(model: Model, tmp_path: Path) -> None:
    before = state_of(model)
    made = run(model, experts_for(model, tmp_path), training(tmp_path, steps=60, batch_size=12))
    losses = [report.losses["loss"] for report in made.values()]
    assert losses[-1] < 0.8 * losses[0]
    assert set(made[60].losses) == {"loss", "ada", "ink", "together", "neutral"}
    assert_untouched(model, before)


def test_the_file_makes_the_same_gates_whatever_the_order(model: Model, tmp_path: Path) -> None:
    experts = experts_for(model, tmp_path)
    run(model, experts, training(tmp_path))
    file = read_gates(tmp_path / "gates.safetensors")
    assert [e.name for e in file.experts] == ["ada", "ink"]
    assert file.training["steps"] == 6
    said: list[dict[str, torch.Tensor]] = []
    outputs: list[torch.Tensor] = []
    for order in (experts, experts[::-1]):
        with attach(
            model.models, {e.name: e.sites for e in order}, granularity=file.granularity
        ) as mixture:
            file.fit(mixture)
            with torch.no_grad(), mixture.listen() as tape:
                outputs.append(model.unet(*inputs(model)).sample)
            said.append(
                {
                    f"{unit}.{name}": weights[:, index]
                    for unit, weights in tape
                    for index, name in enumerate(mixture.names)
                }
            )
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-6)
    assert said[0].keys() == said[1].keys() and said[0]
    for name, weights in said[0].items():
        torch.testing.assert_close(said[1][name], weights, rtol=1e-5, atol=1e-6)
    first = next(iter(said[0].values()))
    assert not all(torch.allclose(weights, first) for weights in said[0].values())


def inputs(model: Model) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return (
        torch.randn(2, model.latent_channels, 8, 8, generator=generator),
        torch.tensor([500, 20]),
        torch.randn(2, model.token_limit, model.cross_attention_dim, generator=generator),
    )


@pytest.mark.parametrize("granularity", ["network", "block", "layer", "matrix"])
@pytest.mark.parametrize("input", ["hidden", "experts"])
def test_every_granularity_and_input_trains(
    model: Model, tmp_path: Path, granularity: str, input: str
) -> None:
    gate = dataclasses.replace(BETTER, input=input)
    config = training(
        tmp_path, granularity=granularity, gate=gate, steps=2, text_encoder=granularity != "network"
    )
    if granularity == "network" and input == "experts":
        with pytest.raises(ComposerError, match="before any expert has spoken"):
            run(model, experts_for(model, tmp_path), config)
        return
    learnt = assert_every_gate_learns(model, experts_for(model, tmp_path), config)
    for unit, names in learnt.items():
        assert names == ({"e", "b", "clock"} if unit.startswith("unet") else {"e", "b"})
    parts = {unit.partition(".")[0] for unit in learnt}
    assert parts == ({"unet"} if granularity == "network" else {"unet", "text_encoder"})


def test_as_published_with_the_balance_loss(model: Model, tmp_path: Path) -> None:
    """Softmax of the L2-normalised hidden state; the balance loss keeps the shares even."""
    entropies: list[float] = []
    for alpha in (0.0, 50.0):
        config = training(
            tmp_path,
            gate=GateSettings(),
            start="even",
            balance=alpha,
            steps=30,
            learning_rate=0.5,
            alone={"ada": ("ada",), "ink": ("ada",)},  # ada is called for everywhere
            prompts=("ada",),
        )
        made = run(model, experts_for(model, tmp_path), config)
        assert made[30].entropy is not None
        entropies.append(made[30].entropy)
    assert entropies[1] > entropies[0]


def test_one_expert_works(model: Model, tmp_path: Path) -> None:
    config = training(tmp_path, alone={"ada": ("ada",)}, steps=2)
    run(model, experts_for(model, tmp_path, "ada"), config)
    assert len(read_gates(config.output).experts) == 1


def test_zero_steps_write_the_closed_form_start(model: Model, tmp_path: Path) -> None:
    config = training(tmp_path, steps=0)
    run(model, experts_for(model, tmp_path), config)
    tensors = load_file(config.output)
    biases = [value for name, value in tensors.items() if name.endswith(".b")]
    assert biases and not any(torch.allclose(b, torch.full_like(b, 0.5)) for b in biases)


@pytest.mark.parametrize(("start", "weight"), [("sum", 1.0), ("even", 0.5)])
@pytest.mark.parametrize("input", ["hidden", "placed"])
def test_zero_steps_write_where_gates_begin(
    model: Model, tmp_path: Path, start: str, weight: float, input: str
) -> None:
    gate = dataclasses.replace(BETTER, input=input)
    config = training(tmp_path, steps=0, start=start, gate=gate, text_encoder=True)
    run(model, experts_for(model, tmp_path), config)
    tensors = load_file(config.output)
    biases = [value for name, value in tensors.items() if name.endswith(".b")]
    assert biases and all(torch.allclose(b, torch.full_like(b, weight)) for b in biases)


def test_a_nan_stops_it_with_the_last_good_gates_kept(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from composer.training.gates import distill

    calls = {"n": 0}
    real = distill.distance

    def broken(*given: torch.Tensor) -> torch.Tensor:
        calls["n"] += 1
        return real(*given) * (float("nan") if calls["n"] > 6 else 1.0)  # twice in each step

    monkeypatch.setattr(distill, "distance", broken)
    config = training(tmp_path, steps=20)
    with pytest.raises(Diverged, match="3 steps in a row up to step 6"):
        run(model, experts_for(model, tmp_path), config)
    file = read_gates(config.output)
    assert file.training["skipped"] == 3
    assert all(bool(t.isfinite().all()) for named in file.tensors.values() for t in named.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alone": {"ada": ("ada",)}}, "no prompt for 'ink' alone"),
        ({"alone": {"ada": ("a",), "ink": ("a",), "sea": ("a",)}}, "prompts for 'sea'"),
        ({"prompts": ()}, "no prompt that names all"),
        ({"neutral": ()}, "no prompt that names no expert"),
        ({"prompts": ("ada " * 20,)}, "longer than the 30 tokens"),
        ({"objective": "judged", "compose": 0.0, "prompts": ()}, "no prompt that names all"),
        ({"objective": "judged", "compose": 0.0, "prompts": ("ada " * 20,)}, "longer than"),
        ({"objective": "clip", "keep": 0.0, "alone": {"ada": ("ada",)}}, "no prompt for 'ink'"),
        (
            {"objective": "clip", "keep": 0.0, "alone": {"ada": ("ada " * 20,), "ink": ("ink",)}},
            "longer than",
        ),
    ],
)
def test_bad_input_is_told_before_any_work(
    model: Model, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    before = state_of(model)
    with pytest.raises(ComposerError, match=message):
        train_gates(model, experts_for(model, tmp_path), training(tmp_path, **settings))
    assert_untouched(model, before)


def test_no_expert(model: Model, tmp_path: Path) -> None:
    with pytest.raises(ComposerError, match="no LoRA to train gates for"):
        train_gates(model, [], training(tmp_path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"granularity": "atom"}, "granularity 'atom'"),
        ({"objective": "luck"}, "objective 'luck'"),
        ({"precision": "float16"}, "precision 'float16'"),
        ({"familiar": -1.0}, "familiar is -1"),
        ({"company": "friends"}, "choose one of fitting, everybody, nobody"),
        ({"near": float("inf")}, "near is inf"),
        ({"gate": GateSettings()}, "needs gates with a bias"),
        ({"start": "late"}, "start 'late' is unknown"),
        ({"keep": 0, "compose": 0, "rest": 0}, "nothing to learn"),
        ({"output": Path("gates.bin")}, "no gate file"),
    ],
)
def test_wrong_settings(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ComposerError, match=message):
        training(tmp_path, **settings)


@pytest.mark.parametrize("gate", [READING, REGIONS], ids=["reading", "hearing"])
def test_experts_in_their_places_teach_gates(
    model: Model, tmp_path: Path, gate: GateSettings
) -> None:
    """From the maps' own start a gate that hears them has nothing left to learn; one that reads
    begins nearer to the teacher than weights of 1, and comes nearer."""
    experts = experts_for(model, tmp_path)
    settings: dict[str, Any] = {"gate": gate, "teacher": "regions", "keep": 0.0, "rest": 0.0}
    before = state_of(model)
    even = run(model, experts, training(tmp_path, **settings, start="even"))
    taught = run(model, experts, training(tmp_path, **settings))
    assert_untouched(model, before)
    if gate.input == "regions":
        assert taught[1].losses["loss"] < 1e-6
    else:
        assert taught[1].losses["loss"] < even[1].losses["loss"]
    file = read_gates(tmp_path / "gates.safetensors")
    assert file.settings["unet"] == gate


@pytest.mark.parametrize(
    ("roles", "input"),
    [
        (("character", "clothing"), "placed"),
        (("object", "object", "style"), "placed"),
        (("character", "style", "background"), "hidden"),
        (("", "style"), "hidden"),
    ],
)
def test_figures_side_by_side_get_places(roles: tuple[str, ...], input: str) -> None:
    assert decided(RECOMMENDED, roles).input == input
    for fixed in ("hidden", "experts", "placed"):
        assert decided(GateSettings(input=fixed), roles).input == fixed


def test_what_was_left_open_is_decided_in_the_file(model: Model, tmp_path: Path) -> None:
    gate = dataclasses.replace(BETTER, input="auto")
    run(model, experts_for(model, tmp_path), training(tmp_path, gate=gate, steps=1))
    assert read_gates(tmp_path / "gates.safetensors").settings["unet"].input == "hidden"
    with pytest.raises(ComposerError, match="is not decided"):
        LearnedGate(gate, 4, [True, True], time_width=3)


def test_gates_stand_from_a_depth_on_and_always_in_the_last_unit(
    model: Model, tmp_path: Path
) -> None:
    def units(depth: float) -> set[str]:
        settings = training(tmp_path, granularity="matrix", depth=depth, steps=1)
        run(model, experts_for(model, tmp_path), settings)
        return set(read_gates(settings.output).tensors)

    everywhere, half, last = units(0), units(0.5), units(0.999)
    assert everywhere > half > last
    assert len(last) == 1
