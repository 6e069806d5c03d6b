"""The objective in which each expert has to recognise itself."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from gate_training import (
    along_the_gradient,
    assert_every_gate_learns,
    finished,
    put_gates_in,
    run,
    training,
)
from tiny_loras import experts_for

from composer.diffusion.conditioning import encode_prompts
from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.mixture import attach
from composer.training.draws import generator_for
from composer.training.gates import judges
from composer.training.gates.judges import LEVELS, Judged, Judges, companies, shortfall
from composer.training.gates.losses import Batch, distance_from_sum
from composer.training.gates.train import train_gates
from composer.training.objective import Objective


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> Model:
    return load_model(tiny_sd)


def test_the_shortfall_by_hand() -> None:
    recognised = torch.tensor([[0.5, 1.0, 3.0], [-1.0, 0.0, 0.02]])
    asked = torch.tensor([[1.0, 1.0, 1.0], [1.0, 2.0, 0.0]])  # a judge that knows nothing: 0.05
    wanted = torch.tensor([[0.25, 0.0, 0.0], [4.0, 1.0, 0.36]])
    torch.testing.assert_close(shortfall(recognised, asked), wanted)


def test_the_distance_from_the_sum_by_hand() -> None:
    by_row = torch.tensor([[1.0, 0.0], [3.0, 1.0]])  # a zero counts not: 2^2 / 2 and 0
    # tokens by their weight: (0.5 * 0.25 + 1.5 * 0.25) / 2 and (1 * 0 + 1 * 4) / 2; 0 counts not
    by_token = torch.tensor([[[0.5, 1.0], [1.5, -1.0], [0.0, 0.0]]])
    assert float(distance_from_sum([("a", by_row)])) == pytest.approx(1.0)
    assert float(distance_from_sum([("b", by_token)])) == pytest.approx((0.25 + 2.0) / 2)
    both = distance_from_sum([("a", by_row), ("b", by_token)])
    assert float(both) == pytest.approx((1.0 + 1.125) / 2)


@pytest.fixture
def judges_alone_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judges, "NEAR", 0.0)


def test_the_distance_from_the_sum_counts(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts = experts_for(model, tmp_path)
    said: list[Batch] = []
    for near in (0.0, 2.0):
        monkeypatch.setattr(judges, "NEAR", near)
        config = training(tmp_path, batch_size=3)
        with attach(model.models, {e.name: e.sites for e in experts}, granularity="block") as some:
            objective = finished(Judged.prepare(model, some, config))
            put_gates_in(model, some, config)
            said.append(objective.batch(0))
    away = distance_from_sum(said[0].weights)
    assert away > 0.1
    torch.testing.assert_close(said[1].loss, said[0].loss + 2 * away)


@torch.no_grad()
def test_judges_are_the_models_with_each_expert_alone(model: Model, tmp_path: Path) -> None:
    """Against one model at a time with one LoRA attached, a picture at a time."""
    experts = experts_for(model, tmp_path)
    prompts = ["ada in ink", "cat"]
    clean = torch.randn(2, model.latent_channels, 8, 8, generator=torch.Generator().manual_seed(3))
    with attach(model.models, {e.name: e.sites for e in experts}) as mixture:
        mixture.set_weights({"ada": 0.3, "ink": 0.7})
        before = mixture.weights
        generator = generator_for(0, "d", 1)
        with mixture.weighing_rows():
            said = Judges(model, mixture).recognise(clean, prompts, [0, 1], generator)
        assert mixture.weights == before
        for routing in mixture.routings.values():
            torch.testing.assert_close(routing.weights, torch.tensor([0.3, 0.7]))
    process, generator = Objective.from_scheduler(model.scheduler_config), generator_for(0, "d", 1)
    first, last = (int(part * process.timesteps) for part in LEVELS)
    levels = torch.randint(first, last, (2,), generator=generator)
    noise = torch.randn(clean.shape, generator=generator)

    def errors(picture: int) -> torch.Tensor:
        one = slice(picture, picture + 1)
        noisy = process.noised(clean[one], noise[one], levels[one])
        text = encode_prompts(model, prompts[picture], None).positive.states
        out = model.unet(noisy, levels[one], encoder_hidden_states=text).sample
        right = process.target(clean[one], noise[one], levels[one])
        return (out - right).square()[0].mean(0)

    bare = [errors(picture) for picture in range(2)]
    for index, expert in enumerate(experts):
        with attach(model.models, {expert.name: expert.sites}):
            mine = [errors(picture) for picture in range(2)]
        wanted = [math.log(float(b.mean() / m.mean())) for b, m in zip(bare, mine, strict=True)]
        torch.testing.assert_close(said[index], torch.tensor(wanted), atol=1e-4, rtol=1e-3)
    assert said.abs().max() > 1e-3


def test_a_step_along_the_gradient_lowers_the_loss_by_as_much(model: Model, tmp_path: Path) -> None:
    """Through the gated U-Net, the clean picture it predicts, and the judges."""
    config = training(tmp_path, batch_size=3)
    experts = experts_for(model, tmp_path)
    frozen = [p for network in model.models.values() for p in network.parameters()]
    for parameter in frozen:
        parameter.requires_grad_(False)
    with attach(model.models, {e.name: e.sites for e in experts}, granularity="block") as mixture:
        objective = finished(Judged.prepare(model, mixture, config))
        parameters = put_gates_in(model, mixture, config)
        objective.batch(0)
        kept = objective.state()

        def second() -> torch.Tensor:
            objective.load_state(kept)
            return objective.batch(1).loss

        change, expected = along_the_gradient(second, parameters, 1e-5)
    for parameter in frozen:
        parameter.requires_grad_(True)
    assert expected < 0
    assert change == pytest.approx(expected, rel=0.1)


def test_pictures_are_spread_over_the_sampling_and_follow_each_other(
    model: Model, tmp_path: Path
) -> None:
    """One picture in the batch is what a sampling of its own comes to, step by step."""
    config = training(tmp_path, batch_size=3, prompts=("ada in ink",))
    experts = experts_for(model, tmp_path)
    with attach(model.models, {e.name: e.sites for e in experts}, granularity="block") as mixture:
        objective = finished(Judged.prepare(model, mixture, config))
        put_gates_in(model, mixture, config)
        latents: list[torch.Tensor] = []
        for number in range(4):
            objective.batch(number)
            latents.append(objective.state()["latents.0"])
        # the first row begins with noise at the first batch, and anew after its third step
        sampling_noise, prompt = objective._drawn(0, 0, 0)
        scheduler = objective._scheduler
        for timestep, after in zip(scheduler.timesteps[:2], latents[:2], strict=True):
            with torch.no_grad():
                guided = objective._predict(sampling_noise[None], timestep[None], [prompt])
            sampling_noise = scheduler.step(guided[0], timestep, sampling_noise, return_dict=False)[
                0
            ]
            torch.testing.assert_close(after[0], sampling_noise, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(latents[2][0], objective._drawn(3, 0, 0)[0])
        assert not torch.equal(latents[0][1], latents[0][2])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        # sites that are asked again one by one, and some whose weights are constant
        {"granularity": "matrix"},
        {"granularity": "layer", "input": "placed"},
        {"depth": 0.6, "company": "nobody"},
    ],
    ids=["block", "matrix", "layer", "depth"],
)
def test_less_memory_is_the_same_training(
    model: Model, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Layers that run again for the backward pass must not find the judges' weights."""
    experts = experts_for(model, tmp_path)
    settings = {"steps": 3, **settings}
    plain = run(model, experts, training(tmp_path / "plain", **settings))
    thrifty = run(
        model, experts, training(tmp_path / "thrifty", gradient_checkpointing=True, **settings)
    )
    for step, report in plain.items():
        assert thrifty[step].loss == pytest.approx(report.loss, rel=1e-3)
        assert thrifty[step].entropy == pytest.approx(report.entropy, rel=1e-3)


