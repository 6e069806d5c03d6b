"""A studio on the tiny model, with a folder of LoRAs, sound and broken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from composer.studio import Studio

WIDTH = 32  # of the tiny model's text and attention


def write_lora(
    path: Path, *, seed: int, width: int = WIDTH, broken: bool = False, **metadata: str
) -> Path:
    """A small LoRA for the tiny model's attention and text encoder, strong enough to be seen."""
    generator = torch.Generator().manual_seed(seed)
    sites = {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": (32, 32),
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k": (32, width),
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_v": (32, width),
        "lora_te_text_model_encoder_layers_0_self_attn_v_proj": (width, width),
    }
    tensors: dict[str, torch.Tensor] = {}
    for site, (out, into) in sites.items():
        tensors[f"{site}.lora_down.weight"] = torch.randn(4, into, generator=generator)
        tensors[f"{site}.lora_up.weight"] = torch.randn(out, 4, generator=generator)
        tensors[f"{site}.alpha"] = torch.tensor(4.0)
    if broken:
        tensors[f"{next(iter(sites))}.lora_up.weight"][0, 0] = float("nan")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata)
    return path


@pytest.fixture(scope="session")
def lora_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sound LoRAs, one with NaN, one for another model, a pickle, a cut-off file."""
    folder = tmp_path_factory.mktemp("loras")
    card = {"composer.role": "character", "modelspec.trigger_phrase": "zibo fox"}
    zibo = write_lora(folder / "zibo.safetensors", seed=1, **card)
    write_lora(folder / "neon.safetensors", seed=2, **{"composer.role": "style"})
    write_lora(folder / "lost.safetensors", seed=3, broken=True)
    write_lora(folder / "foreign.safetensors", seed=4, width=768)
    (folder / "pickle.safetensors").write_bytes(b"\x80\x04\x95" + bytes(64))
    (folder / "cut.safetensors").write_bytes(zibo.read_bytes()[:-100])
    return folder


@pytest.fixture(scope="session")
def studio(
    tiny_sd: Path, lora_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Studio]:
    """One studio for all tests of a run, as in life: whatever one does must not harm the next."""
    studio = Studio(tiny_sd, [lora_folder], tmp_path_factory.mktemp("outputs"))
    assert studio.wait(120).state == "ready", studio.status
    yield studio
