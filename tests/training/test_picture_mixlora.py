"""A MixLoRA is trained on image sets: it learns, goes on where it stopped, and writes one file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from composer.cli import app
from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.errors import ComposerError
from composer.fusions.mixlora_file import read_mixlora, read_mixlora_facts
from composer.mixlora import LoraSettings, MixLoraSettings, RouterSettings
from composer.training.mixlora import ImageSet, PictureMixLoraTraining, train_picture_mixlora
from composer.training.muon import Muon
from composer.training.pictures import TrainingPicture

SETS = (ImageSet(trigger="zibo", title="Zibo"), ImageSet(trigger="tavo"))


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> Model:
    return load_model(tiny_sd)


def pictures(first: str = "red") -> Mapping[str, Sequence[TrainingPicture]]:
    def one(color: str, caption: str, **more: Any) -> TrainingPicture:
        image = Image.new("RGB", (16, 16), color)
        return TrainingPicture(image=image, caption=caption, **more)

    return {
        "zibo": [one(first, "zibo, red"), one("pink", ""), one("grey", "grey", is_prior=True)],
        "tavo": [one("blue", "a tavo")],
    }


def adapter(dropout: float = 0.0) -> MixLoraSettings:
    plain = LoraSettings(rank=2, alpha=2.0, dropout=dropout)
    router = RouterSettings(experts=3, top_k=2, balance=0.1)
    return MixLoraSettings(experts=plain, attention=plain, convolutions=plain, router=router)


def training(folder: Path, **settings: Any) -> PictureMixLoraTraining:
    values = {
        "output": folder / "both.safetensors",
        "sets": SETS,
        "adapter": adapter(),
        "steps": 4,
        "batch_size": 4,
        "warmup": 1,
        "learning_rate": 1e-2,
        "file_type": "float32",
    }
    return PictureMixLoraTraining(**{**values, **settings})


def run(
    model: Model, config: PictureMixLoraTraining, *, stop_after: int = 1000
) -> dict[int, float | None]:
    """The loss of each step that was made."""
    made: dict[int, float | None] = {}
    for report in train_picture_mixlora(
        model, config, pictures=pictures(), cancelled=lambda: stop_after in made
    ):
        if report.stage == "train":
            made[report.step] = report.loss
    return made


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_learns_and_leaves_the_model_as_it_was(
    model: Model, tmp_path: Path, optimizer: str
) -> None:
    before = {name: tensor.clone() for name, tensor in model.unet.state_dict().items()}
    modules = dict(model.unet.named_modules())
    drawn = torch.random.get_rng_state()
    told = replace(adapter(), router=RouterSettings(experts=3, top_k=2, balance=1e-3))
    more: dict[str, Any] = {"learning_rate": 2e-2, "gradient_checkpointing": True, "adapter": told}
    config = training(tmp_path, optimizer=optimizer, steps=30, **more)
    losses = [loss for loss in run(model, config).values() if loss is not None]
    assert len(losses) == 30
    assert sum(losses[-10:]) < 0.85 * sum(losses[:10])
    after = model.unet.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(dict(model.unet.named_modules())[name] is one for name, one in modules.items())
    assert not any(p.requires_grad for p in model.unet.parameters())
    assert not model.unet.is_gradient_checkpointing
    assert torch.equal(torch.random.get_rng_state(), drawn)


def test_the_file_explains_itself_and_says_what_the_trained_one_said(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from composer.mixlora import MixLora

    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    text = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(2))
    seen: list[torch.Tensor] = []

    def output() -> torch.Tensor:
        with torch.no_grad():
            return model.unet(noisy, 500, text).sample

    detach = MixLora.detach

    def look_and_detach(mixlora: MixLora) -> None:
        seen.append(output())
        detach(mixlora)

    plain = output()
    monkeypatch.setattr(MixLora, "detach", look_and_detach)
    config = training(tmp_path, title="Both")
    run(model, config)
    monkeypatch.undo()
    file = read_mixlora(config.output)
    with file.attach(model.unet) as mixlora:
        assert torch.equal(output(), seen[-1])
        assert not any(p.requires_grad for _, p in mixlora.named_parameters("pictures"))
    assert torch.equal(output(), plain)
    assert (seen[-1] - plain).abs().max() > 1e-3
    assert [(one.name, one.trigger, one.pictures) for one in file.sets] == [
        ("Zibo", "zibo", 2),
        ("tavo", "tavo", 1),
    ]
    assert (file.model, file.model_hash, file.title) == (model.name, model.hash, "Both")
    told = file.training
    assert PictureMixLoraTraining.from_json(told["settings"]).adapter == config.adapter
    assert told["steps"] == 4
    assert 1.9 < told["balance_loss"] < 4.0
    assert all(sum(loads) == pytest.approx(1.0, abs=0.01) for loads in told["loads"].values())
    assert str(tmp_path) not in json.dumps(told)
    assert read_mixlora_facts(config.output).settings == file.settings


def test_experts_are_balanced_in_each_layer_where_that_is_asked_for(
    model: Model, tmp_path: Path
) -> None:
    """Layers that prefer different experts are even together, and uneven each by itself."""
    router = RouterSettings(experts=3, top_k=1, balance=1.0, init_std=0.5)
    told: dict[str, float] = {}
    trained: dict[str, dict[str, Tensor]] = {}
    for over in ("all", "layer"):
        own = replace(adapter(), router=router)
        config = training(tmp_path / over, adapter=own, balance_over=over, steps=1, warmup=0)
        run(model, config)
        told[over] = read_mixlora_facts(config.output).training["balance_loss"]
        trained[over] = load_file(config.output)
    assert told["layer"] > told["all"] + 0.1
    assert any(not torch.equal(trained["all"][n], t) for n, t in trained["layer"].items())


def test_another_training_cannot_be_resumed(model: Model, tmp_path: Path) -> None:
    run(model, training(tmp_path, checkpoint_every=2), stop_after=1)
    with pytest.raises(ComposerError, match="seed"):
        run(model, training(tmp_path, resume=True, seed=3))
    with pytest.raises(ComposerError, match="other pictures"):  # before any work
        train_picture_mixlora(
            model, training(tmp_path, resume=True), pictures=pictures(first="green")
        )


def test_stacked_matrices_are_orthogonalised_each_for_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, 4, 6, generator=generator)
    gradient = torch.randn(3, 4, 6, generator=generator)
    stack = torch.nn.Parameter(start.clone())
    alone = [torch.nn.Parameter(matrix.clone()) for matrix in start]
    stack.grad = gradient
    for matrix, part in zip(alone, gradient, strict=True):
        matrix.grad = part
    Muon([{"params": [stack], "stacked": True}]).step()
    Muon(alone).step()
    assert torch.allclose(stack, torch.stack(alone))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sets": ()}, "no image set"),
        ({"sets": (SETS[0], ImageSet(trigger="Zibo "))}, "Two image sets"),
        ({"steps": 0}, "steps is 0"),
        ({"sets": (*SETS, ImageSet(trigger="luna"))}, "luna.*no pictures"),
        ({"sets": (replace(SETS[0], trigger="fox"),)}, "fox.*no pictures"),
        ({"adapter": replace(adapter(), target_modules=("wings",))}, "wings"),
        ({"resolution": 15}, "multiple of 2"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    model: Model, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ComposerError, match=message):
        train_picture_mixlora(model, training(tmp_path, **change), pictures=pictures())
    assert not list(tmp_path.iterdir())


def test_a_trigger_that_no_caption_has(model: Model, tmp_path: Path) -> None:
    given = {"zibo": pictures()["tavo"]}
    config = training(tmp_path, sets=SETS[:1])
    with pytest.raises(ComposerError, match=r"zibo.*trigger.*a tavo"):
        train_picture_mixlora(model, config, pictures=given)


def test_the_command_trains_folders(tiny_sd: Path, tmp_path: Path) -> None:
    for name, color in (("zibo", "red"), ("tavo", "blue")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (16, 16), color).save(tmp_path / name / "1.png")
    output = tmp_path / "out" / "both.safetensors"
    arguments = ["train-picture-mixlora", str(output), "--model", str(tiny_sd)]
    arguments += ["--set", f"zibo fox={tmp_path / 'zibo'}", "--set", f"tavo={tmp_path / 'tavo'}"]
    settings = ["--steps", "2", "--experts", "2", "--rank", "2", "--conv-rank", "1"]
    result = CliRunner().invoke(app, [*arguments, *settings, "--attention-rank", "0"])
    assert result.exit_code == 0, result.output
    assert "step 2/2" in result.output
    facts = read_mixlora_facts(output)
    assert [one.trigger for one in facts.sets] == ["zibo fox", "tavo"]
    assert facts.settings.attention is None
    assert facts.settings.router.experts == 2
    wrong = CliRunner().invoke(app, [*arguments, "--set", "luna"])
    assert wrong.exit_code == 2
    assert "--set 'luna'" in wrong.output.replace("\n", " ")
