"""A CLIP of random weights for the tiny model, 8 px pictures and its tokenizer; and a DINO."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
)


def write_clip(folder: Path, tiny_sd: Path) -> Path:
    """Save it, as transformers does, with the tokenizer of the tiny model in `tiny_sd`."""
    tokenizer = CLIPTokenizer.from_pretrained(tiny_sd / "tokenizer")
    shared = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": 16,
    }
    text = shared | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 32,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = shared | {"image_size": 8, "patch_size": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"height": 8, "width": 8}, do_center_crop=False).save_pretrained(folder)
    return folder


def write_dino(folder: Path) -> Path:
    """Save a DINOv2 of random weights: the middle 8 px of pictures whose shorter side is 10."""
    config = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=8,
        patch_size=4,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        Dinov2Model(config).save_pretrained(folder)
    BitImageProcessor(
        size={"shortest_edge": 10}, crop_size={"height": 8, "width": 8}
    ).save_pretrained(folder)
    return folder
