"""What the sites of a mixture see while the model paints: some inputs of each, kept."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from composer.diffusion.conditioning import encode_prompts
from composer.diffusion.denoise import latent_shape
from composer.diffusion.model import Model
from composer.diffusion.sample import denoise_pictures
from composer.mixture import Mixture
from composer.mixture.sites import Site

SAMPLES = 512
"""Inputs of each site and expert: enough for means of products, and little memory."""


def record_inputs(
    model: Model,
    mixture: Mixture,
    prompts: Mapping[str, Sequence[str]],
    *,
    steps: int,
    cfg_scale: float = 3.0,
    seed: int = 0,
) -> dict[str, list[Tensor]]:
    """For each site of the U-Net, by expert in the order of `mixture.names`: inputs of the site
    (samples, in · kh · kw) while the model paints that expert's prompts with it alone at weight 1.

    The weights of the mixture are 1 afterwards. Which inputs are kept depends on the site's name.
    """
    found: dict[str, list[list[Tensor]]] = defaultdict(lambda: [[] for _ in mixture.names])
    for number, name in enumerate(mixture.names):
        texts = prompts[name]
        each = max(SAMPLES // (steps * len(texts)), 1)
        mixture.set_weights({name: 1.0})
        handles = [
            cast(Any, site).register_forward_pre_hook(
                _keeping(path, site, each, found[path][number])
            )
            for path, site in mixture.sites.items()
            if path.startswith("unet.")
        ]
        try:
            for index, prompt in enumerate(texts):
                rows = encode_prompts(model, prompt, "").rows
                for _ in denoise_pictures(
                    model,
                    rows,
                    [seed + index],
                    latent_shape(model),
                    sampler="DDIM",
                    steps=steps,
                    cfg_scale=cfg_scale,
                ):
                    pass
        finally:
            for handle in handles:
                handle.remove()
    mixture.set_weights(dict.fromkeys(mixture.names, 1.0))
    return {path: [torch.cat(kept) for kept in lists] for path, lists in found.items()}


def _keeping(path: str, site: Site, count: int, kept: list[Tensor]) -> Callable[..., None]:
    generator = torch.Generator().manual_seed(zlib.crc32(path.encode()))

    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = _as_rows(site, inputs[0])
        chosen = torch.randperm(len(rows), generator=generator)[:count]
        kept.append(rows[chosen.to(rows.device)].float().cpu())

    return hook


def _as_rows(site: Site, hidden: Tensor) -> Tensor:
    """(tokens or positions of all rows, in · kh · kw): what the weight is multiplied with."""
    if not isinstance(site.base, nn.Conv2d):
        return hidden.flatten(0, -2)
    conv: Any = site.base
    patches = functional.unfold(
        hidden, conv.kernel_size, conv.dilation, conv.padding, conv.stride
    )  # (batch, in · kh · kw, positions)
    return patches.transpose(1, 2).flatten(0, 1)
