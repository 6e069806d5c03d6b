"""Gates taken away as one ordinary LoRA, or as block weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_loras import experts_for

from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.errors import ComposerError
from composer.experts import Expert, LoraInfo, LowRank, ModuleNames, read_expert, write_lora
from composer.fusions.export import (
    block_weights,
    blocks_for,
    lbw_string,
    merged,
    merged_by_blocks,
    unplaced_sites,
)
from composer.mixture import Mixture, attach


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> Model:
    return load_model(tiny_sd)


@pytest.fixture
def experts(model: Model, tmp_path: Path) -> list[Expert]:
    return experts_for(model, tmp_path)


def mixed(model: Model, experts: list[Expert]) -> Mixture:
    return attach(model.models, {e.name: e.sites for e in experts}, granularity="layer")


def weights_for(mixture: Mixture) -> dict[str, list[float]]:
    """Other numbers in each unit, negative ones among them."""
    return {u: [0.9 - 0.4 * i, 0.2 + 0.5 * i] for i, u in enumerate(mixture.units)}


def predict(model: Model) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(model.token_limit)[None]
    with torch.no_grad():
        text = model.models["text_encoder"](ids).last_hidden_state
        latents = torch.randn(1, model.latent_channels, 8, 8, generator=generator)
        return model.unet(latents, 7, text).sample


def test_the_merged_lora_is_the_mixture(
    model: Model, experts: list[Expert], tmp_path: Path
) -> None:
    with mixed(model, experts) as mixture:
        weights = weights_for(mixture)
        for unit, numbers in weights.items():
            mixture.pin(unit, dict(zip(mixture.names, numbers, strict=True)))
        wanted = predict(model)
        sites = merged(mixture, experts, weights)
    assert {factors.rank for factors in sites.values()} == {8}  # 4 + 4, side by side
    path = tmp_path / "both.safetensors"
    write_lora(path, sites, LoraInfo(title="both"), dtype=torch.float32)
    modules = ModuleNames.of(model.models, model=model.name)
    both = read_expert(path, modules, name="both")
    assert both.unmatched == ()
    with attach(model.models, {"both": both.sites}):
        torch.testing.assert_close(predict(model), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("naming", ["kohya", "diffusers"])
def test_diffusers_loads_it(
    tiny_sd: Path, model: Model, experts: list[Expert], tmp_path: Path, naming: Any
) -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import (
        StableDiffusionPipeline,
    )

    with mixed(model, experts) as mixture:
        weights = weights_for(mixture)
        for unit, numbers in weights.items():
            mixture.pin(unit, dict(zip(mixture.names, numbers, strict=True)))
        wanted = predict(model)
        sites = merged(mixture, experts, weights)
    if naming == "kohya":
        # diffusers reads kohya's text encoder only where all four matrices of attention are in it
        sites = {site: f for site, f in sites.items() if site.startswith("unet.")}
        with attach({"unet": model.unet}, {"both": sites}):
            wanted = predict(model)
    write_lora(tmp_path / "both.safetensors", sites, LoraInfo(), naming=naming, dtype=torch.float32)
    pipeline: Any = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    pipeline.load_lora_weights(str(tmp_path), weight_name="both.safetensors")
    got = predict(pipeline_as_model(pipeline, model))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def pipeline_as_model(pipeline: Any, model: Model) -> Model:
    return dataclasses.replace(
        model,
        unet=pipeline.unet,
        encoders={
            "text_encoder": dataclasses.replace(
                model.encoders["text_encoder"], network=pipeline.text_encoder
            )
        },
    )


def test_a_unit_that_is_left_out_keeps_its_constant_weights(
    model: Model, experts: list[Expert]
) -> None:
    with mixed(model, experts) as mixture:
        mixture.set_weights({"ada": 0.5, "ink": 0.25})
        wanted = predict(model)
        sites = merged(mixture, experts, {})
    with attach(model.models, {"both": sites}):
        torch.testing.assert_close(predict(model), wanted, rtol=1e-4, atol=1e-5)


def test_other_experts_are_refused(model: Model, experts: list[Expert]) -> None:
    with mixed(model, experts) as mixture, pytest.raises(ComposerError, match="gates are for"):
        merged(mixture, experts[:1], {})


def test_block_weights(model: Model, experts: list[Expert]) -> None:
    """17 numbers; each the mean over the units of its block, 0 where the LoRA changes nothing."""
    with mixed(model, experts) as mixture:
        units = list(mixture.units)
        words = [u for u in units if u.startswith("text_encoder")]
        first = [u for u in units if u.startswith("unet.down_blocks.0.attentions.0")]
        assert len(first) == 2 and len(words) == 1
        weights = {words[0]: [0.5, 0.1], first[0]: [1.0, 0.2], first[1]: [0.0, 0.4]}
        blocks = blocks_for(mixture, model.family)
        numbers = block_weights(mixture, "ada", weights, blocks)
        assert len(numbers) == 17
        assert numbers[:2] == (0.5, 0.5) and not any(numbers[2:])
        ink = block_weights(mixture, "ink", weights, blocks)
        assert ink[:2] == pytest.approx((0.1, 0.3))
    assert lbw_string("ada", numbers[:3]) == "<lora:ada:1:lbw=0.5,0.5,0>"


@pytest.mark.parametrize("granularity", ["network", "block"])
def test_block_weights_of_larger_units_are_the_mixture(
    model: Model, experts: list[Expert], granularity: Any
) -> None:
    """A unit counts in every block that it covers; the LoRAs by their strings are the mixture."""
    sites = {e.name: e.sites for e in experts}
    with attach(model.models, sites, granularity=granularity) as mixture:
        weights = weights_for(mixture)
        for unit, numbers in weights.items():
            mixture.pin(unit, dict(zip(mixture.names, numbers, strict=True)))
        wanted = predict(model)
        blocks = blocks_for(mixture, model.family)
        numbers = {name: block_weights(mixture, name, weights, blocks) for name in mixture.names}
        assert unplaced_sites(mixture, blocks) == ()
        by_strings = merged_by_blocks(mixture, experts, numbers, blocks)
    assert len(set(numbers["ada"])) == 3  # two units, and the blocks that nobody changes
    with attach(model.models, {"both": by_strings}):
        torch.testing.assert_close(predict(model), wanted, rtol=1e-4, atol=1e-5)


def test_sites_without_a_block_weight_are_told(model: Model, experts: list[Expert]) -> None:
    first = LowRank(down=torch.zeros(1, 4, 3, 3), up=torch.zeros(32, 1, 1, 1), scale=1.0)
    last = LowRank(down=torch.zeros(1, 32, 3, 3), up=torch.zeros(4, 1, 1, 1), scale=1.0)
    sites = {**experts[0].sites, "unet.conv_in": first}
    with mixed(model, [dataclasses.replace(experts[0], sites=sites), experts[1]]) as mixture:
        blocks = blocks_for(mixture, model.family)
        assert len(blocks) == 26 and unplaced_sites(mixture, blocks) == ()
        assert block_weights(mixture, "ada", {}, blocks)[:3] == (1, 1, 1)
    wider = [dataclasses.replace(experts[0], sites={**sites, "unet.conv_out": last}), experts[1]]
    with mixed(model, wider) as mixture:
        blocks = blocks_for(mixture, model.family)
        assert unplaced_sites(mixture, blocks) == ("unet.conv_out",)
        with pytest.raises(ValueError, match="no block weight"):
            merged_by_blocks(mixture, wider, {n: [1.0] * 26 for n in mixture.names}, blocks)
