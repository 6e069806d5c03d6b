"""LoRA training on the tiny model: it learns, touches nothing else, and writes what it learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.errors import ComposerError
from composer.experts import ModuleNames, read_expert, read_header
from composer.experts.metadata import read_info
from composer.training.core import Diverged
from composer.training.lora import network
from composer.training.lora.settings import LoraTraining
from composer.training.lora.train import train_lora
from composer.training.picture_train import PictureTrainer
from composer.training.pictures import TrainingPicture
from composer.training.progress import Progress


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> Model:
    return load_model(tiny_sd)


def pictures() -> list[TrainingPicture]:
    red, blue, grey = (Image.new("RGB", (16, 16), color) for color in ("red", "blue", "grey"))
    return [
        TrainingPicture(image=red, caption="zibo, red"),
        TrainingPicture(image=blue, caption="zibo, blue"),
        TrainingPicture(image=grey, caption="grey", is_prior=True),
    ]


def training(folder: Path, **settings: Any) -> LoraTraining:
    values = {
        "output": folder / "zibo.safetensors",
        "trigger": "zibo",
        "role": "character",
        "rank": 4,
        "steps": 4,
        "batch_size": 2,
        "warmup": 1,
        "file_type": "float32",
    }
    return LoraTraining(**{**values, **settings})


def losses(reports: list[Progress]) -> list[float | None]:
    return [report.loss for report in reports if report.stage == "train"]


def state(model: Model) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": tensor.clone()
        for part, module in {**model.models, "vae": model.vae}.items()
        for name, tensor in module.state_dict().items()
    }


def assert_untouched(model: Model, before: dict[str, torch.Tensor]) -> None:
    after = state(model)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not hasattr(model.unet, "peft_config")
    assert not any(parameter.requires_grad for parameter in model.unet.parameters())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("fixture", ["tiny_sd", "tiny_zero_snr_sd"])
def test_learns_a_few_pictures(
    fixture: str, optimizer: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = load_model(request.getfixturevalue(fixture))
    settings: dict[str, Any] = {"steps": 40, "batch_size": 4, "learning_rate": 2e-2, "conv": True}
    config = training(tmp_path, optimizer=optimizer, **settings)
    reports = list(train_lora(model, config, pictures=pictures()[:2]))
    found = [loss for loss in losses(reports) if loss is not None]
    assert len(found) == 40
    assert sum(found[-10:]) < 0.8 * sum(found[:10])
    assert reports[-1].stage == "saved"
    assert reports[-1].path == config.output


def test_changes_the_factors_alone(model: Model, tmp_path: Path) -> None:
    before, modules = state(model), dict(model.unet.named_modules())
    global_draws = torch.random.get_rng_state()
    config = training(tmp_path, text_encoder=True, gradient_checkpointing=True, flip=True)
    list(train_lora(model, config, pictures=pictures()))
    assert_untouched(model, before)
    after = dict(model.unet.named_modules())
    assert all(after[name] is module for name, module in modules.items())
    assert not model.unet.is_gradient_checkpointing
    assert torch.equal(global_draws, torch.random.get_rng_state())


@pytest.mark.parametrize("naming", ["kohya", "diffusers"])
def test_diffusers_reads_what_was_trained(
    naming: str, model: Model, tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = training(
        tmp_path, naming=naming, alpha=2.0, text_encoder=True, learning_rate=1e-2, conv=True
    )
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    ids = torch.arange(64).reshape(2, 32)
    seen: list[torch.Tensor] = []

    def output(unet: Any, text_encoder: Any) -> torch.Tensor:
        with torch.no_grad():
            return unet(latents, 500, encoder_hidden_states=text_encoder(ids)[0]).sample

    # What the trained model itself says, just before its layers are taken away.
    detach = network.LoraNetwork.detach

    def look_and_detach(trained: network.LoraNetwork) -> None:
        seen.append(output(model.unet, model.models["text_encoder"]))
        detach(trained)

    monkeypatch.setattr(network.LoraNetwork, "detach", look_and_detach)
    plain = output(model.unet, model.models["text_encoder"])
    list(train_lora(model, config, pictures=pictures()))
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd, local_files_only=True)
    pipeline.load_lora_weights(str(config.output))
    assert (seen[0] - plain).abs().max() > 1e-2
    torch.testing.assert_close(
        output(pipeline.unet, pipeline.text_encoder), seen[0], atol=1e-5, rtol=1e-5
    )
    expert = read_expert(config.output, ModuleNames.of(model.models, model=model.name))
    assert not expert.unmatched
    assert any(site.startswith("text_encoder.") for site in expert.sites)


def test_the_file_explains_itself(model: Model, tmp_path: Path) -> None:
    config = training(tmp_path, title="Zibo the fox", pictures=None, save_preview=True)
    reports = list(train_lora(model, config, pictures=pictures()))
    header = read_header(config.output)
    info = read_info(header)
    assert (info.trigger, info.role, info.title) == ("zibo", "character", "Zibo the fox")
    assert (info.base, info.rank, info.tags[0]) == (model.name, 4, "zibo")
    metadata = header.metadata
    assert json.loads(metadata["ss_tag_frequency"]) == {"zibo": {"zibo": 2, "red": 1, "blue": 1}}
    assert metadata["ss_network_dim"] == "4"
    assert metadata["ss_num_train_images"] == "2"
    assert metadata["ss_num_reg_images"] == "1"
    assert metadata["ss_steps"] == "4"
    assert metadata["modelspec.prediction_type"] == "epsilon"
    settings = json.loads(metadata["composer.training"])
    assert LoraTraining.from_json(settings).rank == 4
    assert str(tmp_path) not in " ".join(metadata.values())
    assert reports[-1].preview is not None
    assert Image.open(tmp_path / "zibo.png").size == (16, 16)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["zibo.png", "zibo.safetensors"]


def test_previews_and_time_left(model: Model, tmp_path: Path) -> None:
    reports = list(train_lora(model, training(tmp_path, preview_every=2), pictures=pictures()))
    steps = [report for report in reports if report.stage == "train"]
    assert [report.preview is not None for report in steps] == [False, True, False, True]
    assert [report.step for report in steps] == [1, 2, 3, 4]
    assert steps[-1].seconds_left == 0
    assert [report.learning_rate for report in steps][1] == 5e-4


def test_prior_pictures_by_the_model_itself(model: Model, tmp_path: Path) -> None:
    config = training(tmp_path, prior_prompts=("a fox", "a dog"), prior_count=3)
    reports = list(train_lora(model, config, pictures=pictures()[:2]))
    drawn = [report for report in reports if report.stage == "prior" and report.step]
    assert [report.step for report in drawn] == [1, 2, 3]
    assert all(report.preview is not None for report in drawn)
    assert read_header(config.output).metadata["ss_num_reg_images"] == "3"


def test_accumulation_is_the_mean_of_its_batches(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[float] = []
    loss = PictureTrainer.loss

    def recorded(trainer: PictureTrainer, number: int) -> Any:
        value, figures = loss(trainer, number)
        found.append(value.item())
        return value, figures

    monkeypatch.setattr(PictureTrainer, "loss", recorded)
    config = training(tmp_path, steps=2, accumulation=3)
    reports = list(train_lora(model, config, pictures=pictures()))
    means = [sum(found[:3]) / 3, sum(found[3:]) / 3]
    assert losses(reports) == pytest.approx(means)


def test_cancel_leaves_the_model_and_no_file(model: Model, tmp_path: Path) -> None:
    before = state(model)
    seen: list[Progress] = []
    config = training(tmp_path, steps=50)
    for report in train_lora(
        model, config, pictures=pictures(), cancelled=lambda: len(losses(seen)) >= 2
    ):
        seen.append(report)
    assert len(losses(seen)) == 2
    assert seen[-1].stage == "train"
    assert not list(tmp_path.iterdir())
    assert_untouched(model, before)


def test_it_goes_on_with_no_other_pictures(model: Model, tmp_path: Path) -> None:
    config = training(tmp_path, checkpoint_every=1, resume=True)
    for report in train_lora(model, config, pictures=pictures()):
        if report.step == 2 and report.stage == "train":
            break
    assert config.checkpoint.is_file()
    with pytest.raises(ComposerError, match="other pictures"):  # before any work
        train_lora(model, config, pictures=pictures()[:2])


def test_an_abandoned_iterator_leaves_the_model(model: Model, tmp_path: Path) -> None:
    before = state(model)
    reports = train_lora(model, training(tmp_path), pictures=pictures())
    while next(reports).stage != "train":
        pass
    reports.close()  # type: ignore[attr-defined]
    assert_untouched(model, before)


def test_bfloat16_learns_in_float32_factors(model: Model, tmp_path: Path) -> None:
    config = training(tmp_path, precision="bfloat16")
    reports = list(train_lora(model, config, pictures=pictures()))
    assert all(loss is not None for loss in losses(reports))
    assert {entry.dtype for entry in read_header(config.output).tensors.values()} == {"F32"}


class TestNotFinite:
    def poison(
        self, monkeypatch: pytest.MonkeyPatch, steps: set[int]
    ) -> dict[int, dict[str, torch.Tensor]]:
        """Makes these steps' losses NaN; gives the factors that each step begins with."""
        loss = PictureTrainer.loss
        factors: dict[int, dict[str, torch.Tensor]] = {}

        def poisoned(trainer: PictureTrainer, number: int) -> Any:
            learner = trainer.learner
            factors[learner.step] = {
                name: factor.detach().clone() for name, factor in learner.parameters.items()
            }
            value, figures = loss(trainer, number)
            return value * (float("nan") if learner.step in steps else 1.0), figures

        monkeypatch.setattr(PictureTrainer, "loss", poisoned)
        return factors

    def test_a_bad_step_is_skipped_and_counted(
        self, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.poison(monkeypatch, {1, 3, 4})
        config = training(tmp_path, steps=6)
        reports = list(train_lora(model, config, pictures=pictures()))
        assert [loss is None for loss in losses(reports)] == [False, True, False, True, True, False]
        assert reports[-1].skipped == 3
        assert read_header(config.output).metadata["composer.skipped_steps"] == "3"

    def test_three_in_a_row_stop_with_the_last_good(
        self, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = state(model)
        factors = self.poison(monkeypatch, {2, 3, 4})
        with pytest.raises(Diverged, match=r"up to step 5 .*learning rate"):
            list(train_lora(model, training(tmp_path, steps=9), pictures=pictures()))
        assert_untouched(model, before)
        # Step 1 was the last to find a finite loss: what it began with is good, and no more.
        names = ModuleNames.of(model.models, model=model.name)
        kept = read_expert(tmp_path / "zibo.safetensors", names).sites
        for site, factor in kept.items():
            torch.testing.assert_close(factor.up, factors[1][f"{site}.up"])

    def test_nothing_good_writes_nothing(
        self, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.poison(monkeypatch, {0, 1, 2})
        with pytest.raises(Diverged):
            list(train_lora(model, training(tmp_path), pictures=pictures()))
        assert not list(tmp_path.iterdir())
