"""A checkpoint in one file, in the original naming, makes the same picture as its folder."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from composer.diffusion.load import load_model
from composer.diffusion.request import Request
from composer.diffusion.sample import Step, generate
from composer.errors import ComposerError

# Names of the tiny model's modules in diffusers and in the original Stable Diffusion.
UNET = [
    (r"^time_embedding\.linear_1", "time_embed.0"),
    (r"^time_embedding\.linear_2", "time_embed.2"),
    (r"^conv_in", "input_blocks.0.0"),
    (r"^conv_norm_out", "out.0"),
    (r"^conv_out", "out.2"),
    (r"^down_blocks\.0\.resnets\.0", "input_blocks.1.0"),
    (r"^down_blocks\.0\.attentions\.0", "input_blocks.1.1"),
    (r"^down_blocks\.0\.downsamplers\.0\.conv", "input_blocks.2.0.op"),
    (r"^down_blocks\.1\.resnets\.0", "input_blocks.3.0"),
    (r"^mid_block\.resnets\.0", "middle_block.0"),
    (r"^mid_block\.attentions\.0", "middle_block.1"),
    (r"^mid_block\.resnets\.1", "middle_block.2"),
    (r"^up_blocks\.0\.resnets\.(\d)", r"output_blocks.\1.0"),
    (r"^up_blocks\.0\.upsamplers\.0", "output_blocks.1.1"),
    (r"^up_blocks\.1\.resnets\.0", "output_blocks.2.0"),
    (r"^up_blocks\.1\.resnets\.1", "output_blocks.3.0"),
    (r"^up_blocks\.1\.attentions\.0", "output_blocks.2.1"),
    (r"^up_blocks\.1\.attentions\.1", "output_blocks.3.1"),
    (r"\.norm1\.(?=\w+$)(?<!transformer_blocks\.0\.norm1\.)", ".in_layers.0."),
    (r"\.conv1\.", ".in_layers.2."),
    (r"\.time_emb_proj\.", ".emb_layers.1."),
    (r"\.norm2\.(?=\w+$)(?<!transformer_blocks\.0\.norm2\.)", ".out_layers.0."),
    (r"\.conv2\.", ".out_layers.3."),
    (r"\.conv_shortcut\.", ".skip_connection."),
]
VAE = [
    (r"^encoder\.down_blocks\.(\d)\.resnets\.(\d)", r"encoder.down.\1.block.\2"),
    (r"^encoder\.down_blocks\.(\d)\.downsamplers\.0", r"encoder.down.\1.downsample"),
    (r"^decoder\.up_blocks\.0\.resnets\.(\d)", r"decoder.up.1.block.\1"),
    (r"^decoder\.up_blocks\.1\.resnets\.(\d)", r"decoder.up.0.block.\1"),
    (r"^decoder\.up_blocks\.0\.upsamplers\.0", "decoder.up.1.upsample"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
    (r"conv_norm_out", "norm_out"),
    (r"conv_shortcut", "nin_shortcut"),
]


def renamed(file: Path, rules: list[tuple[str, str]], prefix: str) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(file).items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        # The original attention of the VAE is made of 1 x 1 convolutions.
        if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name):
            tensor = tensor[:, :, None, None]
        tensors[prefix + name] = tensor.contiguous()
    return tensors


@pytest.fixture(scope="module")
def checkpoint(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "tiny.v1.safetensors"
    text = load_file(tiny_sd / "text_encoder" / "model.safetensors")
    text = {f"text_model.{name.removeprefix('text_model.')}": text[name] for name in text}
    weights = "diffusion_pytorch_model.safetensors"
    save_file(
        renamed(tiny_sd / "unet" / weights, UNET, "model.diffusion_model.")
        | renamed(tiny_sd / "vae" / weights, VAE, "first_stage_model.")
        | {f"cond_stage_model.transformer.{name}": tensor for name, tensor in text.items()},
        path,
    )
    return path


def test_same_picture_as_the_folder(checkpoint: Path, tiny_sd: Path) -> None:
    shutil.copytree(
        tiny_sd, checkpoint.with_suffix(""), ignore=shutil.ignore_patterns("*.safetensors")
    )
    model = load_model(checkpoint)
    assert (model.name, model.size, model.token_limit) == ("tiny.v1", 16, 32)
    asked = Request(prompt="a fox", seed=1, steps=2)
    ours, theirs = (
        [event.latents for event in generate(m, asked) if isinstance(event, Step)][-1]
        for m in (model, load_model(tiny_sd))
    )
    torch.testing.assert_close(ours, theirs)
    images = (m.to_images(ours) for m in (model, load_model(tiny_sd)))
    torch.testing.assert_close(next(images), next(images))


def test_without_configs_the_message_says_where_to_put_them(
    checkpoint: Path, tmp_path: Path
) -> None:
    alone = shutil.copy(checkpoint, tmp_path / "alone.safetensors")
    with pytest.raises(
        ComposerError, match=r"looked for in .*alone and on the hub. Put a diffusers"
    ):
        load_model(alone)
