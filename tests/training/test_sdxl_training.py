"""SDXL from LoRA file to exported gates: every training and file goes through both text encoders,
the pooled vector and the sizes."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from gate_training import assert_untouched, run, state_of, training
from PIL import Image

from composer.diffusion.conditioning import encode_prompts
from composer.diffusion.denoise import latent_shape, predict
from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.experts import Expert, LoraInfo, ModuleNames, read_expert
from composer.experts.low_rank import LowRank
from composer.experts.write import write_lora
from composer.families import SDXL
from composer.fusions.gate_file import read_gates
from composer.mixture import attach
from composer.training.lora.settings import LoraTraining
from composer.training.lora.train import train_lora
from composer.training.pictures import TrainingPicture

SITES = ("attn1.to_q", "attn2.to_k", "attn2.to_v", "self_attn.q_proj", "proj_in", "conv1", "fc1")


@pytest.fixture(scope="module")
def model(tiny_sdxl: Path) -> Model:
    return load_model(tiny_sdxl)


def lora(
    model: Model,
    folder: Path,
    name: str,
    seed: int,
    *,
    naming: Any = "kohya",
    parts: Collection[str] = SDXL.parts,
) -> Path:
    """Rank 2 on modules of the networks, in the names that trainers give them."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ModuleNames.of(model.models, model=model.name).shapes
    sites: dict[str, LowRank] = {}
    for part in parts:
        for module, (out, *into) in shapes[part].items():
            if module.endswith(SITES):
                down = torch.randn(2, *into, generator=generator)
                up = torch.randn(out, 2, *[1] * (len(into) - 1), generator=generator)
                sites[f"{part}.{module}"] = LowRank(down=down, up=0.2 * up, scale=0.5)
    path = folder / f"{name}.safetensors"
    write_lora(path, sites, LoraInfo(), naming=naming, dtype=torch.float32)
    return path


def experts_of(model: Model, folder: Path) -> list[Expert]:
    modules = ModuleNames.of(model.models, model=model.name)
    return [
        read_expert(lora(model, folder, name, seed), modules, name=name)
        for seed, name in enumerate(("ada", "ink"))
    ]


@torch.no_grad()
def prediction(model: Model, prompt: str = "ada in ink") -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, *latent_shape(model), generator=generator)
    return predict(model, latents, torch.tensor(400), encode_prompts(model, prompt, None).positive)


# diffusers loses the text encoders of a file with kohya's names beside transformers 5
@pytest.mark.parametrize(("naming", "parts"), [("kohya", ("unet",)), ("diffusers", SDXL.parts)])
def test_a_lora_changes_what_it_changes_in_the_pipeline(
    model: Model, tiny_sdxl: Path, tmp_path: Path, naming: str, parts: tuple[str, ...]
) -> None:
    path = lora(model, tmp_path, "ada", 0, naming=naming, parts=parts)
    expert = read_expert(path, ModuleNames.of(model.models, model=model.name), name="ada")
    assert expert.unmatched == ()
    assert {site.split(".")[0] for site in expert.sites} == set(parts)
    bare = prediction(model)
    with attach(model.models, {"ada": expert.sites}) as mixture:
        mixture.set_weights({"ada": 1.0})
        ours = prediction(model)
    assert torch.equal(prediction(model), bare)
    pipeline: Any = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, local_files_only=True)
    pipeline.load_lora_weights(str(path))
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, *latent_shape(model), generator=generator)
    states, _, pooled, _ = pipeline.encode_prompt("ada in ink", do_classifier_free_guidance=False)
    added = {"text_embeds": pooled, "time_ids": torch.tensor([[16, 16, 0, 0, 16, 16]])}
    with torch.no_grad():
        theirs = pipeline.unet(latents, 400, states, added_cond_kwargs=added).sample
    assert not torch.allclose(theirs, bare, atol=1e-2)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"input": "placed"}, {"granularity": "matrix"}])
def test_gates_are_trained_saved_and_used(
    model: Model, tmp_path: Path, settings: dict[str, Any]
) -> None:
    experts = experts_of(model, tmp_path)
    config = training(tmp_path, steps=3, gradient_checkpointing=not settings, **settings)
    before = state_of(model)
    assert len(run(model, experts, config)) == 3
    assert_untouched(model, before)
    file = read_gates(config.output)
    sites = {expert.name: expert.sites for expert in experts}
    with attach(model.models, sites, granularity=file.granularity) as mixture:
        mixture.set_weights({"ada": 1.0, "ink": 1.0})
        summed = prediction(model)
        file.fit(mixture)
        gated = prediction(model)
    assert not torch.equal(gated, summed)


def test_a_lora_is_trained_with_both_text_encoders(model: Model, tmp_path: Path) -> None:
    pictures = [
        TrainingPicture(image=Image.new("RGB", (16, 16), colour), caption=f"ada {colour}")
        for colour in ("red", "blue")
    ]
    config = LoraTraining(
        output=tmp_path / "ada.safetensors", rank=2, steps=3, batch_size=2, text_encoder=True
    )
    before = state_of(model)
    for _ in train_lora(model, config, pictures=pictures):
        pass
    assert_untouched(model, before)
    expert = read_expert(config.output, ModuleNames.of(model.models, model=model.name))
    assert {site.split(".")[0] for site in expert.sites} == set(model.family.parts)
    # SDXL reads the layer before the last; the second encoder's last one makes the pooled vector
    unread = "text_encoder.encoder.layers.1."
    moved = {site for site, factors in expert.sites.items() if bool(factors.up.any())}
    assert moved == {site for site in expert.sites if not site.startswith(unread)}
