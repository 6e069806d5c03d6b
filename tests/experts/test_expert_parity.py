"""diffusers and PEFT are the oracle: each site's delta is what they would add to its weight."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_files import ATTENTION, CONV, TEXT, UNET, random_sites, save

from composer.errors import ComposerError
from composer.experts import LoraInfo, LowRank, ModuleNames, read_expert, write_lora


def peft_deltas(pipeline: Any) -> dict[str, torch.Tensor]:
    """What PEFT adds at each site of the pipeline's parts, scaling included."""
    return {
        f"{part}.{name}": module.get_delta_weight("oracle").detach()
        for part in ("unet", "text_encoder")
        for name, module in getattr(pipeline, part).named_modules()
        if hasattr(module, "get_delta_weight")
    }


def assert_same_deltas(sites: dict[str, LowRank] | Any, expected: dict[str, torch.Tensor]) -> None:
    assert set(sites) == set(expected)
    for site, delta in expected.items():
        torch.testing.assert_close(sites[site].dense(), delta, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("endings", [UNET, TEXT, UNET + TEXT, CONV, UNET + TEXT + CONV])
@pytest.mark.parametrize("naming", ["kohya", "diffusers"])
def test_written_files_mean_the_same_to_diffusers(
    tmp_path: Path, pipeline: Any, tiny_names: ModuleNames, naming: Any, endings: tuple[str, ...]
) -> None:
    sites = random_sites(tiny_names, endings)
    path = tmp_path / "lora.safetensors"
    write_lora(path, sites, LoraInfo(), naming=naming, dtype=torch.float32)
    expert = read_expert(path, tiny_names)
    pipeline.load_lora_weights(path, adapter_name="oracle")
    assert expert.unmatched == ()
    assert_same_deltas(expert.sites, peft_deltas(pipeline))
    assert_same_deltas(sites, {site: expert.sites[site].dense() for site in sites})


def test_a_file_saved_by_diffusers(tmp_path: Path, pipeline: Any, tiny_names: ModuleNames) -> None:
    """diffusers keeps alphas in a config within the metadata, ranks and alphas by pattern too."""
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    config = LoraConfig(
        r=3, lora_alpha=6, target_modules=["to_q", "to_k", "conv1"], init_lora_weights=False,
        rank_pattern={"attn2.to_k": 2}, alpha_pattern={"attn2.to_k": 5},
    )  # fmt: skip
    text = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj"], init_lora_weights=False)
    pipeline.unet.add_adapter(config, "oracle")
    pipeline.text_encoder.add_adapter(text, "oracle")
    layers = {
        part: convert_state_dict_to_diffusers(
            get_peft_model_state_dict(getattr(pipeline, part), adapter_name="oracle")
        )
        for part in ("unet", "text_encoder")
    }
    pipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=layers["unet"],
        text_encoder_lora_layers=layers["text_encoder"],
        unet_lora_adapter_metadata=config.to_dict(),
        text_encoder_lora_adapter_metadata=text.to_dict(),
    )
    expert = read_expert(tmp_path / "pytorch_lora_weights.safetensors", tiny_names)
    assert expert.name == tmp_path.name
    assert expert.sites[ATTENTION].scale == 2.5
    assert_same_deltas(expert.sites, peft_deltas(pipeline))


