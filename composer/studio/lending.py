"""A model to train on beside the one that paints: the same weights, modules of its own."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from composer.diffusion.lowvram import check_here
from composer.diffusion.model import Model, TextEncoder
from composer.experts import Expert


@dataclass(frozen=True, kw_only=True, eq=False)
class Lent:
    """What a training works with; whatever it does to it, the studio's model stays as it is."""

    model: Model
    experts: tuple[Expert, ...]


def copy_for_training(model: Model) -> Model:
    """A copy whose modules can be replaced and whose flags can be set freely.

    The weights are the same memory, for a gate training changes none, so the copy costs next to
    nothing; only of a model in float16 they are copied, into a type whose gradients do not vanish.
    The model must be bare: what is attached would be copied with it.

    Raises:
        ComposerError: the model was loaded to take little memory.
    """
    check_here(model)
    parts: dict[str, nn.Module] = {**model.models, "vae": model.vae}
    memo: dict[int, Any] = {}
    for module in parts.values():
        for parameter in module.parameters():
            memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
        for buffer in module.buffers():
            memo[id(buffer)] = buffer
    copies: dict[str, Any] = {part: copy.deepcopy(its, memo) for part, its in parts.items()}
    dtype = model.dtype
    if dtype == torch.float16:
        brain = model.device.type == "cuda" and torch.cuda.is_bf16_supported()
        dtype = torch.bfloat16 if brain else torch.float32
        for part in model.models:
            copies[part].to(dtype)
    # A tokenizer is not safe to use from two threads.
    encoders = {
        part: TextEncoder(network=copies[part], tokenizer=copy.deepcopy(encoder.tokenizer))
        for part, encoder in model.encoders.items()
    }
    unet, vae = copies["unet"], copies["vae"]
    copied = replace(model, unet=unet, vae=vae, encoders=encoders, dtype=dtype)
    vars(copied)["hash"] = model.hash  # read once for both
    return copied
