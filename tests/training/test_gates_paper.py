"""The paper's objective: CLIP, global and local."""

from __future__ import annotations

import dataclasses
import math
import shutil
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
from safetensors.torch import load_file, save_file
from tiny_clip import write_clip
from tiny_loras import experts_for, write_lora
from transformers import CLIPImageProcessor
from typer.testing import CliRunner

from composer.cli import app
from composer.diffusion.clip import Clip, check_clip
from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.errors import ComposerError
from composer.fusions.gate_file import read_gates
from composer.mixture import GateSettings, attach
from composer.training.gates import paper
from composer.training.gates.losses import Batch, balance_loss
from composer.training.gates.paper import ClipGuidance, clip_loss
from composer.training.gates.train import train_gates


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> Model:
    return load_model(tiny_sd)


@pytest.fixture(scope="module")
def clip_folder(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"), tiny_sd)


@pytest.mark.parametrize(
    ("granularity", "input"),
    [
        ("network", "experts"),
        ("block", "experts"),
        ("matrix", "hidden"),
        pytest.param("network", "hidden", marks=pytest.mark.slow),
        pytest.param("block", "hidden", marks=pytest.mark.slow),
        pytest.param("layer", "hidden", marks=pytest.mark.slow),
        pytest.param("layer", "experts", marks=pytest.mark.slow),
        pytest.param("matrix", "experts", marks=pytest.mark.slow),
    ],
)
def test_every_granularity_and_input_trains(
    model: Model, clip_folder: Path, tmp_path: Path, granularity: str, input: str
) -> None:
    """In the text encoder too, whose gates learn through the words that the U-Net reads."""
    values: dict[str, Any] = {"paper": True, "clip": str(clip_folder), "steps": 2}
    config = training(tmp_path, granularity=granularity, input=input, batch_size=2, **values)
    experts = experts_for(model, tmp_path)
    if granularity == "network" and input == "experts":
        with pytest.raises(ComposerError, match="before any expert has run"):
            run(model, experts, config)
        return
    learnt = assert_every_gate_learns(model, experts, config)
    assert all(names == {"e"} for names in learnt.values())
    assert {unit.partition(".")[0] for unit in learnt} == {"unet", "text_encoder"}
    made = read_gates(config.output).settings
    wanted = GateSettings(input=input, reduce="flatten", activation="softmax")  # pyright: ignore
    assert made == {"unet": wanted, "text_encoder": wanted}


def test_the_balance_loss_by_hand() -> None:
    """-sum_i log q_i, with q_i the mean share of expert i over units and rows."""
    one = torch.tensor([[0.9, 0.1], [0.5, 0.5]])
    other = torch.tensor([[[0.2, 0.2], [0.0, 0.4]]])  # by token: shares 0.25 and 0.75
    q = [(0.7 + 0.25) / 2, (0.3 + 0.75) / 2]
    wanted = -sum(math.log(each) for each in q)
    assert float(balance_loss([("a", one), ("b", other)])) == pytest.approx(wanted)
    even = torch.full((1, 2), 0.5)
    assert float(balance_loss([("a", even)])) == pytest.approx(2 * math.log(2))


def test_the_balance_loss_is_part_of_the_loss(
    model: Model, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts = experts_for(model, tmp_path)
    config = training(tmp_path, paper=True, clip=str(clip_folder), batch_size=2)
    said: list[Batch] = []
    for alpha in (0.0, 2.0):
        monkeypatch.setattr(paper, "BALANCE", alpha)
        with attach(model.models, {e.name: e.sites for e in experts}, granularity="block") as some:
            guidance = finished(ClipGuidance.prepare(model, some, config))
            put_gates_in(model, some, config)
            said.append(guidance.batch(0))
    torch.testing.assert_close(said[1].loss, said[0].loss + 2 * balance_loss(said[0].weights))


def test_the_loss_by_hand() -> None:
    """-log((2.5 - (L_global + L_local)) / 2), spelt out for one picture and two experts."""
    generator = torch.Generator().manual_seed(0)
    text, texts = torch.randn(1, 5, generator=generator), torch.randn(2, 5, generator=generator)
    image = text + 0.3 * torch.randn(1, 5, generator=generator)
    images = texts + 0.3 * torch.randn(2, 5, generator=generator)

    def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(a @ b / (a.norm() * b.norm()))

    together = 1 - cosine(image[0], text[0])
    local = sum(1 - cosine(image[0] - images[i], text[0] - texts[i]) for i in range(2)) / 2
    wanted = -torch.tensor((2.5 - (together + local)) / 2).log()
    torch.testing.assert_close(clip_loss(image, text, images, texts)[0], wanted)


def test_clip_sees_as_its_own_processor_does(model: Model, clip_folder: Path) -> None:
    """Our differentiable way into CLIP gives what transformers' own way gives."""
    loaded = Clip.load(str(clip_folder), model)
    pictures = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    processor = CLIPImageProcessor.from_pretrained(clip_folder)
    arrays = [(p.permute(1, 2, 0) * 255).round().byte().numpy() for p in pictures]
    values = processor(arrays, return_tensors="pt").pixel_values
    pictures = (pictures * 255).round() / 255
    ours = loaded.image(pictures)
    theirs = loaded.model.get_image_features(pixel_values=values)
    theirs = getattr(theirs, "pooler_output", theirs)
    torch.testing.assert_close(
        ours, torch.nn.functional.normalize(theirs, dim=-1), atol=1e-4, rtol=0
    )


def test_the_experts_draw_themselves_step_by_step(
    model: Model, clip_folder: Path, tmp_path: Path
) -> None:
    config = training(tmp_path, paper=True, clip=str(clip_folder))
    experts = experts_for(model, tmp_path)
    reports = train_gates(model, experts, config)
    told = [next(reports) for _ in range(6)]
    assert [(report.step, report.total) for report in told] == [(n, 6) for n in range(1, 7)]
    assert {report.stage for report in told} == {"alone"}
    reports.close()  # pyright: ignore[reportAttributeAccessIssue]
    stopped = train_gates(model, experts, config, cancelled=lambda: True)
    assert list(stopped) == []


def test_a_step_along_the_gradient_lowers_the_loss_by_as_much(
    model: Model, clip_folder: Path, tmp_path: Path
) -> None:
    """Through the U-Net, the clean picture it predicts, its decoding and CLIP."""
    config = training(tmp_path, paper=True, clip=str(clip_folder), batch_size=2)
    experts = experts_for(model, tmp_path)
    parts = (*model.models.values(), model.vae)
    frozen = [p for network in parts for p in network.parameters()]
    for parameter in frozen:
        parameter.requires_grad_(False)
    with attach(model.models, {e.name: e.sites for e in experts}, granularity="block") as mixture:
        guidance = finished(ClipGuidance.prepare(model, mixture, config))
        parameters = put_gates_in(model, mixture, config)
        change, expected = along_the_gradient(lambda: guidance.batch(0).loss, parameters, 1e-3)
    for parameter in frozen:
        parameter.requires_grad_(True)
    assert expected < 0
    assert change == pytest.approx(expected, rel=0.1)


def test_a_step_along_the_gradient_of_the_words_gates_does_too(
    model: Model, clip_folder: Path, tmp_path: Path
) -> None:
    """Through the text encoder, whose other weights want no gradient."""
    config = training(tmp_path, paper=True, clip=str(clip_folder), batch_size=2)
    experts = experts_for(model, tmp_path)
    parts = (*model.models.values(), model.vae)
    frozen = [p for network in parts for p in network.parameters()]
    for parameter in frozen:
        parameter.requires_grad_(False)
    with attach(model.models, {e.name: e.sites for e in experts}, granularity="block") as mixture:
        guidance = finished(ClipGuidance.prepare(model, mixture, config))
        put_gates_in(model, mixture, config)
        words = [g for unit, g in mixture.gates.items() if unit.startswith("text_encoder.")]
        parameters = [parameter for gate in words for parameter in gate.parameters()]
        change, expected = along_the_gradient(lambda: guidance.batch(0).loss, parameters, 0.1)
    for parameter in frozen:
        parameter.requires_grad_(True)
    assert expected < 0
    assert change == pytest.approx(expected, rel=0.1)


def test_nothing_but_gates_is_changed(model: Model, clip_folder: Path, tmp_path: Path) -> None:
    before = [p.detach().clone() for part in (model.unet, model.vae) for p in part.parameters()]
    config = training(tmp_path, paper=True, clip=str(clip_folder), steps=4)
    made = run(model, experts_for(model, tmp_path), config)
    assert set(made[4].losses) == {"loss", "CLIP"}
    after = [p for part in (model.unet, model.vae) for p in part.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert all(p.grad is None for p in after)


@pytest.mark.parametrize("granularity", ["block", "network"])
def test_less_memory_is_the_same_training(
    model: Model, clip_folder: Path, tmp_path: Path, granularity: str
) -> None:
    """Layers that run again for the backward pass must find what the gates said of the prompt."""
    experts = experts_for(model, tmp_path)
    values = {"paper": True, "clip": str(clip_folder), "granularity": granularity}
    values = {**values, "steps": 2}
    plain = run(model, experts, training(tmp_path / "plain", **values))
    thrifty = run(
        model, experts, training(tmp_path / "thrifty", gradient_checkpointing=True, **values)
    )
    for step, report in plain.items():
        assert thrifty[step].loss == pytest.approx(report.loss, rel=1e-3)


@pytest.mark.parametrize("stop_after", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_it_resumes_in_the_middle_of_a_sampling_and_at_its_end(
    model: Model, clip_folder: Path, tmp_path: Path, stop_after: int
) -> None:
    experts = experts_for(model, tmp_path)
    settings = training(tmp_path / "whole", paper=True, clip=str(clip_folder), steps=5)
    whole = run(model, experts, settings)
    stopped = dataclasses.replace(settings, output=tmp_path / "stopped" / "gates.safetensors")
    first = run(model, experts, stopped, stop_after=stop_after)
    rest = run(model, experts, dataclasses.replace(stopped, resume=True))
    assert {s: r.loss for s, r in (first | rest).items()} == {s: r.loss for s, r in whole.items()}


def test_without_a_clip_it_says_so(model: Model, tmp_path: Path) -> None:
    with pytest.raises(ComposerError, match=r"has no CLIP beside it: name one, such as [^:]*$"):
        run(model, experts_for(model, tmp_path), training(tmp_path, paper=True))


def test_what_is_no_clip_is_refused_by_its_small_files(
    clip_folder: Path, tiny_sd: Path, tmp_path: Path
) -> None:
    def changed(name: str, config: str | None = None, without: str = "") -> str:
        folder = Path(shutil.copytree(clip_folder, tmp_path / name))
        if config is not None:
            (folder / "config.json").write_text(config)
        for path in folder.glob(without or "nothing"):
            path.unlink()
        return str(folder)

    check_clip(str(clip_folder))
    for name, reason in {
        changed("other", '{"model_type": "bert"}'): "a model of the kind 'bert'",
        changed("kindless", "{}"): "it says no kind",
        changed("broken", "{"): "is not a valid JSON",
        changed("weightless", without="*.safetensors"): "no weights in safetensors",
        changed("wordless", without="tokenizer*"): "it has no tokenizer",
        changed("blind", without="*processor*"): "image processor",
        str(tmp_path / "nowhere"): "no such folder",
        str(tiny_sd / "text_encoder"): "a model of the kind 'clip_text_model'",
        "nobody/never-published": "never-published",
        "no name at all": "no name at all",
    }.items():
        with pytest.raises(ComposerError, match="cannot be used") as error:
            check_clip(name)
        assert reason in str(error.value), str(error.value)


def test_a_clip_that_lacks_weights_is_refused(
    model: Model, clip_folder: Path, tmp_path: Path
) -> None:
    """transformers would go on with random ones."""
    folder = Path(shutil.copytree(clip_folder, tmp_path / "halved"))
    tensors = load_file(folder / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ComposerError, match=r"lacks the weights visual_projection\.weight"):
        Clip.load(str(folder), model)


def test_the_command_refuses_it_before_it_loads_anything(tmp_path: Path) -> None:
    folder = tmp_path / "loras"
    for seed, name in enumerate(("ada", "ink")):
        write_lora(folder / f"{name}.safetensors", seed=seed)
    words = [
        "train-gates",
        "ada",
        "ink",
        "--lora-dir",
        folder,
        "--output",
        tmp_path / "g.safetensors",
    ]
    words += ["--model", tmp_path / "no model", "--paper", "--clip", tmp_path / "none"]
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 2 and "there is no such folder" in done.stderr, done.output