@pytest.mark.parametrize("prefix", ["{}.", "", "base_model.model."])
@pytest.mark.parametrize("dora", [False, True])
def test_a_file_of_diffusers_own_conversion_to_kohya(
    tmp_path: Path, pipeline: Any, tiny_names: ModuleNames, dora: bool, prefix: str
) -> None:
    """Of such a file 28 of 84 modules were read once, without a word."""
    from diffusers.utils import convert_state_dict_to_kohya
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    tensors: dict[str, torch.Tensor] = {}
    for part, ends in (("unet", ["to_q", "conv1"]), ("text_encoder", ["q_proj", "fc1"])):
        if part == "unet" or prefix == "{}.":
            config = LoraConfig(r=3, lora_alpha=3, target_modules=ends, init_lora_weights=False)
            config.use_dora = dora
            model = getattr(pipeline, part)
            model.add_adapter(config, "oracle")
            for name, parameter in model.named_parameters():
                if "magnitude" in name:
                    parameter.data.mul_(1 + 0.3 * torch.rand_like(parameter))
            state = get_peft_model_state_dict(model, adapter_name="oracle")
            tensors |= {prefix.format(part) + name: tensor for name, tensor in state.items()}
    path = save(tmp_path / "kohya.safetensors", convert_state_dict_to_kohya(tensors))
    if dora and not prefix:  # names that mix dots and underscores: nothing is left out silently
        with pytest.raises(ComposerError, match="a magnitude of DoRA's and no factors"):
            read_expert(path, tiny_names)
        return
    expert = read_expert(path, tiny_names)
    assert (expert.unmatched, expert.share) == ((), 1.0)
    expected = peft_deltas(pipeline)
    if dora:  # these leave the magnitudes out
        for site in expected:
            layer = pipeline.components[site.partition(".")[0]].get_submodule(
                site.partition(".")[2]
            )
            merged = copy.deepcopy(layer)
            merged.merge()
            expected[site] = merged.get_base_layer().weight - layer.get_base_layer().weight
    assert_same_deltas(expert.sites, expected)


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_saved_by_peft(
    tmp_path: Path, tiny_sd: Path, tiny_names: ModuleNames, rslora: bool
) -> None:
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig, get_peft_model

    unet = UNet2DConditionModel.from_pretrained(tiny_sd, subfolder="unet", local_files_only=True)
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=["to_q", "conv2"], init_lora_weights=False,
        use_rslora=rslora, alpha_pattern={"conv2": 3},
    )  # fmt: skip
    adapted = get_peft_model(unet, config)
    adapted.save_pretrained(tmp_path)
    expert = read_expert(tmp_path / "adapter_model.safetensors", tiny_names)
    prefix = "base_model.model."
    assert expert.info.format == "PEFT"
    assert_same_deltas(
        expert.sites,
        {
            "unet." + name.removeprefix(prefix): module.get_delta_weight("default").detach()
            for name, module in adapted.named_modules()
            if hasattr(module, "get_delta_weight")
        },
    )


def test_old_attention_processors(tmp_path: Path, pipeline: Any, tiny_names: ModuleNames) -> None:
    sites = random_sites(tiny_names, ("to_q", "to_k", "to_v", "to_out.0"))
    tensors: dict[str, torch.Tensor] = {}
    for site, factors in sites.items():
        attention, _, projection = site.removesuffix(".0").rpartition(".")
        name = f"{attention}.processor.{projection}_lora"
        tensors[f"{name}.down.weight"], tensors[f"{name}.up.weight"] = factors.down, factors.up
    path = save(tmp_path / "old.safetensors", tensors)
    expert = read_expert(path, tiny_names)
    pipeline.load_lora_weights(path, adapter_name="oracle")
    assert expert.info.format == "attention processors"
    assert_same_deltas(expert.sites, peft_deltas(pipeline))


@pytest.mark.parametrize(
    ("unet_pair", "text_pair"),
    [
        ("lora.down lora.up", "lora_linear_layer.down lora_linear_layer.up"),
        ("lora_A lora_B", "lora_A lora_B"),
    ],
)
def test_spellings_of_diffusers(
    tmp_path: Path, pipeline: Any, tiny_names: ModuleNames, unet_pair: str, text_pair: str
) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for site, factors in random_sites(tiny_names, ("to_q", "to_k", "q_proj", "out_proj")).items():
        down, up = (unet_pair if site.startswith("unet.") else text_pair).split()
        name = site.replace("text_encoder.", "text_encoder.text_model.")
        tensors[f"{name}.{down}.weight"], tensors[f"{name}.{up}.weight"] = factors.down, factors.up
    path = save(tmp_path / "lora.safetensors", tensors)
    expert = read_expert(path, tiny_names)
    pipeline.load_lora_weights(path, adapter_name="oracle")
    assert_same_deltas(expert.sites, peft_deltas(pipeline))