def test_nothing_but_gates_is_changed(model: Model, tmp_path: Path) -> None:
    parts = (*model.models.values(), model.vae)
    before = [p.detach().clone() for part in parts for p in part.parameters()]
    made = run(model, experts_for(model, tmp_path), training(tmp_path, steps=4))
    assert set(made[4].losses) == {"loss", "ada", "ink"}
    after = [p for part in parts for p in part.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert all(p.grad is None for p in after)


def test_it_resumes_in_the_middle_of_a_sampling(model: Model, tmp_path: Path) -> None:
    experts = experts_for(model, tmp_path)
    settings = training(tmp_path / "whole", steps=5)
    whole = run(model, experts, settings)
    stopped = dataclasses.replace(settings, output=tmp_path / "stopped" / "gates.safetensors")
    first = run(model, experts, stopped, stop_after=2)
    rest = run(model, experts, dataclasses.replace(stopped, resume=True))
    assert {s: r.loss for s, r in (first | rest).items()} == {s: r.loss for s, r in whole.items()}


@pytest.mark.parametrize("settings", [{"input": "placed"}, {"granularity": "network"}])
@pytest.mark.usefixtures("judges_alone_count")
def test_other_gates_learn_from_judges_too(
    model: Model, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Not for being held near the sum, which needs no judge."""
    config = training(tmp_path, steps=3, **settings)
    assert assert_every_gate_learns(model, experts_for(model, tmp_path), config)


def test_it_stops_while_the_experts_draw_themselves(model: Model, tmp_path: Path) -> None:
    config, experts = training(tmp_path), experts_for(model, tmp_path)
    reports = train_gates(model, experts, config)
    told = [next(reports) for _ in range(6)]
    assert [(report.step, report.total) for report in told] == [(n, 6) for n in range(1, 7)]
    reports.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert list(train_gates(model, experts, config, cancelled=lambda: True)) == []


def test_who_keeps_whom_company() -> None:
    roles = ("character", "style", "clothing", "background", "other")
    beside_figures = (1, 3, 4)
    assert companies("fitting", roles) == (
        beside_figures, (0, 2, 3, 4), beside_figures, (0, 1, 2, 4), (0, 1, 2, 3),
    )  # fmt: skip
    assert companies("nobody", roles) == ((),) * 5
    assert companies("fitting", ("character", "clothing")) == ((), ())


@torch.no_grad()
def test_judges_in_company_are_sums_with_an_expert_and_without(
    model: Model, tmp_path: Path
) -> None:
    """Against one model at a time with these LoRAs attached, each with weight 1."""
    experts = experts_for(model, tmp_path)
    prompts = ["ada in ink", "cat"]
    clean = torch.randn(2, model.latent_channels, 8, 8, generator=torch.Generator().manual_seed(3))
    sites = {expert.name: expert.sites for expert in experts}
    with attach(model.models, sites) as mixture:
        names = mixture.names
        company = companies("fitting", names)
        generator = generator_for(0, "d", 1)
        every = range(len(names))
        asked = Judges(model, mixture)
        with mixture.weighing_rows():
            said = asked.recognise(clean, prompts, every, generator, company)
    process, generator = Objective.from_scheduler(model.scheduler_config), generator_for(0, "d", 1)
    first, last = (int(part * process.timesteps) for part in LEVELS)
    levels = torch.randint(first, last, (2,), generator=generator)
    noise = torch.randn(clean.shape, generator=generator)
    noisy, right = process.noised(clean, noise, levels), process.target(clean, noise, levels)

    def log_errors(some: Sequence[str]) -> torch.Tensor:
        with attach(model.models, {name: sites[name] for name in some}) as mixture:
            mixture.set_weights(dict.fromkeys(some, 1.0))
            text = torch.cat([encode_prompts(model, p, None).positive.states for p in prompts])
            out = model.unet(noisy, levels, encoder_hidden_states=text).sample
        return (out - right).square().mean((1, 2, 3)).log()

    for index, name in enumerate(names):
        others = [other for other in names if other != name]
        wanted = log_errors(others) - log_errors(names)
        torch.testing.assert_close(said[index], wanted, atol=1e-4, rtol=1e-3)
    assert said.abs().max() > 1e-3


@pytest.mark.usefixtures("judges_alone_count")
def test_a_training_knows_the_roles(model: Model, tmp_path: Path) -> None:
    """What is asked of each is what it says alone; in composed pictures a style judges in company,
    and two figures do not."""
    experts = experts_for(model, tmp_path)
    config = training(tmp_path, batch_size=3)
    names = [expert.name for expert in experts]
    asked: list[torch.Tensor] = []
    losses: list[float] = []
    for roles in (("character", "clothing"), ("character", "style"), ("other", "style")):
        known = dict(zip(names, roles, strict=True))
        with attach(model.models, {e.name: e.sites for e in experts}, granularity="block") as some:
            objective = finished(Judged.prepare(model, some, config, known))
            put_gates_in(model, some, config)
            asked.append(objective.asked)
            losses.append(float(objective.batch(0).loss))
    for other in asked[1:]:
        torch.testing.assert_close(other, asked[0], rtol=0, atol=0)
    assert losses[1] == losses[2] != losses[0]
    alone = training(tmp_path, batch_size=3, company="nobody")
    with attach(model.models, {e.name: e.sites for e in experts}, granularity="block") as some:
        objective = finished(Judged.prepare(model, some, alone, {names[1]: "style"}))
        put_gates_in(model, some, alone)
        assert float(objective.batch(0).loss) == losses[0]
