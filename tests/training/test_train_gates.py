"""Gate training: what it learns, what it leaves alone, and what it writes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from gate_training import assert_every_gate_learns, assert_untouched, run, state_of, training
from safetensors.torch import load_file
from tiny_loras import experts_for

from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.errors import ComposerError
from composer.fusions.gate_file import read_gates
from composer.mixture import attach
from composer.training.core import Diverged
from composer.training.gates.judges import Judged
from composer.training.gates.losses import Batch, entropy
from composer.training.gates.train import RECOMMENDED, gate_for, train_gates


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> Model:
    return load_model(tiny_sd)


def test_the_loss_falls_and_nothing_but_gates_is_changed(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same pictures and noise at each step, which chance makes neither better nor worse."""
    real = Judged.batch

    def first(self: Judged, number: int) -> Batch:
        self._latents.clear()
        return real(self, 0)

    monkeypatch.setattr(Judged, "batch", first)
    before = state_of(model)
    made = run(model, experts_for(model, tmp_path), training(tmp_path, steps=20))
    losses = [report.loss for report in made.values()]
    assert losses[0] is not None and losses[-1] is not None and losses[-1] < 0.8 * losses[0]
    assert set(made[20].losses) == {"loss", "ada", "ink"}
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
            with torch.no_grad(), mixture.record_weights() as tape:
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


@pytest.mark.parametrize(
    "granularity",
    [
        "block",
        "matrix",
        pytest.param("network", marks=pytest.mark.slow),
        pytest.param("layer", marks=pytest.mark.slow),
    ],
)
def test_every_granularity_trains(model: Model, tmp_path: Path, granularity: str) -> None:
    config = training(tmp_path, granularity=granularity, steps=2)
    learnt = assert_every_gate_learns(model, experts_for(model, tmp_path), config)
    assert all(names == {"e", "b", "clock"} for names in learnt.values())
    assert {unit.partition(".")[0] for unit in learnt} == {"unet"}


def test_one_expert_works(model: Model, tmp_path: Path) -> None:
    config = training(tmp_path, alone={"ada": ("ada",)}, steps=2)
    run(model, experts_for(model, tmp_path, "ada"), config)
    assert len(read_gates(config.output).experts) == 1


@pytest.mark.parametrize("input", ["hidden", "placed"])
def test_zero_steps_write_the_plain_sum(model: Model, tmp_path: Path, input: str) -> None:
    config = training(tmp_path, steps=0, input=input)
    run(model, experts_for(model, tmp_path), config)
    tensors = load_file(config.output)
    biases = [value for name, value in tensors.items() if name.endswith(".b")]
    assert biases and all(torch.equal(b, torch.ones_like(b)) for b in biases)


def test_a_nan_stops_it_with_the_last_good_gates_kept(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from composer.training.gates import judges

    calls = {"n": 0}
    real = judges.shortfall

    def broken(*given: torch.Tensor) -> torch.Tensor:
        calls["n"] += 1
        return real(*given) * (float("nan") if calls["n"] > 3 else 1.0)

    monkeypatch.setattr(judges, "shortfall", broken)
    config = training(tmp_path, steps=20)
    with pytest.raises(Diverged, match="3 steps in a row up to step 6"):
        run(model, experts_for(model, tmp_path), config)
    file = read_gates(config.output)
    assert file.training["skipped"] == 3
    assert all(bool(t.isfinite().all()) for named in file.tensors.values() for t in named.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alone": {"ada": ("a",), "ink": ("a",), "sea": ("a",)}}, "prompts for 'sea'"),
        ({"prompts": ()}, "no prompt that names all"),
        ({"prompts": ("ada " * 20,)}, "longer than the 30 tokens"),
        ({"paper": True, "alone": {"ada": ("ada",)}}, "no prompt for 'ink'"),
        ({"paper": True, "alone": {"ada": ("ada " * 20,), "ink": ("ink",)}}, "longer than"),
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
        ({"precision": "float16"}, "precision 'float16'"),
        ({"input": "grid"}, "choose one of auto, hidden, placed, experts"),
        ({"company": "everybody"}, "choose one of fitting, nobody"),
        ({"depth": 1.0}, "depth is 1"),
        ({"output": Path("gates.bin")}, "no gate file"),
        # and what would be ignored beside other settings
        ({"paper": True, "company": "nobody"}, "company 'nobody' is for LoRAs as judges"),
        ({"paper": True, "input": "placed"}, "choose the input hidden or experts"),
        ({"input": "experts"}, "input experts is the paper's: give paper too"),
        ({"clip": "somewhere"}, "asked with paper alone: give paper too, or leave it out"),
        ({"preview_prompt": "a cat"}, "give preview_every too, or leave it out"),
    ],
)
def test_wrong_settings(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ComposerError, match=message):
        training(tmp_path, **settings)


@pytest.mark.parametrize(
    ("roles", "input"),
    [
        (("character", "clothing"), "placed"),
        (("object", "object", "style"), "placed"),
        (("character", "style", "background"), "hidden"),
        (("", "style"), "hidden"),
    ],
)
def test_figures_side_by_side_get_places(
    tmp_path: Path, roles: tuple[str, ...], input: str
) -> None:
    assert gate_for(training(tmp_path), roles).input == input
    for fixed in ("hidden", "placed"):
        assert gate_for(training(tmp_path, input=fixed), roles).input == fixed
    for looks_at, fixed in (("auto", "hidden"), ("hidden", "hidden"), ("experts", "experts")):
        assert gate_for(training(tmp_path, paper=True, input=looks_at), roles).input == fixed


def test_the_file_says_what_gates_look_at(model: Model, tmp_path: Path) -> None:
    run(model, experts_for(model, tmp_path), training(tmp_path, steps=0))
    made = read_gates(tmp_path / "gates.safetensors").settings["unet"]
    assert made == dataclasses.replace(RECOMMENDED, input="hidden")


def test_figures_are_those_of_all_that_accumulates(model: Model, tmp_path: Path) -> None:
    """With two batches a step, each figure is the mean of the two."""
    said: list[Batch] = []
    real = Judged.batch

    def kept(self: Judged, number: int) -> Batch:
        said.append(real(self, number))
        return said[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Judged, "batch", kept)
        config = training(tmp_path, steps=1, accumulation=2)
        made = run(model, experts_for(model, tmp_path), config)[1]
    assert len(said) == 2 and made.entropy is not None
    for name in ("ada", "ink"):
        parts = [batch.figures[name] for batch in said]
        assert parts[0] != parts[1]
        assert made.losses[name] == pytest.approx(sum(parts) / 2)
    assert made.entropy == pytest.approx(sum(entropy(batch.weights) for batch in said) / 2)
    assert made.losses["loss"] == pytest.approx(sum(float(b.loss.detach()) for b in said) / 2)


def test_gates_stand_from_a_depth_on_and_always_in_the_last_unit(
    model: Model, tmp_path: Path
) -> None:
    def units(depth: float) -> set[str]:
        settings = training(tmp_path, granularity="matrix", depth=depth, steps=0)
        run(model, experts_for(model, tmp_path), settings)
        return set(read_gates(settings.output).tensors)

    everywhere, half, last = units(0), units(0.5), units(0.999)
    assert everywhere > half > last
    assert len(last) == 1
