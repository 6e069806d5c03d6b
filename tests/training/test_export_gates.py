"""Gates taken away: the LoRA that is written, what is said of its loss, what stays as it was."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gate_training import assert_untouched, run, state_of, training
from tiny_gates import write_gates
from tiny_loras import experts_for, write_lora

from composer.diffusion.conditioning import encode_prompts
from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.errors import ComposerError
from composer.experts import Expert, ModuleNames, read_expert, read_header
from composer.fusions.gate_file import GateFile, read_gates
from composer.mixture import GateSettings, attach
from composer.training.gates.export import Exported, ExportedLora, export_gates
from composer.training.gates.settings import GateExport

PROMPTS = ("ada in ink", "ink")


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> Model:
    return load_model(tiny_sd)


@pytest.fixture
def experts(model: Model, tmp_path: Path) -> list[Expert]:
    return experts_for(model, tmp_path)


@pytest.fixture
def looking(tiny_sd: Path, experts: list[Expert], tmp_path: Path) -> GateFile:
    """Gates that answer each picture and each step anew."""
    paths = {expert.name: expert.path for expert in experts}
    return read_gates(write_gates(tmp_path / "looking.safetensors", tiny_sd, paths))


@pytest.fixture
def constant(looking: GateFile) -> GateFile:
    """Gates that say the same whatever they see, other numbers in each unit."""
    return fixed(looking)


def fixed(file: GateFile) -> GateFile:
    numbers = [torch.tensor([0.9 - 0.3 * i, -0.2 + 0.4 * i]) for i in range(len(file.tensors))]
    tensors = {
        unit: {
            name: torch.zeros_like(tensor) if name in ("e", "clock") else tensor
            for name, tensor in (named | {"b": number}).items()
        }
        for (unit, named), number in zip(file.tensors.items(), numbers, strict=True)
    }
    return dataclasses.replace(file, tensors=tensors)


def asked(tmp_path: Path, **settings: Any) -> GateExport:
    values: dict[str, Any] = {
        "output": tmp_path / "out.safetensors",
        "gates": "pair",
        "prompts": PROMPTS,
        "pictures": 3,
        "steps": 3,
    }
    return GateExport(**(values | settings))


def exported(model: Model, experts: list[Expert], file: GateFile, config: GateExport) -> Exported:
    (*steps, last) = export_gates(model, experts, file, config)
    assert last.stage == "saved" and last.exported is not None
    for report in steps:
        assert report.exported is None and 1 <= report.step <= report.total
    assert steps[-1].step == steps[-1].total
    return last.exported


def predict(model: Model, prompt: str = "ada in ink", time: int = 400) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        text = encode_prompts(model, prompt, None).positive.states
        latents = torch.randn(1, model.latent_channels, 8, 8, generator=generator)
        return model.unet(latents, time, text).sample


def gated(model: Model, experts: list[Expert], file: GateFile) -> torch.Tensor:
    sites = {expert.name: expert.sites for expert in experts}
    with attach(model.models, sites, granularity=file.granularity) as mixture:
        file.fit(mixture)
        return predict(model)


def read_back(model: Model, written: ExportedLora) -> Expert:
    modules = ModuleNames.of(model.models, model=model.name)
    expert = read_expert(written.path, modules, name="out")
    assert expert.unmatched == ()
    return expert


@pytest.mark.parametrize(("file_type", "close"), [("float32", 1e-4), ("float16", 5e-3)])
@pytest.mark.parametrize("naming", ["kohya", "diffusers"])
def test_constant_gates_lose_nothing(
    model: Model,
    experts: list[Expert],
    constant: GateFile,
    tmp_path: Path,
    naming: Any,
    file_type: str,
    close: float,
) -> None:
    found = exported(model, experts, constant, asked(tmp_path, naming=naming, file_type=file_type))
    assert 0 <= found.loss < close**2
    (written,) = found.files
    assert written.path == tmp_path / "out.safetensors" and written.loss == found.loss
    wanted = gated(model, experts, constant)
    assert not torch.allclose(predict(model), wanted, atol=0.01)
    with attach(model.models, {"out": read_back(model, written).sites}):
        torch.testing.assert_close(predict(model), wanted, rtol=close, atol=close)


def test_diffusers_gives_the_gated_picture(
    tiny_sd: Path, model: Model, experts: list[Expert], constant: GateFile, tmp_path: Path
) -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import (
        StableDiffusionPipeline,
    )

    config = asked(tmp_path, naming="diffusers", file_type="float32")
    exported(model, experts, constant, config)
    pipeline: Any = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    pipeline.load_lora_weights(str(tmp_path), weight_name="out.safetensors")
    theirs = dataclasses.replace(
        model,
        unet=pipeline.unet,
        encoders={
            "text_encoder": dataclasses.replace(
                model.encoders["text_encoder"], network=pipeline.text_encoder
            )
        },
    )
    wanted = gated(model, experts, constant)
    torch.testing.assert_close(predict(theirs), wanted, rtol=1e-4, atol=1e-4)


def test_gates_that_look_lose_something_and_the_file_says_so(
    model: Model, experts: list[Expert], looking: GateFile, tmp_path: Path
) -> None:
    before = state_of(model)
    found = exported(model, experts, looking, asked(tmp_path))
    assert_untouched(model, before)
    assert 1e-4 < found.loss < 1
    expert = read_back(model, found.files[0])
    assert expert.info.role == "other" and expert.info.title == "out"
    told = json.loads(read_header(found.files[0].path).metadata["composer.export"])
    assert told["loss"] == pytest.approx(found.loss) and told["gates"] == "pair"
    hashes = {expert.name: expert.tensor_hash for expert in experts}
    assert {lora["name"]: lora["tensor_hash"] for lora in told["loras"]} == hashes
    assert (told["steps"], told["of_steps"]) == ([1, 3], 3)
    numbers = found.files[0].blocks
    assert set(numbers) == {"ada", "ink"} and {len(some) for some in numbers.values()} == {17}
    assert numbers["ada"][0] == 1  # no gates in the text encoder: each speaks there as it is
    assert found.files[0].lbw[0].startswith("<lora:ada:1:lbw=1,")
    assert found.unplaced == ()


def test_the_words_of_all_are_in_the_file(model: Model, tiny_sd: Path, tmp_path: Path) -> None:
    modules = ModuleNames.of(model.models, model=model.name)
    paths = {
        name: write_lora(
            tmp_path / f"{name}.safetensors", seed=seed, **{"modelspec.trigger_phrase": words}
        )
        for seed, (name, words) in enumerate({"zibo": "zibo fox", "neon": "neon style"}.items())
    }
    experts = [read_expert(path, modules, name=name) for name, path in paths.items()]
    file = read_gates(write_gates(tmp_path / "gates.safetensors", tiny_sd, paths))
    found = exported(model, experts, file, asked(tmp_path))
    assert read_back(model, found.files[0]).info.trigger == "zibo fox, neon style"


def test_bins_follow_gates_over_time(
    model: Model, experts: list[Expert], looking: GateFile, tmp_path: Path
) -> None:
    whole = exported(model, experts, looking, asked(tmp_path, steps=5))
    found = exported(model, experts, looking, asked(tmp_path, steps=5, bins=3))
    names = [file.path.name for file in found.files]
    assert names == [f"out-{part}of3.safetensors" for part in (1, 2, 3)]
    assert [(file.first, file.last) for file in found.files] == [(1, 1), (2, 3), (4, 5)]
    assert [file.shares for file in found.files] == [(0.0, 0.2), (0.2, 0.6), (0.6, 1.0)]
    times = [time for file in found.files for time in file.timesteps]
    assert times == sorted(times, reverse=True) and times[0] > times[-1]
    told = json.loads(read_header(found.files[1].path).metadata["composer.export"])
    assert told["steps"] == [2, 3] and told["loss_of_all_steps"] == pytest.approx(found.loss)
    assert told["loss"] == pytest.approx(found.files[1].loss)
    first, last = (read_back(model, file).sites for file in (found.files[0], found.files[-1]))
    assert any(not torch.equal(first[site].up, last[site].up) for site in first)
    one_each = exported(model, experts, looking, asked(tmp_path, steps=5, bins=5))
    assert one_each.loss < whole.loss


def test_block_weights_say_all_of_gates_of_blocks(
    model: Model, experts: list[Expert], looking: GateFile, tmp_path: Path
) -> None:
    """Each block has a number of its own, so the strings lose what the file loses."""
    found = exported(model, experts, looking, asked(tmp_path, bins=2, lbw=True))
    assert found.lbw_loss == pytest.approx(found.loss, rel=0.01)
    assert exported(model, experts, looking, asked(tmp_path)).lbw_loss is None


def test_the_text_encoders_gates_are_averaged_too(
    model: Model, experts: list[Expert], tmp_path: Path
) -> None:
    config = training(tmp_path, paper=True, steps=0)
    run(model, experts, config)
    trained = read_gates(config.output)
    # such gates with a bias, which `fixed` sets
    biased = GateSettings(activation="free", bias=True)
    trained = dataclasses.replace(
        trained,
        settings=dict.fromkeys(trained.settings, biased),
        sizes={unit: (width, None) for unit, (width, _) in trained.sizes.items()},
        tensors={
            unit: {**named, "e": torch.zeros(2, trained.sizes[unit][0])}
            for unit, named in trained.tensors.items()
        },
    )
    assert any(unit.startswith("text_encoder.") for unit in trained.tensors)
    file = fixed(trained)
    found = exported(model, experts, file, asked(tmp_path, file_type="float32", prompts=()))
    assert found.loss < 1e-6
    with attach(model.models, {"out": read_back(model, found.files[0]).sites}):
        wanted = gated_outside(model, experts, file)
        torch.testing.assert_close(predict(model), wanted, rtol=1e-4, atol=1e-4)
    words = next(i for i, u in enumerate(file.tensors) if u.startswith("text_encoder."))
    numbers = found.files[0].blocks["ada"]
    assert numbers[0] == pytest.approx(0.9 - 0.3 * words, abs=1e-5)


def gated_outside(model: Model, experts: list[Expert], file: GateFile) -> torch.Tensor:
    """On a model of its own, for the one at hand has something attached."""
    return gated(load_model(model.path), experts, file)


@pytest.mark.parametrize("cfg_scale", [1.0, 3.0])
@pytest.mark.parametrize("stage", ["sample", "measure"])
def test_cancelled_it_writes_nothing(
    model: Model,
    experts: list[Expert],
    looking: GateFile,
    tmp_path: Path,
    stage: str,
    cfg_scale: float,
) -> None:
    before = state_of(model)
    stages: list[str] = []
    config = asked(tmp_path, cfg_scale=cfg_scale)
    for report in export_gates(model, experts, looking, config, cancelled=lambda: stage in stages):
        stages.append(report.stage)
    assert stages.count(stage) == 1
    assert "saved" not in stages
    assert not config.output.exists()
    assert_untouched(model, before)


def test_left_half_way_the_model_is_as_before(
    model: Model, experts: list[Expert], looking: GateFile, tmp_path: Path
) -> None:
    before = state_of(model)
    export_gates(model, experts, looking, asked(tmp_path))  # never begun
    reports = export_gates(model, experts, looking, asked(tmp_path))
    next(iter(reports))
    reports.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert_untouched(model, before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output": Path("out.bin")}, r"ends in \.safetensors"),
        ({"naming": "onnx"}, "naming 'onnx' is unknown: choose one of kohya, diffusers"),
        ({"bins": 0}, "bins is 0: give 1 or more"),
        ({"bins": 4}, "4 bins of 3 steps"),
        ({"steps": 0}, "steps is 0"),
        ({"pictures": 0}, "pictures is 0"),
        ({"cfg_scale": float("nan")}, "cfg_scale is nan"),
        ({"prompts": ("ada", " ")}, "prompts is empty"),
    ],
)
def test_wrong_settings_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ComposerError, match=message):
        asked(tmp_path, **settings)


def in_a_file(path: Path) -> Path:
    path.write_text("no folder")
    return path / "out.safetensors"


def a_folder(path: Path) -> Path:
    (path / "out.safetensors").mkdir(parents=True)
    return path / "out.safetensors"


@pytest.mark.parametrize(
    ("place", "message"), [(in_a_file, "cannot be made"), (a_folder, "is a folder")]
)
def test_no_place_for_the_output_is_said_before_any_work(
    model: Model,
    experts: list[Expert],
    looking: GateFile,
    tmp_path: Path,
    place: Callable[[Path], Path],
    message: str,
) -> None:
    config = asked(tmp_path, output=place(tmp_path / "there"))
    with pytest.raises(ComposerError, match=message):
        export_gates(model, experts, looking, config)


def test_what_does_not_belong_together_is_said_before_any_work(
    model: Model, experts: list[Expert], looking: GateFile, tmp_path: Path
) -> None:
    before = state_of(model)
    with pytest.raises(ComposerError, match="'ink', which is not here"):
        export_gates(model, experts[:1], looking, asked(tmp_path))
    other = experts_for(model, tmp_path / "other", "x", "y", "z")[2]
    swapped = [experts[0], dataclasses.replace(other, name="ink")]
    with pytest.raises(ComposerError, match="'ink' is another file"):
        export_gates(model, swapped, looking, asked(tmp_path))
    with pytest.raises(ComposerError, match="Choose exactly those"):
        export_gates(model, [*experts, other], looking, asked(tmp_path))
    elsewhere = dataclasses.replace(looking, model_hash="0" * 64)
    with pytest.raises(ComposerError, match="Load that model"):
        export_gates(model, experts, elsewhere, asked(tmp_path))
    assert_untouched(model, before)


@pytest.mark.parametrize("told", [{}, {"settings": 3}, {"settings": {"prompts": [1, " "]}}])
def test_gates_without_prompts_want_some(
    model: Model, experts: list[Expert], looking: GateFile, tmp_path: Path, told: dict[str, Any]
) -> None:
    file = dataclasses.replace(looking, training=told)
    with pytest.raises(ComposerError, match="give prompts that name all"):
        export_gates(model, experts, file, asked(tmp_path, prompts=()))


def test_prompts_of_several_lengths(
    model: Model, experts: list[Expert], constant: GateFile, tmp_path: Path
) -> None:
    long = "ada in ink, " * 9
    found = exported(model, experts, constant, asked(tmp_path, prompts=("ada", long)))
    assert found.loss < 1e-4
