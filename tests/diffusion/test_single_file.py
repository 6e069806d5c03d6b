"""A checkpoint in one file, in the original naming, makes the same picture as its folder."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from composer import families
from composer.diffusion import load
from composer.diffusion.folder import check_pipeline, read_json
from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.diffusion.request import Request
from composer.diffusion.sample import Step, generate
from composer.errors import ComposerError

FIRST = "cond_stage_model.transformer."
# Names of the tiny model's modules in diffusers and in the original Stable Diffusion.
UNET = [
    (r"^time_embedding\.linear_1", "time_embed.0"),
    (r"^time_embedding\.linear_2", "time_embed.2"),
    (r"^add_embedding\.linear_1", "label_emb.0.0"),
    (r"^add_embedding\.linear_2", "label_emb.0.2"),
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
    (r"\.norm1\.(?=\w+$)(?<!transformer_blocks\.\d\.norm1\.)", ".in_layers.0."),
    (r"\.conv1\.", ".in_layers.2."),
    (r"\.time_emb_proj\.", ".emb_layers.1."),
    (r"\.norm2\.(?=\w+$)(?<!transformer_blocks\.\d\.norm2\.)", ".out_layers.0."),
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


def open_clip(file: Path, prefix: str) -> dict[str, torch.Tensor]:
    """A text encoder of transformers in the naming of open_clip."""
    tensors = load_file(file)
    text, found = "text_model.encoder.layers.", dict[str, torch.Tensor]()
    rules = [
        (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
        (r"^text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
        (r"^text_model\.final_layer_norm\.", "ln_final."),
        (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
        (r"\.layer_norm(\d)\.", r".ln_\1."),
        (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
        (r"\.mlp\.fc1\.", ".mlp.c_fc."),
        (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    ]
    for name, tensor in tensors.items():
        if name == "text_projection.weight":
            found[prefix + "text_projection"] = tensor.T.contiguous()
        elif match := re.fullmatch(rf"({re.escape(text)}\d+\.self_attn\.)q_proj\.(\w+)", name):
            three = [tensors[f"{match[1]}{kind}_proj.{match[2]}"] for kind in "qkv"]
            layer = match[1].removeprefix(text).removesuffix("self_attn.")
            key = f"transformer.resblocks.{layer}attn.in_proj_{match[2]}"
            found[prefix + key] = torch.cat(three)
        elif not re.search(r"\.[kv]_proj\.", name):
            for pattern, replacement in rules:
                name = re.sub(pattern, replacement, name)
            found[prefix + name] = tensor
    return found


def save_checkpoint(folder: Path, path: Path, **metadata: str) -> Path:
    """The folder's model in one file, in the original naming."""
    weights = "diffusion_pytorch_model.safetensors"
    text = load_file(folder / "text_encoder" / "model.safetensors")
    text = {f"text_model.{name.removeprefix('text_model.')}": text[name] for name in text}
    second = folder / "text_encoder_2" / "model.safetensors"
    first = "conditioner.embedders.0.transformer." if second.exists() else FIRST
    tensors = renamed(folder / "unet" / weights, UNET, "model.diffusion_model.")
    tensors |= renamed(folder / "vae" / weights, VAE, "first_stage_model.")
    tensors |= {first + name: tensor for name, tensor in text.items()}
    if second.exists():
        tensors |= open_clip(second, "conditioner.embedders.1.model.")
    save_file(tensors, path, metadata)
    return path


def latents(model: Model) -> torch.Tensor:
    asked = Request(prompt="a fox", seed=1, steps=2)
    return [event.latents for event in generate(model, asked) if isinstance(event, Step)][-1]


@pytest.fixture(scope="module")
def checkpoint(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tiny_sd, tmp_path_factory.mktemp("checkpoints") / "tiny.v1.safetensors")


@pytest.mark.parametrize("kind", ["tiny_sd", "tiny_sdxl"])
def test_same_picture_as_the_folder(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(kind)
    checkpoint = save_checkpoint(folder, tmp_path / "tiny.v1.safetensors")
    shutil.copytree(
        folder, checkpoint.with_suffix(""), ignore=shutil.ignore_patterns("*.safetensors")
    )
    model, theirs = load_model(checkpoint), load_model(folder)
    assert (model.name, model.size, model.token_limit) == ("tiny.v1", 16, 32)
    torch.testing.assert_close(latents(model), latents(theirs))
    images = (m.to_images(latents(model)) for m in (model, theirs))
    torch.testing.assert_close(next(images), next(images))


@pytest.mark.parametrize("kind", ["tiny_sd", "tiny_sdxl"])
def test_the_configs_of_a_published_family_are_at_hand(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Offline, with no folder beside the file; the family is one that nobody has published."""
    folder: Path = request.getfixturevalue(kind)
    like = families.SDXL if kind == "tiny_sdxl" else families.STABLE_DIFFUSION_1
    width = 80 if kind == "tiny_sdxl" else 32
    made_up = replace(like, name="Made up", text_width=width, config="made_up", kohya="mu")
    monkeypatch.setattr(families, "FAMILIES", (made_up, *families.FAMILIES))
    shutil.copytree(
        folder,
        tmp_path / "configs" / "made_up",
        ignore=shutil.ignore_patterns("*.safetensors", "tokenizer*"),
    )
    theirs = load_model(folder)
    tokenizers = [encoder.tokenizer for encoder in theirs.encoders.values()]
    monkeypatch.setattr(load, "CONFIGS", tmp_path / "configs")
    monkeypatch.setattr(load, "published_tokenizer", lambda pads: tokenizers[bool(pads)])
    model = load_model(
        save_checkpoint(
            folder, tmp_path / "alone.safetensors", **{"modelspec.prediction_type": "v"}
        )
    )
    assert model.family == theirs.family == made_up
    assert set(model.models) == set(made_up.parts)
    assert model.prediction_type == "v_prediction" != theirs.prediction_type
    same = replace(model, scheduler_config=theirs.scheduler_config)
    torch.testing.assert_close(latents(same), latents(theirs))


@pytest.mark.parametrize("family", families.FAMILIES, ids=lambda family: family.name)
def test_published_configs_fit_each_other(family: families.Family) -> None:
    """Made without memory: all sizes of a family follow from its configs."""
    folder = load.CONFIGS / family.config
    assert check_pipeline(folder) == family
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(read_json(folder / "unet" / "config.json"))
    widths = [
        read_json(folder / encoder.part / "config.json")["hidden_size"]
        for encoder in family.encoders
    ]
    assert sum(widths) == family.text_width == unet.config["cross_attention_dim"]
    # as published
    millions = {"sd1": 859, "sd2": 865, "sdxl": 2567}
    assert sum(p.numel() for p in unet.parameters()) // 10**6 == millions[family.config]


def test_the_tokenizer_of_all_families() -> None:
    read = load.published_tokenizer("")
    assert read("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert (read.pad_token_id, load.published_tokenizer("!").pad_token_id) == (49407, 0)


def test_without_configs_the_message_says_where_to_put_them(
    checkpoint: Path, tmp_path: Path
) -> None:
    alone = shutil.copy(checkpoint, tmp_path / "alone.safetensors")
    with pytest.raises(ComposerError, match=r"text width 32, whose .* Put a diffusers .*alone"):
        load_model(alone)
